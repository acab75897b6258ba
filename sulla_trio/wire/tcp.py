"""TCP segments (RFC 9293 section 3.1; options of RFC 7323 and RFC 2018)."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from sulla_trio.errors import BadPacket
from sulla_trio.wire.inet import IPPROTO_TCP, Buffer, partial_sum

FIN: Final = 1
SYN: Final = 2
RST: Final = 4
PSH: Final = 8
ACK: Final = 16
URG: Final = 32
ECE: Final = 64
CWR: Final = 128
HEADER_LENGTH: Final = 20
MAX_OPTIONS: Final = 40
_HEADER: Final = struct.Struct("!HHIIBBHHH")
_TIMESTAMPS: Final = struct.Struct("!III")
_NOP_NOP_TIMESTAMPS: Final = 0x0101080A
_make: Final = tuple.__new__  # half the time of the constructor


# MSS, window scale, SACK-permitted, SACK blocks, TSval, TSecr
_Options = tuple[int | None, int | None, bool, tuple[tuple[int, int], ...], int | None, int]
_NO_OPTIONS: Final[_Options] = (None, None, False, (), None, 0)


class Segment(NamedTuple):
    """One segment; its data is ``view[payload_offset:payload_end]``. An option that is absent is None or empty."""

    source_port: int
    destination_port: int
    seq: int
    ack: int
    flags: int
    window: int
    urgent: int
    payload_offset: int
    payload_end: int
    mss: int | None = None
    window_scale: int | None = None
    sack_permitted: bool = False
    sack_blocks: tuple[tuple[int, int], ...] = ()
    ts_value: int | None = None
    ts_echo: int = 0


def parse(
    view: Buffer, offset: int, end: int, source_ip: bytes, destination_ip: bytes, *, verify: bool = True
) -> Segment:
    """Read the segment in ``view[offset:end]``; with `verify` its checksum holds. Raises BadPacket and nothing else."""
    length = end - offset
    if length < HEADER_LENGTH:
        raise BadPacket("tcp_short")
    source, destination, seq, ack, data_offset, flags, window, _, urgent = _HEADER.unpack_from(view, offset)
    header_length = (data_offset >> 4) * 4
    if header_length < HEADER_LENGTH or header_length > length:
        raise BadPacket("tcp_offset")
    if verify:
        # inet.pseudo_sum, in line. The sum is not 0, so 0 modulo 65535 is all ones.
        pseudo = int.from_bytes(source_ip + destination_ip, "big") + IPPROTO_TCP + length
        if (partial_sum(view[offset:end]) + pseudo) % 65_535:
            raise BadPacket("tcp_checksum")
    body = offset + header_length
    if header_length == 32:
        kind, value, echo = _TIMESTAMPS.unpack_from(view, offset + HEADER_LENGTH)
        if kind == _NOP_NOP_TIMESTAMPS:
            options: _Options = (None, None, False, (), value, echo)
        else:
            options = _parse_options(bytes(view[offset + HEADER_LENGTH : body]))
    elif header_length == HEADER_LENGTH:
        options = _NO_OPTIONS
    else:
        options = _parse_options(bytes(view[offset + HEADER_LENGTH : body]))
    return _make(Segment, (source, destination, seq, ack, flags, window, urgent, body, end, *options))


def _parse_options(data: bytes) -> _Options:
    """The options known here; others are passed over. A length that lies ends the list (RFC 9293 section 3.1)."""
    mss = window_scale = ts_value = None
    sack_permitted, ts_echo = False, 0
    blocks: list[tuple[int, int]] = []
    at = 0
    while at < len(data):
        kind = data[at]
        if kind == 0:
            break
        if kind == 1:
            at += 1
            continue
        size = data[at + 1] if at + 1 < len(data) else 0
        if size < 2 or at + size > len(data):
            break
        match kind, size:
            case 2, 4:
                mss = int.from_bytes(data[at + 2 : at + 4], "big")
            case 3, 3:
                window_scale = data[at + 2]
            case 4, 2:
                sack_permitted = True
            case 5, _ if (size - 2) % 8 == 0:
                words = struct.unpack_from(f"!{(size - 2) // 4}I", data, at + 2)
                blocks.extend(zip(words[::2], words[1::2], strict=True))
            case 8, 10:
                ts_value, ts_echo = struct.unpack_from("!II", data, at + 2)
        at += size
    return mss, window_scale, sack_permitted, tuple(blocks), ts_value, ts_echo


def emit(
    source_ip: bytes,
    source_port: int,
    destination_ip: bytes,
    destination_port: int,
    seq: int,
    ack: int,
    flags: int,
    window: int,
    payload: Buffer = b"",
    *,
    options: bytes = b"",
    urgent: int = 0,
) -> bytes:
    """The header with `options` (a multiple of 4 bytes) and the checksum over it and `payload`, which is not included."""
    header_length = HEADER_LENGTH + len(options)
    offset = header_length << 2  # words in the high four bits
    # 2**16 is 1 modulo 65535, so the fields may be added whole instead of word by word.
    total = source_port + destination_port + seq + ack + (offset << 8) + flags + window + urgent
    total += int.from_bytes(source_ip + destination_ip, "big") + IPPROTO_TCP + header_length + len(payload)
    if payload:
        total += partial_sum(payload)
    if options:
        total += int.from_bytes(options, "big")
        field = -total % 65_535
        return _HEADER.pack(source_port, destination_port, seq, ack, offset, flags, window, field, urgent) + options
    return _HEADER.pack(source_port, destination_port, seq, ack, offset, flags, window, -total % 65_535, urgent)


def emit_options(
    *,
    mss: int | None = None,
    window_scale: int | None = None,
    sack_permitted: bool = False,
    timestamps: tuple[int, int] | None = None,
    sack_blocks: tuple[tuple[int, int], ...] = (),
) -> bytes:
    """The options, padded to words with NOP; SACK blocks that do not fit in 40 bytes are left out."""
    out = b""
    if mss is not None:
        out += struct.pack("!BBH", 2, 4, mss)
    if window_scale is not None:
        out += bytes((1, 3, 3, window_scale))
    if sack_permitted:
        out += bytes((1, 1, 4, 2))
    if timestamps is not None:
        out += _TIMESTAMPS.pack(_NOP_NOP_TIMESTAMPS, *timestamps)
    blocks = sack_blocks[: (MAX_OPTIONS - len(out) - 4) // 8]
    if blocks:
        out += bytes((1, 1, 5, 2 + 8 * len(blocks))) + b"".join(struct.pack("!II", *block) for block in blocks)
    return out


def format(segment: Segment) -> str:
    """One line, as tcpdump has it."""
    names = "".join(
        letter
        for bit, letter in ((SYN, "S"), (FIN, "F"), (RST, "R"), (PSH, "P"), (ACK, "."), (URG, "U"))
        if segment.flags & bit
    )
    length = segment.payload_end - segment.payload_offset
    text = f"TCP {segment.source_port} > {segment.destination_port}: Flags [{names}], seq {segment.seq}"
    if segment.flags & ACK:
        text += f", ack {segment.ack}"
    text += f", win {segment.window}"
    if segment.mss is not None:
        text += f", mss {segment.mss}"
    if segment.window_scale is not None:
        text += f", wscale {segment.window_scale}"
    if segment.sack_blocks:
        text += f", sack {segment.sack_blocks}"
    return f"{text}, length {length}"
