"""IPv4 headers (RFC 791). Options are skipped."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from sulla_trio.config import format_ip
from sulla_trio.errors import BadPacket
from sulla_trio.wire.inet import Buffer

HEADER_LENGTH: Final = 20
DONT_FRAGMENT: Final = 0x4000
MORE_FRAGMENTS: Final = 0x2000
OFFSET_MASK: Final = 0x1FFF
DEFAULT_TTL: Final = 64
_HEADER: Final = struct.Struct("!BBHHHBBH4s4s")
_make: Final = tuple.__new__  # half the time of the constructor


class Ipv4(NamedTuple):
    """One header. `header_length` and `total_length` in bytes; `flags_fragment` as on the wire."""

    header_length: int
    tos: int
    total_length: int
    identification: int
    flags_fragment: int
    ttl: int
    protocol: int
    source: bytes
    destination: bytes

    @property
    def dont_fragment(self) -> bool:
        return bool(self.flags_fragment & DONT_FRAGMENT)

    @property
    def more_fragments(self) -> bool:
        return bool(self.flags_fragment & MORE_FRAGMENTS)

    @property
    def fragment_offset(self) -> int:
        """Bytes."""
        return (self.flags_fragment & OFFSET_MASK) * 8


def parse(view: Buffer, offset: int = 0) -> Ipv4:
    """Read the header at `offset`: version, lengths and checksum hold. Raises BadPacket and nothing else."""
    if len(view) - offset < HEADER_LENGTH:
        raise BadPacket("ipv4_short")
    first, tos, total, ident, flags, ttl, protocol, _, source, destination = _HEADER.unpack_from(view, offset)
    if first >> 4 != 4:
        raise BadPacket("ipv4_version")
    header_length = (first & 15) * 4
    if header_length < HEADER_LENGTH:
        raise BadPacket("ipv4_header_length")
    if total < header_length or total > len(view) - offset:
        raise BadPacket("ipv4_length")
    # The first byte is not zero, so a sum of 0 modulo 65535 is all ones.
    if int.from_bytes(view[offset : offset + header_length], "big") % 65_535:
        raise BadPacket("ipv4_checksum")
    return _make(Ipv4, (header_length, tos, total, ident, flags, ttl, protocol, source, destination))


def emit(
    source: bytes,
    destination: bytes,
    protocol: int,
    payload_length: int,
    *,
    identification: int = 0,
    ttl: int = DEFAULT_TTL,
    tos: int = 0,
    flags_fragment: int = DONT_FRAGMENT,
) -> bytes:
    """A header of 20 bytes with its checksum, for `payload_length` bytes behind it."""
    total = HEADER_LENGTH + payload_length
    words = 0x4500 + tos + total + identification + flags_fragment + (ttl << 8) + protocol
    field = -(words + int.from_bytes(source + destination, "big")) % 65_535
    return _HEADER.pack(0x45, tos, total, identification, flags_fragment, ttl, protocol, field, source, destination)


def format(header: Ipv4) -> str:
    """One line: addresses, protocol, what is unusual."""
    text = (
        f"IP {format_ip(header.source)} > {format_ip(header.destination)}: protocol {header.protocol}, ttl {header.ttl}"
    )
    if header.more_fragments or header.fragment_offset:
        text += f", fragment {header.identification}@{header.fragment_offset}{'+' if header.more_fragments else ''}"
    return f"{text}, length {header.total_length - header.header_length}"
