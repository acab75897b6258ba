"""A port's out-queue: one writer task only while it is full, congestion, a broken link."""

from __future__ import annotations

import socket

import trio
import trio.testing

from sulla_trio.link.endpoint import Endpoint
from sulla_trio.link.framed import OUT_QUEUE_HIGH
from sulla_trio.vnet.port import Port


async def test_stalled_peer_congests_and_drains_when_it_reads() -> None:
    inner, outer = socket.socketpair()
    async with trio.open_nursery() as nursery:
        port = Port(0, Endpoint(inner, "guest"), nursery)
        frame = bytes(60_000)
        sent = 0
        while not port.congested:
            assert port.transmit(frame)
            sent += len(frame) + 2
            port.flush()
        assert len(nursery.child_tasks) == 1
        waited = trio.Event()

        async def wait() -> None:
            await port.wait_uncongested()
            waited.set()

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert not waited.is_set()
        outer.setblocking(False)
        got = 0
        with trio.fail_after(10):
            while got < sent:
                await trio.lowlevel.wait_readable(outer)
                got += len(outer.recv(1 << 20))
            await waited.wait()
        assert got == sent > OUT_QUEUE_HIGH
        await trio.testing.wait_all_tasks_blocked()
        assert not nursery.child_tasks
        port.endpoint.close()
    outer.close()


async def test_a_backlog_ends_in_a_call_that_may_queue_more() -> None:
    inner, outer = socket.socketpair()
    outer.setblocking(False)
    rounds = []

    def drained() -> None:
        assert not port.backlogged
        rounds.append(len(nursery.child_tasks))
        if len(rounds) < 5:
            fill()

    def fill() -> None:
        for _ in range(50):
            assert port.transmit(bytes(60_000))
        port.flush()
        assert port.backlogged

    async with trio.open_nursery() as nursery:
        port = Port(0, Endpoint(inner, "guest"), nursery, drained)
        inner.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
        fill()
        got = 0
        with trio.fail_after(10):
            while got < 5 * 50 * 60_002:
                await trio.lowlevel.wait_readable(outer)
                got += len(outer.recv(1 << 20))
        await trio.testing.wait_all_tasks_blocked()
        assert rounds == [1] * 5, "one writer task for all of them"
        assert not nursery.child_tasks
        port.endpoint.close()
    outer.close()


async def test_broken_link_cancels_the_port_with_a_reason() -> None:
    inner, outer = socket.socketpair()
    outer.close()
    async with trio.open_nursery() as nursery:
        port = Port(0, Endpoint(inner, "guest"), nursery)
        port.transmit(bytes(100))
        port.flush()
        assert isinstance(port.failure, BrokenPipeError)
        assert nursery.cancel_scope.cancel_called
        port.endpoint.close()
