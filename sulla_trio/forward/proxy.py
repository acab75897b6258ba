"""Published ports between two networks of one machine: listeners for bindings, relayed to the same port of an upstream.

Source: specs/daemons.md section 6.2, without its quirks. A listener is one (protocol, address, port); every binding that
means it holds it, and it ends with the last of them. Live TCP connections survive that, UDP clients do not.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, NamedTuple

import trio

from sulla_trio.config import format_ip
from sulla_trio.errors import ConfigError
from sulla_trio.forward.host_sockets import (
    RESERVED,
    Descriptors,
    address_text,
    bind_error,
    peer_text,
    reset_on_close,
    tune,
)
from sulla_trio.forward.proxy_journal import ProxyJournal
from sulla_trio.forward.proxy_udp import UdpProxy
from sulla_trio.forward.splice import Channels, SpliceRelay
from sulla_trio.link.endpoint import take_socket
from sulla_trio.services.events import EventLog
from sulla_trio.services.port_mapping import LOCALHOST6, Binding, Listening, PortMapping, listenings

log = logging.getLogger(__name__)

DIAL_TIMEOUT: Final = 5.0
TCP_DESCRIPTORS: Final = 6
"""Two sockets, and a pipe in each direction while bytes are on their way."""
MOST_DESCRIPTORS: Final = 2048 * TCP_DESCRIPTORS
"""Taken at most, whatever the process may have: 2,048 connections, each 10 KB and a quarter of a millisecond to reset. A
signal leaves us a second for all of them."""
BACKLOG: Final = 4096  # the kernel clamps it to net.core.somaxconn
TELL_INTERVAL: Final = 60.0
"""Seconds until the log says again what it has said of a client's doing (DESIGN law 3)."""
MAX_TOLD: Final = 16
"""Different things said of clients in that time."""
_DIAL_REASONS: Final = {
    errno.ECONNREFUSED: "refused",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "unreachable",
    errno.ETIMEDOUT: "timeout",
}


class Key(NamedTuple):
    """What one listener is known by."""

    protocol: str
    address: bytes
    port: int


class _Listener:
    """A bound socket and who wants it."""

    __slots__ = ("close", "holders", "local", "remote")

    def __init__(self, local: str, remote: str, close: Callable[[], None]) -> None:
        self.local = local
        self.remote = remote
        self.close = close
        """Free the port now; never waits."""
        self.holders: set[Binding] = set()


