"""Trio streams and listeners on the driven stack: what the gateway's own servers are written against.

`TcpStream` raises only `trio.ClosedResourceError`, `trio.BrokenResourceError` and `trio.BusyResourceError`, so every trio tool
works on it.
"""

from __future__ import annotations

import operator
from collections import deque
from typing import Final

import trio

from sulla_trio.config import format_ip
from sulla_trio.errors import LocalError
from sulla_trio.forward.context import Driver
from sulla_trio.netstack.events import ConnectionRequest
from sulla_trio.netstack.tcp import TcpConnection

RECEIVE_DEFAULT: Final = 65_536
BACKLOG: Final = 128
"""Connections that wait for `accept`; beyond it a SYN is dropped and the guest tries again."""


class _OneTask:
    """A direction of a stream that one task may use at a time."""

    __slots__ = ("_busy", "_message")

    def __init__(self, message: str) -> None:
        self._message = message
        self._busy = False

    def __enter__(self) -> None:
        if self._busy:
            raise trio.BusyResourceError(self._message)
        self._busy = True

    def __exit__(self, *_: object) -> None:
        self._busy = False


class TcpStream(trio.abc.HalfCloseableStream):
    """One TCP connection of the virtual network as a byte stream.

    `aclose` sends what is queued and a FIN and does not wait for it; `trio.aclose_forcefully` likewise, since it never blocks.
    """

    def __init__(self, driver: Driver, connection: TcpConnection) -> None:
        self._driver = driver
        self._connection = connection
        self._send_guard = _OneTask("another task is sending on this stream")
        self._receive_guard = _OneTask("another task is receiving from this stream")
        self._changed = trio.Event()
        self._is_connected = False
        self._reason: str | None = None
        self._gone = self._closed = self._sent_eof = self._eof = False
        self.local = (format_ip(connection.local_ip), connection.local_port)
        """(address, port) in the virtual network of our end."""
        self.peer = (format_ip(connection.remote_ip), connection.remote_port)
        connection.owner = self

    # The owner: called by the driver.

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def connected(self) -> None:
        self._is_connected = True
        self._notify()

    def readable(self) -> None:
        self._notify()

    def writable(self) -> None:
        self._notify()

    def sink_closed(self) -> None:
        """Never: a stream has no sink."""

    def peer_closed(self) -> None:
        self._eof = True
        self._notify()

    def closed(self, reason: str | None) -> None:
        self._gone, self._reason = True, reason
        self._notify()

    # The stream.

    async def wait_connected(self) -> None:
        """Until the handshake is complete.

        Raises:
            trio.BrokenResourceError: the peer refused, or did not answer.
        """
        while not self._is_connected:
            if self._gone:
                raise trio.BrokenResourceError(f"connect to {self.peer[0]}:{self.peer[1]}: {self._reason or 'closed'}")
            await self._changed.wait()
        await trio.lowlevel.checkpoint()

    def _check(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this stream was closed")
        if self._gone and self._reason is not None:
            raise trio.BrokenResourceError(f"the connection ended: {self._reason}")

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with self._send_guard:
            self._check()
            if self._sent_eof:
                raise trio.ClosedResourceError("send_all after send_eof")
            await trio.lowlevel.checkpoint()
            rest = bytes(data)
            while rest:
                self._check()
                if self._gone:
                    raise trio.BrokenResourceError("the connection ended")
                room = self._connection.send_room()
                if not room:
                    self._driver.pump()
                    await self._changed.wait()
                    continue
                self._connection.send(rest[:room], self._driver.now())
                rest = rest[room:]
            self._driver.pump()

    async def wait_send_all_might_not_block(self) -> None:
        with self._send_guard:
            self._check()
            await trio.lowlevel.checkpoint()
            while not self._gone and not self._connection.send_room():
                await self._changed.wait()
                self._check()

    async def send_eof(self) -> None:
        with self._send_guard:
            self._check()
            if not self._sent_eof and not self._gone:
                self._sent_eof = True
                self._connection.shutdown(self._driver.now())
                self._driver.pump()
            await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        limit = RECEIVE_DEFAULT if max_bytes is None else operator.index(max_bytes)
        if limit < 1:
            raise ValueError("max_bytes must be at least 1")
        with self._receive_guard:
            if self._closed:
                raise trio.ClosedResourceError("this stream was closed")
            await trio.lowlevel.checkpoint()
            while True:
                if self._closed:
                    raise trio.ClosedResourceError("this stream was closed")
                data = self._connection.receive(limit, self._driver.now())
                if data:
                    self._driver.pump()
                    return data
                if self._eof or (self._gone and self._reason is None):
                    return b""
                self._check()
                await self._changed.wait()

    def close(self) -> None:
        """Close without waiting: unread data makes it a reset (RFC 2525 section 2.17), else a FIN goes out after what is queued."""
        if self._closed:
            return
        self._closed = True
        self._notify()
        if not self._gone:
            self._connection.close(self._driver.now())
            self._driver.pump()
        self._connection.owner = None

    def abort(self) -> None:
        """Reset the connection without waiting."""
        self._closed = True
        self._notify()
        if not self._gone:
            self._connection.abort(self._driver.now())
            self._driver.pump()
        self._connection.owner = None

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()


class TcpListener(trio.abc.Listener[TcpStream]):
    """Connections to one (address, port) of the gateway. Made by `VirtualNetwork.listen_tcp`."""

    def __init__(self, driver: Driver, local_ip: bytes, port: int) -> None:
        self._driver = driver
        self.local = (format_ip(local_ip), port)
        self._accepted: deque[TcpStream] = deque()
        self._arrived = trio.Event()
        self._closed = False
        self._key = (local_ip, port)

    def requested(self, request: ConnectionRequest) -> None:
        """A SYN for this address: accepted at once, or dropped while the backlog is full."""
        stack, now = self._driver.stack, self._driver.now()
        if len(self._accepted) >= BACKLOG:
            stack.drop(request)
            return
        self._accepted.append(TcpStream(self._driver, stack.accept(request, now)))
        self._arrived.set()

    async def accept(self) -> TcpStream:
        await trio.lowlevel.checkpoint()
        while not self._closed:
            if self._accepted:
                return self._accepted.popleft()
            self._arrived = trio.Event()
            await self._arrived.wait()
        raise trio.ClosedResourceError("this listener was closed")

    @property
    def is_closed(self) -> bool:
        return self._closed

    async def aclose(self) -> None:
        self._closed = True
        self._arrived.set()
        while self._accepted:
            self._accepted.popleft().close()
        await trio.lowlevel.checkpoint()


async def connect_tcp(driver: Driver, remote_ip: bytes, remote_port: int) -> TcpStream:
    """Open a connection from the gateway to a guest.

    Raises:
        trio.BrokenResourceError: refused, unreachable or out of ports. Cancelling resets it.
    """
    try:
        connection = driver.stack.connect(remote_ip, remote_port, driver.now())
    except LocalError as error:
        raise trio.BrokenResourceError(str(error)) from error
    stream = TcpStream(driver, connection)
    driver.pump()
    try:
        await stream.wait_connected()
    except BaseException:
        stream.abort()
        raise
    return stream
