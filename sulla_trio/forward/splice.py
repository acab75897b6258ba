"""One TCP connection between two kernel sockets: bytes from one to the other, and each end's FIN or reset on to the other.

On Linux the bytes never come up: `os.splice` moves them socket to pipe to socket (DESIGN section 3). Elsewhere they pass
through a buffer. Pipes and buffers are lent for a burst, so that a connection on which nothing happens holds two
descriptors and no memory.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Final, Protocol

import trio

from sulla_trio.forward.host_sockets import reset_on_close

PIPE_SIZE: Final = 256 << 10
"""Bytes in flight in one direction: a quarter of what Linux lets an ordinary user have in one pipe."""
BUFFER_SIZE: Final = 64 << 10
BURST: Final = 1 << 20
"""Bytes moved in one direction before other tasks run."""
KEPT_CHANNELS: Final = 32
"""Empty pipes or buffers kept for the next burst: as many as directions are busy at once on a busy machine."""
RESET_CHECK: Final = 30.0
"""Seconds between two looks whether an end that has sent its FIN is there at all: no readiness tells of its reset."""


class Channel(Protocol):
    """Bytes on their way in one direction. Fill it, then drain it until it holds nothing."""

    held: int

    def fill(self, source: socket.socket) -> int:
        """Bytes taken from `source`; 0 at end of stream. Raises BlockingIOError, OSError."""

    def drain(self, target: socket.socket) -> int:
        """Bytes given to `target`. Raises BlockingIOError, OSError."""

    def close(self) -> None:
        """Drop what is held."""


class PipeChannel:
    """A kernel pipe. Raises OSError where there is no descriptor for it."""

    __slots__ = ("_read", "_write", "held")

    def __init__(self) -> None:
        import fcntl  # Windows has none

        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.held = 0
        try:
            fcntl.fcntl(self._write, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        except OSError:
            pass  # this user's pipes are many already: it stays at 64 KiB

    def fill(self, source: socket.socket) -> int:
        self.held = os.splice(source.fileno(), self._write, PIPE_SIZE, flags=os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK)
        return self.held

    def drain(self, target: socket.socket) -> int:
        size = os.splice(self._read, target.fileno(), self.held, flags=os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK)
        self.held -= size
        return size

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


class BufferChannel:
    """A buffer of our own, for systems without splice."""

    __slots__ = ("_start", "_view", "held")

    def __init__(self) -> None:
        self._view = memoryview(bytearray(BUFFER_SIZE))
        self._start = self.held = 0

    def fill(self, source: socket.socket) -> int:
        self._start, self.held = 0, source.recv_into(self._view)
        return self.held

    def drain(self, target: socket.socket) -> int:
        size = target.send(self._view[self._start : self._start + self.held])
        self._start += size
        self.held -= size
        return size

    def close(self) -> None:
        self.held = 0


class Channels:
    """Lends channels, and keeps some that came back empty."""

    def __init__(self, make: Callable[[], Channel] | None = None) -> None:
        self._make = make or (PipeChannel if hasattr(os, "splice") else BufferChannel)
        self._free: list[Channel] = []

    def take(self) -> Channel:
        """An empty channel; a buffer where there is no descriptor for a pipe."""
        if self._free:
            return self._free.pop()
        try:
            return self._make()
        except OSError:
            return BufferChannel()

    def give(self, channel: Channel) -> None:
        """Take `channel` back. One that still holds bytes is never lent again: they are another connection's."""
        if channel.held or len(self._free) >= KEPT_CHANNELS:
            channel.close()
        else:
            self._free.append(channel)

    def close(self) -> None:
        """Close the kept ones."""
        while self._free:
            self._free.pop().close()


class _Direction:
    """One direction: whose bytes go to whom, and what it is called when one of them fails."""

    __slots__ = ("bytes", "ended", "source", "source_failed", "target", "target_failed")

    def __init__(self, source: socket.socket, source_failed: str, target: socket.socket, target_failed: str) -> None:
        self.source = source
        self.source_failed = source_failed
        self.target = target
        self.target_failed = target_failed
        self.bytes = 0
        self.ended = False


class SpliceRelay:
    """Relay one connected client to one connected upstream, both non-blocking. Owns both sockets.

    Create it, then `run` it as a task.
    """

    __slots__ = ("_channels", "_in", "_out", "_scope", "reason")

    def __init__(self, client: socket.socket, upstream: socket.socket, channels: Channels) -> None:
        self._channels = channels
        self._in = _Direction(client, "host_reset", upstream, "guest_reset")
        self._out = _Direction(upstream, "guest_reset", client, "host_reset")
        self._scope: trio.CancelScope | None = None
        self.reason = ""
        """Why it ended, in the words of `sulla_trio.services.flows`."""

    @property
    def bytes_in(self) -> int:
        """Bytes that the upstream's socket has taken."""
        return self._in.bytes

    @property
    def bytes_out(self) -> int:
        """Bytes that the client's socket has taken."""
        return self._out.bytes

    async def run(self) -> None:
        """Carry bytes until both directions have ended or either end resets. Never raises but Cancelled.

        Cancelling it resets both ends: what was cut off must not look complete.
        """
        try:
            async with trio.open_nursery() as nursery:
                self._scope = nursery.cancel_scope
                nursery.start_soon(self._carry, self._in)
                await self._carry(self._out)
        finally:
            self.reason = self.reason or "shutdown"
            for sock in (self._in.source, self._out.source):
                if self.reason != "eof":
                    reset_on_close(sock)
                trio.lowlevel.notify_closing(sock)
                sock.close()

    async def _carry(self, way: _Direction) -> None:
        while not way.ended:
            channel = self._channels.take()
            try:
                way.ended = await self._burst(way, channel)
            finally:
                self._channels.give(channel)
            if not way.ended:
                await trio.lowlevel.wait_readable(way.source)
        if self._in.ended and self._out.ended:
            self._end("eof")
        # A reset after the FIN makes nothing readable, and nobody may be writing for hours.
        while not way.source.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):  # noqa: ASYNC110
            await trio.sleep(RESET_CHECK)
        self._end(way.source_failed)

    async def _burst(self, way: _Direction, channel: Channel) -> bool:
        """Move what there is to read. True: the direction has ended, by FIN or failure."""
        moved = 0
        while True:
            try:
                size = channel.fill(way.source)
            except BlockingIOError:
                return False
            except OSError:
                self._end(way.source_failed)
                return True
            try:
                if not size:
                    way.target.shutdown(socket.SHUT_WR)
                    return True
                while channel.held:
                    try:
                        way.bytes += channel.drain(way.target)
                    except BlockingIOError:
                        await trio.lowlevel.wait_writable(way.target)
            except OSError:
                self._end(way.target_failed)
                return True
            moved += size
            if moved >= BURST:
                await trio.lowlevel.checkpoint()
                moved = 0

    def _end(self, reason: str) -> None:
        """The first reason counts. Both tasks end at their next wait."""
        self.reason = self.reason or reason
        if self._scope is not None:
            self._scope.cancel()
