"""Only BadPacket escapes, lengths stay inside the buffer, and emit(parse(x)) is stable on the second round."""

from __future__ import annotations

from sulla_trio.errors import BadPacket
from sulla_trio.wire import inet, ipv4

DICTIONARY = (b"\x45\x00", b"\x4f\x00", b"\x40\x00", b"\x20\x00", b"\x94\x04\x00\x00")


def repaired(data: bytes) -> bytes:
    """`data` with a right header checksum, so that mutation gets past it."""
    size = (data[0] & 15) * 4 if data else 0
    if len(data) < 20 or size < 20:
        return data
    bare = data[:10] + b"\0\0" + data[12:size]
    return data[:10] + inet.checksum(bare).to_bytes(2, "big") + data[12:]


def emit_again(value: ipv4.Ipv4) -> bytes:
    """The header from its own values; options fall away."""
    return ipv4.emit(
        value.source,
        value.destination,
        value.protocol,
        value.total_length - value.header_length,
        identification=value.identification,
        ttl=value.ttl,
        tos=value.tos,
        flags_fragment=value.flags_fragment,
    )


def fuzz_one(data: bytes) -> None:
    """`data` is a packet, tried as it is and with its checksum put right."""
    for packet in (data, repaired(data)):
        try:
            value = ipv4.parse(memoryview(packet))
        except BadPacket:
            continue
        assert 20 <= value.header_length <= value.total_length <= len(packet)
        assert ipv4.format(value).isprintable()
        first = emit_again(value)
        second = ipv4.parse(first + bytes(value.total_length - value.header_length))
        assert emit_again(second) == first
        assert second == value._replace(header_length=20, total_length=second.total_length)
