"""Only BadPacket escapes, emit(parse(x)) is the first 28 bytes of x, and format is printable."""

from __future__ import annotations

from sulla_trio.errors import BadPacket
from sulla_trio.wire import arp

DICTIONARY = (b"\x00\x01\x08\x00\x06\x04\x00\x01", b"\x00\x01\x08\x00\x06\x04\x00\x02")


def fuzz_one(data: bytes) -> None:
    """`data` is the payload of a frame."""
    try:
        value = arp.parse(memoryview(data))
    except BadPacket:
        return
    assert arp.emit(value) == data[:28]
    assert arp.format(value).isprintable()
