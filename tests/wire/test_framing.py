"""The legacy framing: any way of cutting the stream gives the same frames."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sulla_trio.wire import framing

FRAME = bytes(range(14))


def feed(pieces: list[bytes]) -> tuple[list[bytes], bytes, int]:
    """Frames, what is left over and the count of skipped ones, from a reader that keeps the incomplete tail."""
    held, found, skipped = b"", [], 0
    for piece in pieces:
        held += piece
        frames: list[memoryview] = []
        start, passed = framing.split(memoryview(held), 0, len(held), frames)
        found += [bytes(frame) for frame in frames]
        held, skipped = held[start:], skipped + passed
    return found, held, skipped


@pytest.mark.parametrize(
    ("stream", "frames", "rest", "skipped"),
    [
        (b"", [], b"", 0),
        (b"\x0e", [], b"\x0e", 0),
        (b"\x0e\x00", [], b"\x0e\x00", 0),
        (b"\x0e\x00" + FRAME[:-1], [], b"\x0e\x00" + FRAME[:-1], 0),
        (b"\x0e\x00" + FRAME, [FRAME], b"", 0),
        (b"\x0e\x00" + FRAME + b"\x0e", [FRAME], b"\x0e", 0),
        ((b"\x0e\x00" + FRAME) * 3, [FRAME] * 3, b"", 0),
        (b"\x00\x00" + b"\x0e\x00" + FRAME, [FRAME], b"", 1),
        (b"\x0d\x00" + bytes(13) + b"\x0e\x00" + FRAME, [FRAME], b"", 1),
        (b"\x00\x01" + bytes(256), [bytes(256)], b"", 0),  # little-endian
        (b"\xff\xff" + bytes(65_535), [bytes(65_535)], b"", 0),
        (b"\xff\xff" + bytes(65_534), [], b"\xff\xff" + bytes(65_534), 0),
    ],
)
def test_split(stream: bytes, frames: list[bytes], rest: bytes, skipped: int) -> None:
    assert feed([stream]) == (frames, rest, skipped)


def test_split_stays_within_its_bounds() -> None:
    buffer = bytearray(b"\xaa" * 5 + b"\x0e\x00" + FRAME + b"\x0e\x00" + FRAME)
    frames: list[memoryview] = []
    assert framing.split(memoryview(buffer), 5, len(buffer) - 1, frames) == (5 + 16, 0)
    assert [bytes(frame) for frame in frames] == [FRAME]
    assert frames[0].obj is buffer  # a view, not a copy


@pytest.mark.parametrize(("length", "expected"), [(1, b"\1\0"), (14, b"\x0e\0"), (256, b"\0\1"), (65_535, b"\xff\xff")])
def test_prefix(length: int, expected: bytes) -> None:
    assert framing.prefix(length) == expected


def test_prefix_refuses_what_does_not_fit() -> None:
    with pytest.raises(OverflowError):
        framing.prefix(framing.MAX_FRAME + 1)


@given(st.lists(st.binary(min_size=14, max_size=80), max_size=8), st.data())
def test_round_trip_in_any_chunks(frames: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(framing.prefix(len(frame)) + frame for frame in frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert feed(pieces) == (frames, b"", 0)


@given(st.binary(max_size=400))
def test_whole_is_byte_at_a_time(stream: bytes) -> None:
    assert feed([stream]) == feed([stream[at : at + 1] for at in range(len(stream))])
