"""Links that come over the control descriptor, and what network-setup gets to know of them; the tap is a socket."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import socket
from collections.abc import AsyncIterator

import pytest
import trio

from sulla_trio.daemons import vm_links
from sulla_trio.daemons.vm_links import Links
from sulla_trio.daemons.vm_pump import Pump
from sulla_trio.daemons.vm_trace import Tracer
from sulla_trio.link import control
from sulla_trio.link.control import Message
from sulla_trio.link.endpoint import Endpoint
from tests.support.guest_peer import framed

FRAME = b"\xff" * 6 + bytes.fromhex("5a94efe40cee0806") + bytes(46)


class Lab:
    """Links with a control descriptor, seen from network-setup (`channel`), the host (`link`) and the guest (`tap`)."""

    def __init__(self, controlled: bool) -> None:
        self.tap, self._tap_inner = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel, self._channel_inner = control.socket_pair()
        self.link, inner = socket.socketpair()
        for sock in (self.tap, self._tap_inner, self.link):
            sock.setblocking(False)
        self.ends: list[str] = []
        self.attached = 0
        self.scope = trio.CancelScope()
        pump = Pump(self._tap_inner.fileno(), Tracer(False), strict=True, end=self.end)
        channel = self._channel_inner if controlled else None
        self.links = Links(pump, Endpoint(inner, "test"), channel, attached=self.count, end=self.end)

    def count(self) -> None:
        self.attached += 1

    def end(self, reason: str) -> None:
        self.ends.append(reason)
        self.scope.cancel()

    async def run(self) -> None:
        with self.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.links.carry)
                nursery.start_soon(self.links.listen)

    def replace(self) -> socket.socket:
        """Send another link; the host's end of it."""
        ours, theirs = socket.socketpair()
        control.send_link(self.channel, theirs.fileno())
        theirs.close()
        ours.setblocking(False)
        return ours

    async def message(self) -> Message | None:
        await trio.lowlevel.wait_readable(self.channel)
        return control.receive(self.channel)

    async def passes(self, link: socket.socket) -> None:
        """One frame each way."""
        self.tap.send(FRAME)
        assert await received(link) == framed(FRAME)
        link.send(framed(FRAME + b"back"))
        await trio.lowlevel.wait_readable(self.tap)
        assert self.tap.recv(70_000) == FRAME + b"back"

    def close(self) -> None:
        self.links.close()
        for sock in (self.tap, self._tap_inner, self.channel, self._channel_inner, self.link):
            sock.close()


async def received(link: socket.socket) -> bytes:
    await trio.lowlevel.wait_readable(link)
    return link.recv(100_000)


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


@contextlib.asynccontextmanager
async def running(*, controlled: bool = True) -> AsyncIterator[Lab]:
    before = descriptors()
    lab = Lab(controlled)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lab.run)
            yield lab
            nursery.cancel_scope.cancel()
    lab.close()
    assert descriptors() == before


async def test_a_lost_link_is_told_and_replaced() -> None:
    async with running() as lab:
        await lab.passes(lab.link)
        assert await lab.message() == Message("up", "", None)
        lab.link.send(framed(FRAME)[:5])
        lab.link.shutdown(socket.SHUT_WR)
        assert await lab.message() == Message("lost", "end of stream inside a frame (5 bytes of it)", None)
        lab.tap.send(FRAME + b"while there was no link")
        await trio.testing.wait_all_tasks_blocked()
        second = lab.replace()
        while not lab.attached:
            await trio.testing.wait_all_tasks_blocked()
        await lab.passes(second)
        assert await received(lab.link) == b""  # closed on our side too
        assert lab.attached == 1
        second.close()
        assert await lab.message() == Message("lost", "end of stream", None)
        third = lab.replace()
        while lab.attached < 2:
            await trio.testing.wait_all_tasks_blocked()
        await lab.passes(third)
        third.close()
        assert lab.ends == []


async def test_a_link_that_lives_is_replaced_without_being_lost() -> None:
    async with running() as lab:
        assert await lab.message() == Message("up", "", None)
        await lab.passes(lab.link)
        lab.link.send(framed(FRAME)[:30])
        await trio.testing.wait_all_tasks_blocked()
        second = lab.replace()
        assert await received(lab.link) == b""
        await lab.passes(second)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(BlockingIOError):
            control.receive(lab.channel)
        second.close()


async def test_a_full_link_is_replaced() -> None:
    """Half a batch waits for a link that takes nothing: the next one begins at a frame's beginning."""
    async with running() as lab:
        with contextlib.suppress(BlockingIOError):
            for _ in range(100_000):
                try:
                    lab.tap.send(FRAME * 200)
                except BlockingIOError:
                    await trio.testing.wait_all_tasks_blocked()
                    lab.tap.send(FRAME * 200)
        second = lab.replace()
        data = await received(second)
        assert data[:2] == len(FRAME * 200).to_bytes(2, "little")
        second.close()


async def test_of_two_links_at_once_the_last_is_served() -> None:
    async with running() as lab:
        await lab.passes(lab.link)
        second, third = lab.replace(), lab.replace()
        assert await received(second) == b""
        await lab.passes(third)
        second.close()
        third.close()


async def test_bad_messages_are_one_warning_each_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger=vm_links.__name__)
    async with running() as lab:
        await lab.passes(lab.link)
        datagram, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        file = os.open("/dev/null", os.O_RDWR)
        held = descriptors()
        lab.channel.send(b"link")
        lab.channel.send(b"hello")
        lab.channel.send(b"")
        control.send(lab.channel, "up")
        socket.send_fds(lab.channel, [b"link"], [lab.link.fileno(), lab.link.fileno()])
        socket.send_fds(lab.channel, [b"link"], [datagram.fileno()])
        socket.send_fds(lab.channel, [b"link"], [file])
        await trio.testing.wait_all_tasks_blocked()
        assert len(caplog.records) == 7
        assert descriptors() == held
        await lab.passes(lab.link)
        assert lab.ends == []
        datagram.close()
        other.close()
        os.close(file)


@pytest.mark.parametrize("lost", [False, True])
async def test_the_end_of_the_control_descriptor_is_the_end(lost: bool) -> None:
    async with running() as lab:
        await lab.passes(lab.link)
        if lost:
            lab.link.close()
            await trio.testing.wait_all_tasks_blocked()
        lab.channel.close()
        while not lab.ends:
            await trio.testing.wait_all_tasks_blocked()
        assert lab.ends == ["network-setup has gone: end of file on the control descriptor"]


async def test_without_a_control_descriptor_a_lost_link_is_the_end() -> None:
    async with running(controlled=False) as lab:
        await lab.passes(lab.link)
        lab.link.close()
        while not lab.ends:
            await trio.testing.wait_all_tasks_blocked()
        assert lab.ends == ["link lost: end of stream"]


async def test_network_setup_that_does_not_read_is_not_waited_for() -> None:
    async with running() as lab:
        for _ in range(2000):
            lab.link.close()
            await trio.testing.wait_all_tasks_blocked()
            lab.link = lab.replace()
            await trio.testing.wait_all_tasks_blocked()
        await lab.passes(lab.link)
        assert lab.attached == 2000
