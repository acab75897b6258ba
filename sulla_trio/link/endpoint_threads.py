"""An endpoint over two threads, for sockets on which readiness does not work: the same calls, the same meaning.

One thread does blocking receives into a bounded buffer, one blocking sends out of another; the task sees buffers where an
ordinary endpoint has the kernel. Source: DESIGN section 3 ("Endpoints have four calls").
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
import threading
from collections.abc import Callable
from typing import Final

import trio

from sulla_trio.link.endpoint_listener import CONNECTION_GONE, EndpointListener
from sulla_trio.link.endpoint_socket import MAX_BUFFERS, Buffer, Endpoint
from sulla_trio.link.endpoint_url import EndpointUrl

BUFFER: Final = 256 << 10
"""Bytes held for each direction, as many as the kernel's own buffer of such a socket."""
CHUNK: Final = 64 << 10
"""Bytes moved by one blocking call: the GIL changes hands twice for each."""
LINGER: Final = 2.0
"""Seconds for what was taken from the task to reach the kernel after `close`."""

_ERROR_BROKEN_PIPE: Final = 109
"""How Windows ends a Hyper-V stream (specs/daemons.md section 1.6)."""


class _Direction:
    """Bytes on their way between one thread and the task. All attributes belong to whoever holds `changed`."""

    __slots__ = ("_token", "changed", "closed", "ended", "error", "held", "waiter")

    def __init__(self, token: trio.lowlevel.TrioToken) -> None:
        self._token = token
        self.changed = threading.Condition()
        self.held = bytearray()
        self.error: OSError | None = None
        self.ended = False
        """No byte will be added any more."""
        self.closed = False
        """By the task: it will not look again."""
        self.waiter: trio.Event | None = None

    def wake(self) -> None:
        """Tell the other thread and, from either thread, a waiting task."""
        self.changed.notify_all()
        if self.waiter is not None:
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self.waiter.set)

    def check(self) -> None:
        """Raise what keeps the task from going on."""
        if self.closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if self.error is not None:
            raise OSError(*self.error.args)  # a new one: a raised exception keeps the frames that it went through

    async def wait(self, ready: Callable[[], bool], name: str) -> None:
        """Until `ready()`, an error, or the end. Raises trio.ClosedResourceError, trio.BusyResourceError."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            with self.changed:
                if self.closed:
                    raise trio.ClosedResourceError(f"{name} is closed")
                if self.waiter is not None:
                    raise trio.BusyResourceError(f"another task waits for {name}")
                if ready() or self.ended or self.error is not None:
                    break
                event = self.waiter = trio.Event()
            try:
                await event.wait()
            finally:
                with self.changed:
                    self.waiter = None
        await trio.lowlevel.cancel_shielded_checkpoint()


class ThreadedEndpoint(Endpoint):
    """One connected stream socket that blocks. Owns it, and two threads that end with it.

    What `send_gathered` has taken is not sent yet: an error of sending is told by a later call.
    `close` returns at once; the threads and the descriptor go as soon as what `send_gathered` has taken is sent, after
    LINGER at the latest, and `aclose` waits for that.
    """

    __slots__ = ("_gone", "_in", "_linger", "_live", "_lock", "_out", "_token")

    def __init__(self, sock: socket.socket, name: str) -> None:
        super().__init__(sock, name)
        sock.setblocking(True)
        self._token = trio.lowlevel.current_trio_token()
        self._in = _Direction(self._token)
        self._out = _Direction(self._token)
        self._lock = threading.Lock()
        self._live = 2
        self._gone = trio.Event()
        self._linger: threading.Timer | None = None
        for run, what in ((self._receive, "receive"), (self._send, "send")):
            threading.Thread(target=self._thread, args=(run,), name=f"{what} {name}", daemon=True).start()

    def fileno(self) -> int:
        return -1 if self._in.closed else self._socket.fileno()

    def recv_into(self, buffer: memoryview) -> int:
        side = self._in
        with side.changed:
            if side.held and not side.closed:
                count = min(len(side.held), len(buffer))
                with memoryview(side.held) as held:
                    buffer[:count] = held[:count]
                del side.held[:count]
                side.changed.notify_all()
                return count
            side.check()
            if side.ended:
                return 0
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def send_gathered(self, buffers: list[Buffer]) -> int:
        side = self._out
        with side.changed:
            side.check()
            start = len(side.held)
            for buffer in buffers[:MAX_BUFFERS]:
                room = BUFFER - len(side.held)
                if not room:
                    break
                side.held += buffer if len(buffer) <= room else memoryview(buffer)[:room]
            taken = len(side.held) - start
            if taken or not any(buffers):
                side.changed.notify_all()
                return taken
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    async def wait_readable(self) -> None:
        await self._in.wait(lambda: bool(self._in.held), self.name)

    async def wait_writable(self) -> None:
        # Half, so that a full buffer costs one wake-up for many sends.
        await self._out.wait(lambda: len(self._out.held) <= BUFFER // 2, self.name)

    async def aclose(self) -> None:
        """Close, and wait until threads and descriptor are gone, LINGER at the longest. Waiters get
        `trio.ClosedResourceError`."""
        self.close()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 2 * LINGER):
            await self._gone.wait()

    def close(self) -> None:
        if self._in.closed:
            return
        out = self._out
        with out.changed:
            out.closed = True
            if out.held:
                # Before the sending thread can see that this is the end: the last thread to go cancels it.
                self._linger = threading.Timer(LINGER, self._cut)
                self._linger.daemon = True
                self._linger.start()
            out.wake()
        with self._in.changed:
            self._in.closed = True
            self._in.wake()
        if self._linger is None:
            self._cut()

    def _cut(self) -> None:
        """Wake both threads out of their calls. On Windows only closing does that; elsewhere closing is what must wait for
        them, because the descriptor's number may be given to another file."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        if sys.platform == "win32":
            self._socket.close()

    def _thread(self, run: Callable[[], None]) -> None:
        run()
        with self._lock:
            self._live -= 1
            if self._live:
                return
        if self._linger is not None:
            self._linger.cancel()
        self._socket.close()
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._gone.set)

    def _receive(self) -> None:
        side = self._in
        scratch = memoryview(bytearray(CHUNK))
        while True:
            with side.changed:
                side.changed.wait_for(lambda: len(side.held) < BUFFER or side.closed)
                if side.closed:
                    return
                room = BUFFER - len(side.held)
            try:
                count = self._socket.recv_into(scratch[: min(room, CHUNK)])
                error = None
            except OSError as caught:
                count, error = 0, caught
            with side.changed:
                side.held += scratch[:count]
                side.ended = not count
                if error is not None and getattr(error, "winerror", None) != _ERROR_BROKEN_PIPE:
                    side.error = error
                side.wake()
                if side.ended:
                    return

    def _send(self) -> None:
        side = self._out
        while True:
            with side.changed:
                side.changed.wait_for(lambda: side.held or side.closed)
                chunk = side.held[:CHUNK]
            if not chunk:
                break
            try:
                sent = self._socket.send(chunk)
            except OSError as error:
                with side.changed:
                    side.error = error
                    side.held.clear()
                    side.wake()
                break
            with side.changed:
                del side.held[:sent]
                if len(side.held) <= BUFFER // 2:
                    side.wake()
        if side.closed:
            self._cut()


