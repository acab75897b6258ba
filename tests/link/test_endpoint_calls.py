"""The four calls mean the same over readiness and over threads: one suite for both, over unix and TCP sockets."""

from __future__ import annotations

import os
import random
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import trio
import trio.testing

from sulla_trio.link.endpoint import MAX_BUFFERS, Endpoint
from tests.support.endpoint_io import receive, receive_all, receive_exactly, send
from tests.support.endpoint_pairs import KINDS, SOCKETS, wait_for_no_thread

BULK = random.Random(7).randbytes(3 << 20)
"""More than all buffers between two endpoints hold."""


@dataclass
class Pair:
    endpoint: Endpoint
    other: trio.SocketStream
    family: str

    def reset(self) -> None:
        """The other side goes with something unread, and (TCP) with a RST."""
        if self.family == "tcp":
            self.other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.other.socket.close()


@pytest.fixture(params=SOCKETS)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def pair(family: str, kind: str) -> AsyncIterator[Pair]:
    before = set(os.listdir("/proc/self/fd"))
    left, right = SOCKETS[family]()
    right.setblocking(False)
    pair = Pair(KINDS[kind](left, "left"), trio.SocketStream(trio.socket.from_stdlib_socket(right)), family)
    yield pair
    pair.other.socket.close()
    await pair.endpoint.aclose()
    wait_for_no_thread()
    assert set(os.listdir("/proc/self/fd")) == before


class Waiting:
    """Waits again and again, and fills what a late thread has made room for: only the end or a cancellation ends it."""

    def __init__(self, endpoint: Endpoint, call: str) -> None:
        self._endpoint = endpoint
        self._wait = getattr(endpoint, call)
        self.taken = 0

    async def run(self) -> None:
        while True:
            await self._wait()
            try:
                self.taken += self._endpoint.send_gathered([BULK])
            except BlockingIOError:
                pass

    async def run_until_closed(self, woken: trio.Event) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await self.run()
        woken.set()


async def fill(endpoint: Endpoint) -> int:
    """Send until nothing more is taken, for good."""
    taken = 0
    while True:
        try:
            taken += endpoint.send_gathered([BULK])
        except BlockingIOError:
            with trio.move_on_after(0.05) as scope:
                await endpoint.wait_writable()
            if scope.cancelled_caught:
                return taken


async def test_who_it_is(pair: Pair) -> None:
    assert pair.endpoint.name == "left"
    assert pair.endpoint.peer == ("tcp:127.0.0.1" if pair.family == "tcp" else f"unix:{os.getuid()}")
    assert pair.endpoint.fileno() >= 0


async def test_nothing_there_blocks(pair: Pair) -> None:
    with pytest.raises(BlockingIOError):
        pair.endpoint.recv_into(memoryview(bytearray(9)))


async def test_both_ways(pair: Pair) -> None:
    assert pair.endpoint.send_gathered([b"ab", memoryview(b"cd"), bytearray(b"e")]) == 5
    assert await pair.other.receive_some() == b"abcde"
    await pair.other.send_all(b"answer")
    assert await receive(pair.endpoint, 3) == b"ans"
    assert await receive(pair.endpoint) == b"wer"


async def test_one_call_takes_so_many_buffers(pair: Pair) -> None:
    assert pair.endpoint.send_gathered([b"x"] * (MAX_BUFFERS + 10)) == MAX_BUFFERS


async def test_end_of_stream_comes_after_the_last_byte_and_stays(pair: Pair) -> None:
    await pair.other.send_all(b"last")
    await pair.other.send_eof()
    assert await receive_all(pair.endpoint) == b"last"
    for _ in range(3):
        await pair.endpoint.wait_readable()
        assert pair.endpoint.recv_into(memoryview(bytearray(1))) == 0


async def test_after_the_others_end_can_still_be_sent(pair: Pair) -> None:
    await pair.other.send_eof()
    assert await receive(pair.endpoint) == b""
    await send(pair.endpoint, b"reply")
    assert await pair.other.receive_some() == b"reply"


async def test_a_reset_is_told_to_who_reads(pair: Pair) -> None:
    await send(pair.endpoint, b"never read")
    await trio.lowlevel.wait_readable(pair.other.socket)  # it has arrived
    pair.reset()
    with pytest.raises(ConnectionResetError):
        await receive_all(pair.endpoint)


