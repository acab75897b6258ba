"""A whole frame decodes to one printable line whatever its bytes; parse raises BadPacket only and emit(parse(x)) is x's header."""

from __future__ import annotations

from sulla_trio.errors import BadPacket
from sulla_trio.wire import ethernet

DICTIONARY = (
    b"\x08\x00\x45",
    b"\x08\x06\x00\x01",
    b"\x86\xdd",
    b"\x00\x44\x00\x43",
    b"\x40\x06",
    b"\x40\x11",
    b"\x40\x01",
)


def fuzz_one(data: bytes) -> None:
    """`data` is the frame."""
    line = ethernet.format(memoryview(data))
    assert line
    assert line.isprintable()
    try:
        header = ethernet.parse(memoryview(data))
    except BadPacket:
        return
    assert ethernet.emit(*header) == data[: ethernet.HEADER_LENGTH]