class ThreadedListener(EndpointListener):
    """A listening socket that blocks, its accept in a thread of its own, its connections `ThreadedEndpoint`s.

    The thread takes one connection ahead of `accept`, so that a cancelled `accept` loses none.
    """

    def __init__(self, sock: socket.socket, url: EndpointUrl, file: str = "") -> None:
        super().__init__(sock, url, file)
        sock.setblocking(True)
        self._token = trio.lowlevel.current_trio_token()
        self._closed = False
        self._next: socket.socket | OSError | None = None
        self._arrived = trio.Event()
        self._wanted = threading.Semaphore(1)
        threading.Thread(target=self._run, name=f"accept {url.text}", daemon=True).start()

    async def accept(self) -> Endpoint:
        """As of any `EndpointListener`."""
        while True:
            await self._arrived.wait()
            if self._closed:
                raise trio.ClosedResourceError(f"{self.url.text} is closed")
            found, self._next = self._next, None
            if found is None:
                continue  # another task has taken it
            self._arrived = trio.Event()
            self._wanted.release()
            if isinstance(found, socket.socket):
                return ThreadedEndpoint(found, self.url.text)
            if found.errno not in CONNECTION_GONE:
                raise found

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._arrived.set()
        if self._file is not None:
            self._file.remove()
        if isinstance(self._next, socket.socket):
            self._next.close()
        # As with an endpoint: what wakes the thread differs, and so does who may close.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        if sys.platform == "win32":
            self._socket.close()
        self._wanted.release()

    def _run(self) -> None:
        while True:
            self._wanted.acquire()
            if self._closed:
                break
            found: socket.socket | OSError
            try:
                found, _ = self._socket.accept()
            except OSError as error:
                found = error
            try:
                self._token.run_sync_soon(self._deliver, found)
            except trio.RunFinishedError:
                if isinstance(found, socket.socket):
                    found.close()
                break
        self._socket.close()

    def _deliver(self, found: socket.socket | OSError) -> None:
        if self._closed:
            if isinstance(found, socket.socket):
                found.close()
            return
        self._next = found
        self._arrived.set()