async def test_a_reset_is_told_to_who_writes(pair: Pair) -> None:
    pair.reset()
    with trio.fail_after(20), pytest.raises((BrokenPipeError, ConnectionResetError)):
        while True:
            await send(pair.endpoint, b"x")
            await trio.sleep(0.001)


async def test_full_blocks_and_room_wakes(pair: Pair, nursery: trio.Nursery) -> None:
    taken = await fill(pair.endpoint)
    with pytest.raises(BlockingIOError):
        while taken < 20 << 20:  # TCP may have room below its mark for writability
            taken += pair.endpoint.send_gathered([b"x"])
    woken = trio.Event()

    async def wait() -> None:
        await pair.endpoint.wait_writable()
        assert pair.endpoint.send_gathered([b"x"]) == 1
        woken.set()

    nursery.start_soon(wait)
    await trio.testing.wait_all_tasks_blocked()
    got = 0
    while got < taken:
        got += len(await pair.other.receive_some(1 << 20))
    await woken.wait()


async def test_both_directions_saturated(pair: Pair, nursery: trio.Nursery) -> None:
    results: list[bytes] = []

    async def other_reads() -> None:
        data = bytearray()
        while len(data) < len(BULK):
            data += await pair.other.receive_some(50_000)
        results.append(bytes(data))

    async def endpoint_reads() -> None:
        results.append(await receive_exactly(pair.endpoint, len(BULK)))

    with trio.fail_after(60):
        async with trio.open_nursery() as both:
            both.start_soon(pair.other.send_all, BULK)
            both.start_soon(send, pair.endpoint, BULK)
            await trio.testing.wait_all_tasks_blocked()  # both are full, nobody has read
            both.start_soon(other_reads)
            both.start_soon(endpoint_reads)
    assert results == [BULK, BULK]


@pytest.mark.parametrize("call", ["wait_readable", "wait_writable"])
async def test_close_wakes_a_waiter(pair: Pair, nursery: trio.Nursery, call: str) -> None:
    if call == "wait_writable":
        await fill(pair.endpoint)
    woken = trio.Event()
    nursery.start_soon(Waiting(pair.endpoint, call).run_until_closed, woken)
    await trio.testing.wait_all_tasks_blocked()
    pair.endpoint.close()
    await woken.wait()


@pytest.mark.parametrize("call", ["wait_readable", "wait_writable"])
async def test_a_cancelled_wait_leaves_the_endpoint_as_it_was(pair: Pair, call: str) -> None:
    taken = await fill(pair.endpoint) if call == "wait_writable" else 0
    waiting = Waiting(pair.endpoint, call)
    with trio.move_on_after(0.01) as scope:
        await waiting.run()
    assert scope.cancelled_caught
    taken += waiting.taken
    got = 0
    while got < taken:
        got += len(await pair.other.receive_some(1 << 20))
    await pair.other.send_all(b"in")
    assert await receive(pair.endpoint) == b"in"
    await send(pair.endpoint, b"out")
    assert await pair.other.receive_some() == b"out"


async def test_one_waiter_for_each_direction(pair: Pair, nursery: trio.Nursery) -> None:
    nursery.start_soon(pair.endpoint.wait_readable)
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(trio.BusyResourceError):
        await pair.endpoint.wait_readable()
    await pair.endpoint.wait_writable()
    nursery.cancel_scope.cancel()


async def test_what_was_taken_arrives_though_the_endpoint_is_closed_at_once(pair: Pair) -> None:
    assert pair.endpoint.send_gathered([b"READY"]) == 5
    pair.endpoint.close()
    assert await pair.other.receive_some() == b"READY"
    assert await pair.other.receive_some() == b""


async def test_after_the_end_every_call_says_so(pair: Pair) -> None:
    await pair.other.send_all(b"unread")
    async with pair.endpoint:
        pass
    pair.endpoint.close()
    assert pair.endpoint.fileno() == -1
    with pytest.raises(OSError, match="Bad file descriptor"):
        pair.endpoint.recv_into(memoryview(bytearray(1)))
    with pytest.raises(OSError, match="Bad file descriptor"):
        pair.endpoint.send_gathered([b"x"])
    for call in (pair.endpoint.wait_readable, pair.endpoint.wait_writable):
        with pytest.raises(trio.ClosedResourceError):
            await call()
