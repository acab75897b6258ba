"""The two framings: any way of cutting the stream gives the same frames."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sulla_trio.errors import BadPacket
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


@settings(deadline=None)
@given(st.lists(st.binary(min_size=14, max_size=80), max_size=8), st.data())
def test_round_trip_in_any_chunks(frames: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(framing.prefix(len(frame)) + frame for frame in frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert feed(pieces) == (frames, b"", 0)


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_whole_is_byte_at_a_time(stream: bytes) -> None:
    assert feed([stream]) == feed([stream[at : at + 1] for at in range(len(stream))])


@pytest.mark.parametrize(
    ("stream", "frame", "rest"),
    [
        (b"", None, b""),
        (b"\x0e", None, b"\x0e"),
        (b"\x0e\x00" + FRAME[:-1], None, b"\x0e\x00" + FRAME[:-1]),
        (b"\x0e\x00" + FRAME, FRAME, b""),
        (b"\x0e\x00" + FRAME + b"\xff\xff\xff", FRAME, b"\xff\xff\xff"),  # what follows is of another framing
        (b"\x00\x00\x01\x00z\x0e\x00" + FRAME + b"x", FRAME, b"x"),
        (b"\x00\x00\x01\x00z", None, b""),
    ],
)
def test_first_frame(stream: bytes, frame: bytes | None, rest: bytes) -> None:
    view, start = framing.first_frame(memoryview(stream), 0, len(stream))
    assert (None if view is None else bytes(view)) == frame
    assert stream[start:] == rest


PACKET = bytes(range(24))


def feed_extended(pieces: list[bytes]) -> tuple[list[bytes], bytes, int]:
    """As `feed`; bytes that are to be passed over may not have come yet."""
    held, found, skipped, missing = b"", [], 0, 0
    for piece in pieces:
        passed, missing = piece[:missing], missing - len(piece[:missing])
        held += piece[len(passed) :]
        packets: list[memoryview] = []
        start, count = framing.split_extended(memoryview(held), 0, len(held), packets)
        found += [bytes(packet) for packet in packets]
        missing += max(0, start - len(held))
        held, skipped = held[start:], skipped + count
    return found, held, skipped


def extended(packet: bytes) -> bytes:
    return framing.extended_prefix(len(packet)) + packet


@pytest.mark.parametrize(
    ("stream", "packets", "rest", "skipped"),
    [
        (b"", [], b"", 0),
        (b"\x18\x00\x00", [], b"\x18\x00\x00", 0),
        (extended(PACKET)[:-1], [], extended(PACKET)[:-1], 0),
        (extended(PACKET) * 2 + b"\x18", [PACKET] * 2, b"\x18", 0),
        (bytes(4) + extended(PACKET), [PACKET], b"", 1),
        (extended(PACKET[:-1]) + extended(PACKET), [PACKET], b"", 1),
        (extended(PACKET[:-1])[:-1], [], extended(PACKET[:-1])[:-1], 0),
        (b"\x17\x00\x01\x00" + bytes(65_559), [bytes(65_559)], b"", 0),  # the largest
        (b"\x18\x00\x01\x00" + bytes(65_560) + extended(PACKET), [PACKET], b"", 1),
        (b"\x18\x00\x01\x00" + bytes(9), [], b"", 1),
    ],
)
def test_split_extended(stream: bytes, packets: list[bytes], rest: bytes, skipped: int) -> None:
    assert feed_extended([stream]) == (packets, rest, skipped)


def test_how_much_of_a_long_packet_is_still_to_come() -> None:
    packets: list[memoryview] = []
    stream = (framing.MAX_PASSED_OVER).to_bytes(4, "little") + bytes(100)
    assert framing.split_extended(memoryview(stream), 0, 104, packets) == (4 + framing.MAX_PASSED_OVER, 1)
    assert packets == []


def test_a_stream_that_has_lost_step() -> None:
    """What came before is not lost, and neither a legacy frame nor text looks like a packet."""
    packets: list[memoryview] = []
    legacy = framing.prefix(14) + bytes.fromhex("5a94efe40cdd") + bytes(8)
    for lost in ((framing.MAX_PASSED_OVER + 1).to_bytes(4, "little"), b"\xff\xff\xff\xff", legacy, b"HTTP/1.1"):
        with pytest.raises(BadPacket, match=r"^framing_length$"):
            framing.split_extended(memoryview(extended(PACKET) + lost), 0, 28 + len(lost), packets)
    assert [bytes(packet) for packet in packets] == [PACKET] * 4


@settings(deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=80), st.integers(65_560, 66_000).map(bytes)), max_size=6), st.data())
def test_extended_round_trip_in_any_chunks(packets: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(extended(packet) for packet in packets)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    good = [packet for packet in packets if 24 <= len(packet) <= framing.MAX_PACKET]
    assert feed_extended(pieces) == (good, b"", len(packets) - len(good))
