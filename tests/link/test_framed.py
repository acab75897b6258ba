"""Frames over a socketpair: batches, cuts at every byte, bounds, poison."""

import socket

import pytest

from sulla_trio.link import framed
from sulla_trio.link.endpoint import Endpoint
from sulla_trio.link.framed import POISON, FrameReader, FrameWriter

FRAME = bytes(range(64))


@pytest.fixture
def pair():
    left, right = socket.socketpair()
    yield Endpoint(left, "left"), Endpoint(right, "right")
    left.close()
    right.close()


def wire(*frames: bytes) -> bytes:
    return b"".join(len(frame).to_bytes(2, "little") + frame for frame in frames)


def read_all(reader: FrameReader, endpoint: Endpoint) -> list[bytes]:
    got: list[bytes] = []
    while True:
        try:
            frames = reader.read(endpoint)
        except BlockingIOError:
            return got
        assert frames is not None
        got += [bytes(frame) for frame in frames]


def test_one_read_returns_many_frames(pair) -> None:
    left, right = pair
    left.send_gathered([wire(FRAME, FRAME[:20], FRAME[:14])])
    frames = FrameReader().read(right)
    assert [bytes(f) for f in frames] == [FRAME, FRAME[:20], FRAME[:14]]


def test_cut_at_every_byte_gives_the_same_frames(pair) -> None:
    left, right = pair
    data = wire(FRAME, b"\x01" * 3, FRAME[:30])
    for cut in range(1, len(data)):
        reader = FrameReader(poison=True)
        got: list[bytes] = []
        for part in (data[:cut], data[cut:]):
            left.send_gathered([part])
            got += read_all(reader, right)
        assert got == [FRAME, FRAME[:30]]
        assert reader.skipped == 1
        assert reader.partial == 0


def test_end_of_stream_in_a_frame_is_told_by_partial(pair) -> None:
    left, right = pair
    left.send_gathered([wire(FRAME)[:-5]])
    reader = FrameReader()
    assert reader.read(right) == []
    left._socket.close()
    assert reader.read(right) is None
    assert reader.partial == len(FRAME) + 2 - 5


def test_poison_overwrites_a_view_that_is_kept(pair) -> None:
    left, right = pair
    reader = FrameReader(poison=True)
    left.send_gathered([wire(FRAME)])
    frames = reader.read(right)
    kept = frames[0]
    left.send_gathered([wire(FRAME[:20])])
    reader.read(right)
    assert bytes(kept[30:]) == bytes([POISON]) * (len(FRAME) - 30)


def test_buffer_wraps_without_losing_a_byte(pair) -> None:
    left, right = pair
    reader, writer = FrameReader(size=70_000, poison=True), FrameWriter(left)
    sent = [bytes([n % 256]) * (14 + 977 * n % 60_000) for n in range(300)]
    got: list[bytes] = []
    for frame in sent:
        writer.queue(frame)
        while not writer.flush():
            got += read_all(reader, right)
        got += read_all(reader, right)
    assert got == sent


def test_writer_keeps_frames_whole_over_a_socket_that_takes_little(pair) -> None:
    left, right = pair
    left._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    writer, reader = FrameWriter(left), FrameReader()
    sent = [bytes([n]) * 1400 for n in range(200)]
    for frame in sent:
        assert writer.queue(frame[:54], memoryview(frame)[54:])
    got: list[bytes] = []
    while not writer.flush():
        got += read_all(reader, right)
    got += read_all(reader, right)
    assert got == sent
    assert writer.queued == 0


def test_full_queue_drops_whole_frames_and_counts(pair) -> None:
    left, _ = pair
    writer = FrameWriter(left)
    frame = bytes(60_000)
    accepted = 0
    while writer.queue(frame):
        accepted += 1
    assert accepted == framed.OUT_QUEUE_LIMIT // 60_002
    assert writer.dropped == 1
    assert writer.queued <= framed.OUT_QUEUE_LIMIT


async def test_drain_waits_for_the_reader(pair, nursery) -> None:
    left, right = pair
    writer, reader = FrameWriter(left), FrameReader()
    sent = [bytes([n]) * 60_000 for n in range(60)]
    for frame in sent:
        writer.queue(frame)
    nursery.start_soon(writer.drain)
    got: list[bytes] = []
    while len(got) < len(sent):
        await right.wait_readable()
        got += read_all(reader, right)
    assert got == sent
