"""One TCP flow between the virtual network and a host socket: a task, two byte streams, nothing copied in between.

Guest to host, the connection's in-order bytes go straight from the link's receive buffer into `socket.send` (this object is
the connection's `Sink`); only what the socket does not take is queued, and only then a second task exists. Host to guest,
one `recv` is one send record until acked. A FIN on one side is a FIN on the other, a reset a reset (DESIGN section 4).
"""

from __future__ import annotations

import socket
from typing import Final

import trio

from sulla_trio.forward.context import Driver
from sulla_trio.forward.host_sockets import reset_on_close
from sulla_trio.netstack.tcp import CLOSED, TcpConnection
from sulla_trio.services.flows import Flow

READ_BURST: Final = 512 << 10
"""Bytes read from one host socket before other tasks run: fairness between flows, and the size of one gathered send."""


class SocketRelay:
    """Relay one established `TcpConnection` to one connected, non-blocking host socket, which it owns.

    Create it, then `run` it as a task. Cancelling `run` aborts the connection (RST to the guest) and resets the socket.
    """

    __slots__ = (
        "_closed",
        "_draining",
        "_driver",
        "_host_eof",
        "_scope",
        "_socket",
        "_wake",
        "connection",
        "flow",
        "reason",
    )

    def __init__(self, driver: Driver, connection: TcpConnection, sock: socket.socket, flow: Flow) -> None:
        self._driver = driver
        self._socket = sock
        self._scope: trio.CancelScope | None = None
        self._wake: trio.Event | None = None
        self._closed = False
        self._draining = False
        self._host_eof = False
        self.connection = connection
        self.flow = flow
        self.reason: str | None = None
        connection.owner = self
        connection.sink = self

    # The sink: called by the connection inside Stack.receive.

    def try_write(self, view: memoryview) -> int:
        try:
            return self._socket.send(view)
        except BlockingIOError:
            return 0
        except OSError:
            return CLOSED

    # The owner: called by the driver.

    def connected(self) -> None:
        self.flow.state = "established"

    def readable(self) -> None:
        if not self._draining and not self._closed:
            self._draining = True
            if not self._driver.spawn(self.connection.port, self._drain):
                self._draining = False

    def writable(self) -> None:
        self._wake_up()

    def peer_closed(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # reset by the host meanwhile: the reading side finds out and says so

    def sink_closed(self) -> None:
        self._end("host_reset")
        self.connection.abort(self._driver.now())

    def closed(self, reason: str | None) -> None:
        self._closed = True
        self._end({None: "eof", "reset": "guest_reset", "timeout": "timeout"}.get(reason, "guest_reset"))

    # The task.

    async def run(self) -> None:
        """Carry bytes until both directions have ended or either side resets. Never raises but Cancelled."""
        with trio.CancelScope() as self._scope:
            try:
                if self.reason is None:
                    await self._host_to_guest()
            finally:
                self._finish()

    async def _host_to_guest(self) -> None:
        driver, connection, sock = self._driver, self.connection, self._socket
        burst = 0
        while not self._host_eof:
            size = connection.preferred_read()
            port = driver.port(connection.port)
            if port is not None and port.congested:
                driver.pump()
                await port.wait_uncongested()
                burst = 0
                continue
            if not size:
                await self._sleep()
                burst = 0
                continue
            try:
                data = sock.recv(size)
            except BlockingIOError:
                driver.pump()
                if connection.send_room():
                    await trio.lowlevel.wait_readable(sock)
                burst = 0
                continue
            except OSError:
                self._end("host_reset")
                return
            if not data:
                self._host_eof = True
                connection.shutdown(driver.now())
                driver.pump()
                break
            connection.send(data, driver.now())
            burst += len(data)
            if burst >= READ_BURST:
                driver.pump()
                await trio.lowlevel.checkpoint()
                burst = 0
        while not self._closed:
            await self._sleep()

    async def _sleep(self) -> None:
        """Until `writable` or the end; what was queued for the guest is sent first."""
        self._wake = trio.Event()
        self._driver.pump()
        await self._wake.wait()

    def _wake_up(self) -> None:
        if self._wake is not None:
            self._wake.set()

    async def _drain(self) -> None:
        """The second task: lives while the host socket is full."""
        try:
            while not self._closed and self._socket.fileno() >= 0:
                if self.connection.drain_to_sink(self._driver.now()):
                    break
                self._driver.pump()
                await trio.lowlevel.wait_writable(self._socket)
        except trio.ClosedResourceError:
            pass  # the flow ended under us
        finally:
            self._draining = False
        self._driver.pump()

    def _end(self, reason: str) -> None:
        """Record the first reason and wake the task so that it ends."""
        if self.reason is None:
            self.reason = reason
        self._wake_up()
        if self._scope is not None and reason != "eof":
            self._scope.cancel()

    def _finish(self) -> None:
        connection, sock = self.connection, self._socket
        orderly = self._closed and self.reason == "eof"
        if not self._closed:
            connection.abort(self._driver.now())
        if self.reason is None:
            self.reason = "shutdown"
        connection.sink = connection.owner = None
        if not orderly:
            reset_on_close(sock)
        if sock.fileno() >= 0:
            trio.lowlevel.notify_closing(sock)
            sock.close()
        self.flow.bytes_out, self.flow.bytes_in = connection.bytes_in, connection.bytes_out
        self._driver.flows.closed(self.flow, self.reason, self._driver.now())
        self._driver.pump()
