"""Any way of cutting a stream gives the same packets or the same loss of step: whole == byte at a time == random chunks."""

from __future__ import annotations

from sulla_trio.errors import BadPacket
from sulla_trio.wire import framing

DICTIONARY = (
    b"\x18\x00\x00\x00",
    b"\x17\x00\x00\x00",
    b"\x17\x00\x01\x00",
    b"\x18\x00\x01\x00",
    b"\x00\x00\x10\x00",
    b"\x01\x00\x10\x00",
)


def feed(pieces: list[bytes]) -> tuple[list[bytes], bytes, int, int, bool]:
    """Packets, the incomplete tail, how many were passed over, bytes of one still to come, whether the step was lost."""
    held, found, skipped, missing = b"", [], 0, 0
    for piece in pieces:
        passed = piece[:missing]
        missing -= len(passed)
        held += piece[len(passed) :]
        packets: list[memoryview] = []
        try:
            start, count = framing.split_extended(memoryview(held), 0, len(held), packets)
        except BadPacket:
            return found + [bytes(packet) for packet in packets], b"", 0, 0, True
        found += [bytes(packet) for packet in packets]
        missing += max(0, start - len(held))
        held, skipped = held[start:], skipped + count
    return found, held, skipped, missing, False


def fuzz_one(data: bytes) -> None:
    """The first byte seeds the cuts, the rest is the stream."""
    stream = data[1:]
    whole = feed([stream])
    assert all(framing.MIN_PACKET <= len(packet) <= framing.MAX_PACKET for packet in whole[0])
    assert whole[3] <= framing.MAX_PASSED_OVER
    assert feed([stream[at : at + 1] for at in range(len(stream))]) == whole
    pieces, at, step = [], 0, data[0] if data else 0
    while at < len(stream):
        step = (step * 37 + 11) & 0xFF
        pieces.append(stream[at : at + 1 + step % 61])
        at += 1 + step % 61
    assert feed(pieces) == whole
    again = b"".join(framing.extended_prefix(len(packet)) + packet for packet in whole[0])
    assert feed([again]) == (whole[0], b"", 0, 0, False)
