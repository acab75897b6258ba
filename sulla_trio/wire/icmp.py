"""ICMP for IPv4 (RFC 792, RFC 1812)."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from sulla_trio.errors import BadPacket
from sulla_trio.wire.inet import Buffer, checksum, partial_sum

HEADER_LENGTH: Final = 8
ECHO_REPLY: Final = 0
UNREACHABLE: Final = 3
ECHO_REQUEST: Final = 8
TIME_EXCEEDED: Final = 11
UNREACHABLE_NET: Final = 0
UNREACHABLE_HOST: Final = 1
UNREACHABLE_PROTOCOL: Final = 2
UNREACHABLE_PORT: Final = 3
UNREACHABLE_FRAG_NEEDED: Final = 4
UNREACHABLE_ADMIN: Final = 13
QUOTED_PAYLOAD: Final = 8
_HEADER: Final = struct.Struct("!BBHI")


class Icmp(NamedTuple):
    """One message. `rest` is the second word: identifier and sequence of an echo, the MTU of frag-needed."""

    type: int
    code: int
    rest: int
    payload_offset: int


def parse(view: Buffer, offset: int, end: int) -> Icmp:
    """Read the message in ``view[offset:end]``; its checksum holds. Raises BadPacket and nothing else."""
    if end - offset < HEADER_LENGTH:
        raise BadPacket("icmp_short")
    if partial_sum(view[offset:end]) != 0xFFFF:
        raise BadPacket("icmp_checksum")
    kind, code, _, rest = _HEADER.unpack_from(view, offset)
    return Icmp(kind, code, rest, offset + HEADER_LENGTH)


def emit(type: int, code: int, rest: int, payload: Buffer) -> bytes:
    """A whole message with its checksum."""
    bare = _HEADER.pack(type, code, 0, rest) + bytes(payload)
    return bare[:2] + checksum(bare).to_bytes(2, "big") + bare[4:]


def emit_error(type: int, code: int, rest: int, quoted: Buffer) -> bytes:
    """An error message quoting the IP header of `quoted` and 8 bytes behind it (RFC 792)."""
    header_length = (quoted[0] & 15) * 4 if len(quoted) else 0
    return emit(type, code, rest, quoted[: header_length + QUOTED_PAYLOAD])


def format(message: Icmp) -> str:
    """One line."""
    identifier, sequence = message.rest >> 16, message.rest & 0xFFFF
    if message.type == ECHO_REQUEST:
        return f"ICMP echo request, id {identifier}, seq {sequence}"
    if message.type == ECHO_REPLY:
        return f"ICMP echo reply, id {identifier}, seq {sequence}"
    return f"ICMP type {message.type} code {message.code}"
