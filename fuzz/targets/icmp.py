"""Only BadPacket escapes, emit(parse(x)) is stable on the second round, and an error quotes at most a header and 8 bytes."""

from __future__ import annotations

from sulla_trio.errors import BadPacket
from sulla_trio.wire import icmp, inet

DICTIONARY = (b"\x08\x00", b"\x03\x03", b"\x03\x04", b"\x0b\x00", b"\x45\x00")


def repaired(data: bytes) -> bytes:
    """`data` with a right checksum, so that mutation gets past it."""
    return data[:2] + inet.checksum(data[:2] + b"\0\0" + data[4:]).to_bytes(2, "big") + data[4:]


def fuzz_one(data: bytes) -> None:
    """`data` is a message, tried as it is and with its checksum put right; then it is quoted."""
    for message in (data, repaired(data)):
        try:
            value = icmp.parse(memoryview(message), 0, len(message))
        except BadPacket:
            continue
        assert icmp.format(value).isprintable()
        first = icmp.emit(value.type, value.code, value.rest, message[value.payload_offset :])
        again = icmp.parse(first, 0, len(first))
        assert again == value
        assert icmp.emit(again.type, again.code, again.rest, first[again.payload_offset :]) == first
    error = icmp.emit_error(icmp.TIME_EXCEEDED, 0, 0, memoryview(data))
    assert len(error) <= 8 + 60 + 8
    assert icmp.parse(error, 0, len(error)).type == icmp.TIME_EXCEEDED
