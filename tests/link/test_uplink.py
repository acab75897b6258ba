"""The uplink: what the tap gives is what the link gets, framed; nothing is read while something is queued."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
import trio

from sulla_trio.link.endpoint import Endpoint
from sulla_trio.link.uplink import BATCH_BYTES, BATCH_FRAMES, Uplink


class Ends:
    """An uplink between two socket pairs; a seqpacket socket is as good as a tap: one read, one frame."""

    def __init__(self) -> None:
        self.tap, tap_inner = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.link, link_inner = socket.socketpair()
        tap_inner.setblocking(False)
        self.sockets = [self.tap, tap_inner, self.link, link_inner]
        self.uplink = Uplink(tap_inner.fileno(), Endpoint(link_inner, "test"))

    def fill_link(self) -> None:
        """Small buffers, so that the link takes only some of a batch."""
        for sock in self.sockets[2:]:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)


@pytest.fixture
def ends() -> Iterator[Ends]:
    found = Ends()
    yield found
    for sock in found.sockets:
        sock.close()


def framed(frames: list[bytes]) -> bytes:
    return b"".join(len(frame).to_bytes(2, "little") + frame for frame in frames)


def test_a_batch_is_framed_in_order(ends: Ends) -> None:
    frames = [bytes([n]) * (14 + 40 * n) for n in range(10)]
    for frame in frames:
        ends.tap.send(frame)
    taken: list[memoryview] = []
    assert ends.uplink.read_tap(taken) == 10
    assert [bytes(view) for view in taken] == frames
    assert ends.uplink.flush()
    assert ends.link.recv(1 << 20) == framed(frames)
    assert (ends.uplink.frames_sent, ends.uplink.bytes_sent) == (10, sum(map(len, frames)))


def test_an_empty_tap_is_no_error(ends: Ends) -> None:
    assert ends.uplink.read_tap() == 0
    assert ends.uplink.flush()


def test_a_batch_is_bounded_in_frames(ends: Ends) -> None:
    ends.tap.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    for _ in range(BATCH_FRAMES + 5):
        ends.tap.send(bytes(14))
    assert ends.uplink.read_tap() == BATCH_FRAMES
    ends.uplink.flush()
    assert ends.uplink.read_tap() == 5


@pytest.mark.parametrize("length", [14, 1514, 65_534, 65_535])
def test_every_length_fits(ends: Ends, length: int) -> None:
    ends.tap.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
    frame = bytes(range(256)) * 256
    ends.tap.send(frame[:length])
    assert ends.uplink.read_tap() == 1
    assert ends.uplink.flush()
    received = ends.link.recv(1 << 20)
    assert received == framed([frame[:length]])


async def test_what_the_link_does_not_take_stays_whole(ends: Ends) -> None:
    ends.fill_link()
    frames = [bytes([n]) * 1514 for n in range(30)]
    for frame in frames:
        ends.tap.send(frame)
    ends.uplink.read_tap()
    assert not ends.uplink.flush()
    assert 0 < ends.uplink.queued < len(framed(frames))
    assert ends.uplink.append(b"own frame of ours")
    received = bytearray()
    expected = framed([*frames, b"own frame of ours"])
    ends.link.setblocking(False)

    async def read() -> None:
        while len(received) < len(expected):
            await trio.lowlevel.wait_readable(ends.link)
            received.extend(ends.link.recv(1000))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        # Two at once: the pump, and a frame of our own.
        nursery.start_soon(ends.uplink.drain)
        nursery.start_soon(ends.uplink.drain)
    assert received == expected
    assert ends.uplink.queued == 0


def test_own_frames_are_bounded(ends: Ends) -> None:
    accepted = 0
    while ends.uplink.append(bytes(65_000)):
        accepted += 1
        assert accepted < 2 * BATCH_BYTES / 65_000
    assert accepted


def test_another_link_begins_with_a_whole_frame(ends: Ends) -> None:
    ends.fill_link()
    for _ in range(30):
        ends.tap.send(bytes(1514))
    ends.uplink.read_tap()
    assert not ends.uplink.flush()
    left, right = socket.socketpair()
    ends.sockets += [left, right]
    ends.uplink.attach(Endpoint(left, "another"))
    assert ends.uplink.queued == 0
    ends.tap.send(b"the first frame")
    ends.uplink.read_tap()
    assert ends.uplink.flush()
    assert right.recv(1 << 20) == framed([b"the first frame"])


async def test_without_a_link_frames_are_dropped(ends: Ends) -> None:
    ends.uplink.attach(None)
    ends.tap.send(bytes(60))
    assert ends.uplink.read_tap() == 1
    assert not ends.uplink.append(b"own frame of ours")
    await ends.uplink.drain()
    assert ends.uplink.queued == 0


def test_a_broken_link_is_an_error(ends: Ends) -> None:
    ends.link.close()
    ends.tap.send(bytes(60))
    ends.uplink.read_tap()
    with pytest.raises(OSError):
        ends.uplink.flush()
