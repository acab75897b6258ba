"""The pump between two sockets: a seqpacket socket is as good as a tap, one read or write is one frame."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import AsyncIterator

import pytest
import trio

from sulla_trio.daemons import vm_trace
from sulla_trio.daemons.vm_pump import Pump
from sulla_trio.daemons.vm_trace import Tracer
from sulla_trio.errors import LocalError
from sulla_trio.link.endpoint import Endpoint
from tests.support.guest_peer import framed

MAC = bytes.fromhex("5a94efe40cee")
FRAME = b"\xff" * 6 + MAC + b"\x08\x06" + bytes(46)


class Lab:
    def __init__(self, *, trace: bool = False) -> None:
        self.tap, self._tap_inner = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for sock in (self.tap, self._tap_inner):
            sock.setblocking(False)
        self.tracer = Tracer(trace, lambda: None)
        self.ends: list[str] = []
        self.pump = Pump(self._tap_inner.fileno(), self.tracer, strict=True, end=self.ends.append)
        self.attach()

    def attach(self) -> None:
        self.link, inner = socket.socketpair()
        self.link.setblocking(False)
        self.endpoint = Endpoint(inner, "test")
        self.pump.attach(self.endpoint)

    def detach(self) -> None:
        self.endpoint.close()
        self.link.close()

    def close(self) -> None:
        self.detach()
        self.tap.close()
        self._tap_inner.close()

    async def from_tap(self) -> bytes:
        """The next frame that the guest's kernel would get."""
        await trio.lowlevel.wait_readable(self.tap)
        return self.tap.recv(70_000)

    async def from_link(self, count: int) -> bytes:
        received = b""
        while len(received) < count:
            await trio.lowlevel.wait_readable(self.link)
            data = self.link.recv(count - len(received))
            assert data, "the link has ended"
            received += data
        return received

    async def fill(self) -> int:
        """Frames of the guest's until link and tap are full; how many."""
        sent = 0
        while True:
            try:
                self.tap.send(FRAME * 200)
            except BlockingIOError:
                await trio.testing.wait_all_tasks_blocked()
                try:
                    self.tap.send(FRAME * 200)
                except BlockingIOError:
                    return sent
            sent += 1
            assert sent < 100_000


@contextlib.asynccontextmanager
async def carrying(*, trace: bool = False) -> AsyncIterator[Lab]:
    lab = Lab(trace=trace)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lab.pump.carry)
            yield lab
            nursery.cancel_scope.cancel()
    lab.close()


async def test_frames_pass_both_ways() -> None:
    async with carrying() as lab:
        frames = [FRAME + bytes([n]) * (n * 100) for n in range(12)]
        for frame in frames:
            lab.tap.send(frame)
        expected = b"".join(map(framed, frames))
        assert await lab.from_link(len(expected)) == expected
        lab.link.sendall(expected)
        assert [await lab.from_tap() for _ in frames] == frames
        assert (lab.pump.bytes_sent, lab.pump.bytes_received) == (sum(map(len, frames)),) * 2


async def test_a_stream_cut_anywhere_is_the_same_frames() -> None:
    async with carrying() as lab:
        data = framed(FRAME) + framed(FRAME + b"x")
        for at in range(len(data)):
            lab.link.sendall(data[at : at + 1])
            await trio.testing.wait_all_tasks_blocked()
        assert (await lab.from_tap(), await lab.from_tap()) == (FRAME, FRAME + b"x")


async def test_short_frames_are_passed_over() -> None:
    async with carrying() as lab:
        lab.link.sendall(framed(b"") + framed(bytes(13)) + framed(FRAME))
        assert await lab.from_tap() == FRAME


async def test_neither_direction_waits_for_the_other() -> None:
    """The link takes nothing: frames for the guest still arrive."""
    async with carrying() as lab:
        sent = await lab.fill()
        for _ in range(20):
            lab.link.sendall(framed(FRAME))
            assert await lab.from_tap() == FRAME
        expected = framed(FRAME * 200)
        for _ in range(sent):
            assert await lab.from_link(len(expected)) == expected


async def test_our_own_frames_go_behind_what_waits() -> None:
    async with carrying() as lab:
        sent = await lab.fill()
        lab.pump.send(b"own frame of ours")
        expected = framed(FRAME * 200) * sent
        received = await lab.from_link(len(expected) + len(framed(b"own frame of ours")))
        assert received.replace(framed(b"own frame of ours"), b"") == expected