class PortProxy:
    """Listeners for port mappings, each relayed to the same port of `upstream` (an address, as text).

    `run` owns the tasks. `apply` never waits: mappings take effect in the order of their calls, and when it returns the
    listeners exist or are gone. `limit` is the process's number of descriptors; half of what is free is for listeners.
    """

    def __init__(
        self,
        upstream: str,
        events: EventLog,
        *,
        limit: int,
        strict: bool = False,
        ipv6_exists: Callable[[], bool] | None = None,
    ) -> None:
        self._upstream = upstream
        self._journal = ProxyJournal(events)
        self._descriptors = Descriptors(min(limit, MOST_DESCRIPTORS + RESERVED))
        self._max_listeners = self._descriptors.free // 2
        self._ipv6_exists = ipv6_exists or has_ipv6
        self._strict = strict
        self._running: dict[Key, _Listener] = {}
        self._channels = Channels()
        self._nursery: trio.Nursery | None = None
        self._last_told: dict[str, float] = {}

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; then every listener is closed and every connection reset."""
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None
            for listener in self._running.values():
                listener.close()
            self._running.clear()
            self._channels.close()

    def listeners(self) -> list[str]:
        """``protocol address:port`` of each listener, sorted."""
        return sorted(f"{key.protocol} {listener.local}" for key, listener in self._running.items())

    def apply(self, mapping: PortMapping) -> None:
        """Add or remove the bindings of `mapping`. One that cannot be had is logged and does not stop the others."""
        unsupported = set()
        for binding in mapping.bindings:
            if binding.protocol not in ("tcp", "udp"):
                if binding.protocol not in unsupported:
                    log.warning("unsupported protocol: [%s]", binding.protocol)
                unsupported.add(binding.protocol)
                continue
            log.debug(
                "%s %s %s:%s of container port %s",
                "removing" if mapping.remove else "adding",
                binding.protocol,
                binding.host_ip,
                binding.host_port,
                binding.container_port,
            )
            try:
                wanted = listenings(binding)
            except ConfigError as error:
                log.error("%s", error)
                if not mapping.remove:
                    self._journal.listener(
                        "failed",
                        binding.protocol,
                        f"{binding.host_ip}:{binding.host_port}",
                        f"{self._upstream}:{binding.host_port}",
                        reason=str(error),
                    )
                continue
            for one in wanted:
                key = Key(binding.protocol, one.address, one.port)
                if mapping.remove:
                    self._release(key, binding)
                else:
                    self._hold(key, binding, one)

    def _hold(self, key: Key, binding: Binding, wanted: Listening) -> None:
        listener = self._running.get(key)
        if listener is None:
            if wanted.implied and not self._ipv6_exists():
                return
            listener = self._open(key)
            if listener is None:
                return
            self._running[key] = listener
        # A mapping that comes again (the agent was restarted and told us all) is the same mapping: it is removed once.
        listener.holders.add(binding)

    def _release(self, key: Key, binding: Binding) -> None:
        listener = self._running.get(key)
        if listener is None or binding not in listener.holders:
            return
        listener.holders.remove(binding)
        if not listener.holders:
            del self._running[key]
            log.debug("closing %s listener for: %s", key.protocol, listener.local)
            listener.close()
            self._descriptors.give(1)
            self._journal.listener("removed", key.protocol, listener.local, listener.remote)

    def _open(self, key: Key) -> _Listener | None:
        local, remote = address_text(format_ip(key.address), key.port), address_text(self._upstream, key.port)
        try:
            if self._nursery is None or len(self._running) >= self._max_listeners or not self._descriptors.take(1):
                raise OSError(errno.EMFILE, "too many published ports")
            try:
                sock = bind(key)
            except BaseException:
                self._descriptors.give(1)
                raise
        except OSError as error:
            failure = bind_error(key.protocol, local, error)
            log.error("failed creating listener for published port [%d]: %s", key.port, failure)
            self._journal.listener("failed", key.protocol, local, remote, reason=str(failure))
            return None
        if key.protocol == "tcp":
            accepting = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
            scope = trio.CancelScope()
            listener = _Listener(local, remote, partial(_close_listener, scope, accepting))
            self._nursery.start_soon(self._guarded, partial(self._serve_tcp, listener, key.port, scope, accepting))
        else:
            proxy = UdpProxy(sock, local, (self._upstream, key.port), self._descriptors, self._journal)
            listener = _Listener(local, remote, proxy.close)
            self._nursery.start_soon(self._guarded, proxy.run)
        log.debug("created %s listener for: %s", key.protocol, local)
        self._journal.listener("added", key.protocol, local, remote)
        return listener

    # TCP

    async def _serve_tcp(
        self, listener: _Listener, port: int, scope: trio.CancelScope, accepting: trio.SocketListener
    ) -> None:
        # Connections live in the proxy's nursery, where they outlive the listener.
        handler = partial(self._accepted, listener, port)
        with scope:
            try:
                await trio.serve_listeners(handler, [accepting], handler_nursery=self._nursery)
            except* trio.ClosedResourceError:  # a client came in the same moment as the removal
                if not scope.cancel_called:
                    raise

    async def _accepted(self, listener: _Listener, port: int, stream: trio.SocketStream) -> None:
        sock = take_socket(stream)
        if not self._descriptors.take(TCP_DESCRIPTORS):
            reset_on_close(sock)
            sock.close()
            if self._told("descriptors"):
                log.warning("connections to %s are refused: the descriptors are used up", listener.local)
            return
        try:
            await self._guarded(partial(self._carry, listener, port, sock))
        finally:
            sock.close()
            self._descriptors.give(TCP_DESCRIPTORS)

    async def _carry(self, listener: _Listener, port: int, client: socket.socket) -> None:
        peer = peer_text(client)
        log.debug("port proxy accepted TCP connection from %s", peer)
        tune(client)
        flow = self._journal.opened("tcp", listener.local, listener.remote, peer)
        reason = "internal_error"
        try:
            flow.state = "dialling"
            upstream = await self._dial(port, listener.remote)
            if isinstance(upstream, str):
                reason = upstream
                reset_on_close(client)
                return
            flow.state = "established"
            relay = SpliceRelay(client, upstream, self._channels)
            try:
                await relay.run()
            finally:
                flow.bytes_in, flow.bytes_out, reason = relay.bytes_in, relay.bytes_out, relay.reason
        except trio.Cancelled:
            reason = "shutdown"
            if client.fileno() >= 0:
                reset_on_close(client)
            raise
        finally:
            self._journal.closed("tcp", listener.local, flow, reason)

    async def _dial(self, port: int, remote: str) -> socket.socket | str:
        """The connected upstream; where it cannot be had, the reason, which the log has been told."""
        try:
            with trio.move_on_after(DIAL_TIMEOUT):
                return await connect(self._upstream, port)
            reason, text = "timeout", "i/o timeout"
        except OSError as error:
            reason = _DIAL_REASONS.get(error.errno or 0, "host_error")
            # trio has put the address into strerror, which the line names already
            text = f"connect: {os.strerror(error.errno).lower() if error.errno else error}"
        log.error("Failed to dial upstream %s: dial tcp %s: %s", remote, remote, text)
        return reason

    async def _guarded(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run a task; an unexpected exception is a bug of ours, and ends that one alone."""
        try:
            await task()
        except Exception as error:
            if self._strict:
                raise
            if self._told(repr(error)):
                log.error("internal error in a flow: %r", error, exc_info=error)

    def _told(self, what: str) -> bool:
        """Whether to say `what` now: what a client may bring about at will is said once a minute."""
        now = trio.current_time()
        self._last_told = {key: then for key, then in self._last_told.items() if then > now - TELL_INTERVAL}
        if what in self._last_told or len(self._last_told) >= MAX_TOLD:
            return False
        self._last_told[what] = now
        return True


def bind(key: Key) -> socket.socket:
    """A bound, non-blocking socket for `key`; a TCP one listens. IPv6 sockets are IPv6 alone. Raises OSError."""
    family = socket.AF_INET if len(key.address) == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_STREAM if key.protocol == "tcp" else socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if key.protocol == "tcp":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((format_ip(key.address), key.port))
        if key.protocol == "tcp":
            sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def has_ipv6() -> bool:
    """Whether this machine has IPv6 now: a kernel may lack it, and a sysctl take its addresses away."""
    try:
        bind(Key("udp", LOCALHOST6, 0)).close()
    except OSError:
        return False
    return True


async def connect(host: str, port: int) -> socket.socket:
    """A connected, non-blocking socket. Raises OSError."""
    sock = trio.socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        await sock.connect((host, port))
    except BaseException:
        sock.close()
        raise
    connected = socket.socket(fileno=sock.detach())
    connected.setblocking(False)
    tune(connected)
    return connected


def _close_listener(scope: trio.CancelScope, accepting: trio.SocketListener) -> None:
    scope.cancel()  # first: the task that waits in accept is then cancelled, and not told that its socket is gone
    accepting.socket.close()
