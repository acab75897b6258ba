"""Any way of cutting a stream gives the same frames: whole == byte at a time == random chunks; nothing is raised or lost."""

from __future__ import annotations

from sulla_trio.wire import framing

DICTIONARY = (b"\x0e\x00", b"\x00\x00", b"\x0d\x00", b"\xff\xff", b"\xea\x05")


def feed(pieces: list[bytes]) -> tuple[list[bytes], bytes, int]:
    """Frames, the incomplete tail, how many were skipped."""
    held, found, skipped = b"", [], 0
    for piece in pieces:
        held += piece
        frames: list[memoryview] = []
        start, passed = framing.split(memoryview(held), 0, len(held), frames)
        assert 0 <= start <= len(held)
        found += [bytes(frame) for frame in frames]
        held, skipped = held[start:], skipped + passed
    return found, held, skipped


def fuzz_one(data: bytes) -> None:
    """The first byte seeds the cuts, the rest is the stream."""
    stream = data[1:]
    whole = feed([stream])
    assert all(framing.MIN_FRAME <= len(frame) <= framing.MAX_FRAME for frame in whole[0])
    assert feed([stream[at : at + 1] for at in range(len(stream))]) == whole
    pieces, at, step = [], 0, data[0] if data else 0
    while at < len(stream):
        step = (step * 37 + 11) & 0xFF
        pieces.append(stream[at : at + 1 + step % 61])
        at += 1 + step % 61
    assert feed(pieces) == whole
    again = b"".join(framing.prefix(len(frame)) + frame for frame in whole[0])
    assert feed([again]) == (whole[0], b"", 0)