async def test_our_own_frame_may_come_before_the_pump_runs() -> None:
    lab = Lab()
    lab.pump.send(b"own frame of ours")
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lab.pump.carry)
            expected = framed(b"own frame of ours")
            assert await lab.from_link(len(expected)) == expected
            nursery.cancel_scope.cancel()
    lab.close()


@pytest.mark.parametrize("cut", [b"", b"\x3c", framed(FRAME)[:-1]])
async def test_a_link_that_ends(cut: bytes) -> None:
    lab = Lab()
    lab.link.send(cut)
    lab.link.shutdown(socket.SHUT_WR)
    with trio.fail_after(30):
        reason = await lab.pump.carry()
    inside = f" inside a frame ({len(cut)} bytes of it)" if cut else ""
    assert (reason, lab.ends) == (f"end of stream{inside}", [])
    lab.close()


async def test_a_link_that_is_reset() -> None:
    lab = Lab()
    lab.link.send(framed(FRAME))
    lab.tap.send(FRAME)
    lab.link.close()
    with trio.fail_after(30):
        assert await lab.pump.carry() in (
            "end of stream",
            "writing packet to the socket failed: broken pipe",
            "reading from the socket failed: connection reset by peer",
        )
    assert await lab.from_tap() == FRAME
    lab.close()


async def test_nothing_of_a_link_is_left_for_the_next() -> None:
    """Half a frame in, half a batch out, and a frame of our own: the next link begins at a frame's beginning."""
    lab = Lab()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lab.pump.carry)
            await lab.fill()
            lab.pump.send(b"own frame of ours")
            lab.link.sendall(framed(FRAME)[:20])
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        lab.detach()
        lab.pump.send(b"own frame for nobody")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lab.pump.discard)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        lab.attach()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lab.pump.carry)
            lab.tap.send(FRAME + b"new")
            lab.link.sendall(framed(FRAME + b"for the guest"))
            assert await lab.from_link(len(framed(FRAME + b"new"))) == framed(FRAME + b"new")
            assert await lab.from_tap() == FRAME + b"for the guest"
            nursery.cancel_scope.cancel()
    lab.close()


async def test_without_a_link_the_tap_is_kept_empty() -> None:
    lab = Lab()
    lab.detach()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lab.pump.discard)
            for _ in range(1000):
                await trio.lowlevel.wait_writable(lab.tap)
                lab.tap.send(FRAME * 200)
            nursery.cancel_scope.cancel()
    lab.close()


async def test_carrying_without_a_link_is_a_bug() -> None:
    lab = Lab()
    lab.link.close()
    await lab.pump.carry()
    with pytest.raises(LocalError):
        await lab.pump.carry()
    lab.close()


async def test_a_tap_that_is_gone_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab()

    def gone(*_: object) -> int:
        raise OSError(77, "File descriptor in bad state")

    monkeypatch.setattr("sulla_trio.daemons.vm_pump.os.write", gone)
    lab.link.send(framed(FRAME))
    with trio.move_on_after(30) as scope:
        lab.pump._end = lambda reason: (lab.ends.append(reason), scope.cancel())
        await lab.pump.carry()
    assert lab.ends == ["writing packet to tap failed: file descriptor in bad state"]
    lab.close()


async def test_frames_that_the_tap_refuses_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    async with carrying() as lab:
        with monkeypatch.context() as patched:
            refusal = OSError(5, "Input/output error")
            patched.setattr("sulla_trio.daemons.vm_pump.os.write", lambda *_: (_ for _ in ()).throw(refusal))
            lab.link.sendall(framed(FRAME) * 3)
            await trio.testing.wait_all_tasks_blocked()
        lab.link.sendall(framed(FRAME))
        assert await lab.from_tap() == FRAME
        assert (lab.pump.frames_refused, lab.ends) == (3, [])


async def test_tracing_sees_both_ways(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger=vm_trace.__name__)
    async with carrying(trace=True) as lab:
        lab.link.sendall(framed(FRAME))
        lab.tap.send(FRAME)
        await lab.from_link(len(framed(FRAME)))
        await lab.from_tap()
        lab.pump.send(FRAME + b"own")
        await lab.from_link(len(framed(FRAME + b"own")))
        lab.tracer.toggle()
        lab.pump.send(FRAME)
        lab.link.sendall(framed(FRAME))
        await lab.from_tap()
    lines = sorted(record.getMessage().partition(")")[0] for record in caplog.records)
    length = len(FRAME)
    assert lines == [
        "SIGUSR1 received: per-packet tracing is now false",
        f"read packet (host -> vm {length}",
        f"wrote packet (vm -> host {length}",
        f"wrote packet (vm -> host {length + 3}",
    ]
