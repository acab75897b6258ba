"""UDP headers (RFC 768)."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from sulla_trio.errors import BadPacket
from sulla_trio.wire.inet import IPPROTO_UDP, Buffer, partial_sum, pseudo_sum

HEADER_LENGTH: Final = 8
_HEADER: Final = struct.Struct("!HHHH")
_make: Final = tuple.__new__  # half the time of the constructor


class Udp(NamedTuple):
    """One header; the payload is ``view[payload_offset:payload_end]``."""

    source_port: int
    destination_port: int
    length: int
    payload_offset: int
    payload_end: int


def parse(view: Buffer, offset: int, end: int, source_ip: bytes, destination_ip: bytes) -> Udp:
    """Read the header at `offset`; a checksum that is there holds. Raises BadPacket and nothing else."""
    if end - offset < HEADER_LENGTH:
        raise BadPacket("udp_short")
    source, destination, length, given = _HEADER.unpack_from(view, offset)
    if length < HEADER_LENGTH or length > end - offset:
        raise BadPacket("udp_length")
    stop = offset + length
    if given:
        total = partial_sum(view[offset:stop]) + pseudo_sum(source_ip, destination_ip, IPPROTO_UDP, length)
        if total % 65_535:
            raise BadPacket("udp_checksum")
    return _make(Udp, (source, destination, length, offset + HEADER_LENGTH, stop))


def emit(source_ip: bytes, source_port: int, destination_ip: bytes, destination_port: int, payload: Buffer) -> bytes:
    """The 8-byte header with its checksum for `payload`, which is not included."""
    length = HEADER_LENGTH + len(payload)
    total = pseudo_sum(source_ip, destination_ip, IPPROTO_UDP, length) + partial_sum(payload)
    total += source_port + destination_port + length
    # A sum that comes out as 0 is sent as all ones: 0 means "no checksum".
    return _HEADER.pack(source_port, destination_port, length, -total % 65_535 or 0xFFFF)


def format(header: Udp) -> str:
    """One line."""
    return f"UDP {header.source_port} > {header.destination_port}, length {header.length - HEADER_LENGTH}"
