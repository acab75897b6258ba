"""Only BadPacket escapes, the payload stays inside the buffer, and emit(parse(x)) is stable on the second round."""

from __future__ import annotations

from sulla_trio.errors import BadPacket
from sulla_trio.wire import inet, tcp

DICTIONARY = (
    b"\x02\x04\x05\xb4",
    b"\x01\x03\x03\x07",
    b"\x04\x02",
    b"\x01\x01\x08\x0a",
    b"\x05\x0a",
    b"\x05\x22",
    b"\x50",
    b"\x80",
    b"\xf0",
)


def repaired(data: bytes, source: bytes, destination: bytes) -> bytes:
    """`data` with a right checksum, so that mutation gets past it."""
    bare = data[:16] + b"\0\0" + data[18:]
    field = inet.checksum(bare, inet.pseudo_sum(source, destination, inet.IPPROTO_TCP, len(data)))
    return data[:16] + field.to_bytes(2, "big") + data[18:]


def emit_again(value: tcp.Segment, source: bytes, destination: bytes, payload: bytes) -> bytes:
    """The whole segment from its own values."""
    options = tcp.emit_options(
        mss=value.mss,
        window_scale=value.window_scale,
        sack_permitted=value.sack_permitted,
        timestamps=None if value.ts_value is None else (value.ts_value, value.ts_echo),
        sack_blocks=value.sack_blocks,
    )
    assert len(options) <= tcp.MAX_OPTIONS
    fields = (value.seq, value.ack, value.flags, value.window, payload)
    header = tcp.emit(
        source, value.source_port, destination, value.destination_port, *fields, options=options, urgent=value.urgent
    )
    return header + payload


def fuzz_one(data: bytes) -> None:
    """4 bytes source address, 4 destination, then the segment: tried as it is and with its checksum put right."""
    source, destination, raw = data[:4].ljust(4, b"\0"), data[4:8].ljust(4, b"\0"), data[8:]
    for segment in (raw, repaired(raw, source, destination) if len(raw) >= 20 else raw):
        try:
            value = tcp.parse(memoryview(segment), 0, len(segment), source, destination)
        except BadPacket:
            continue
        assert 20 <= value.payload_offset <= value.payload_end == len(segment)
        assert value == tcp.parse(segment, 0, len(segment), source, destination, verify=False)
        assert tcp.format(value).isprintable()
        first = emit_again(value, source, destination, segment[value.payload_offset :])
        again = tcp.parse(first, 0, len(first), source, destination)
        assert again[:7] == value[:7]
        assert emit_again(again, source, destination, first[again.payload_offset :]) == first
