"""Port forwards: listeners on the host whose connections and datagrams go to an address in the virtual network.

Statuses and texts are gvproxy's (specs/gvproxy.md sections 2.4 to 2.6, 5.4, 5.5). A forward's live connections survive its
removal; its UDP mappings do not.
"""

from __future__ import annotations

import errno
import socket
import sys
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import trio

from sulla_trio.config import parse_ip
from sulla_trio.errors import ConfigError, ForwardError, LocalError
from sulla_trio.forward.context import Driver
from sulla_trio.forward.relay import SocketRelay, tune
from sulla_trio.link.endpoint import take_socket
from sulla_trio.netstack.events import DatagramReceived

CONNECT_TIMEOUT: Final = 10.0
"""Seconds for the guest to accept (gvproxy's)."""
UDP_IDLE: Final = 90.0
MAX_UDP_CLIENTS: Final = 1024
"""Clients remembered per UDP forward; the longest idle goes."""
FIRST_EPHEMERAL: Final = 16_000
BATCH: Final = 64


@dataclass(frozen=True, slots=True, order=True)
class ForwardEntry:
    """One forward as the API lists it: the strings as they were given, the remote with its host filled in."""

    local: str
    protocol: str
    remote: str
    source: str = field(default="api", compare=False)


@dataclass(slots=True)
class _Running:
    entry: ForwardEntry
    scope: trio.CancelScope
    stopped: trio.Event


class ForwardTable:
    """The forwards of one virtual network. `run` owns their listeners; connections live in the network's nursery."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._running: dict[tuple[str, str], _Running] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the listeners until cancelled; then every one is closed."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def all(self) -> list[ForwardEntry]:
        """Sorted by local, then protocol (byte order)."""
        return sorted(running.entry for running in self._running.values())

    async def expose(self, local: str, remote: str, protocol: str = "tcp", *, source: str = "api") -> None:
        """Listen on `local` and forward to `remote`. Returns when the listener is bound.

        Raises:
            ForwardError: with gvproxy's text: already running, unknown protocol, invalid remote, or the bind error.
        """
        key = (protocol, local)
        if key in self._running:
            raise ForwardError("running", f"proxy already running for {protocol} on {local}")
        if protocol not in ("tcp", "udp"):
            known = {"unix", "npipe"}
            text = (
                f"{protocol} forwards are not supported by this host-switch"
                if protocol in known
                else f"unknown protocol {protocol}"
            )
            raise ForwardError("protocol", text)
        target = parse_remote(remote)
        if self._nursery is None:
            raise ForwardError("closed", "the network is shutting down")
        entry = ForwardEntry(local, protocol, remote, source)
        running = _Running(entry, trio.CancelScope(), trio.Event())
        self._running[key] = running  # before the first await: two at once for one address must not both bind
        serve = self._serve_tcp if protocol == "tcp" else self._serve_udp
        try:
            await self._nursery.start(serve, running, target)
        except OSError as error:
            del self._running[key]
            failure = bind_error(protocol, local, error)
            self._emit("failed", entry, reason=str(failure))
            raise failure from None
        except BaseException:
            self._running.pop(key, None)
            raise
        self._emit("added", entry)

    async def unexpose(self, local: str, protocol: str = "tcp") -> None:
        """Close the listener of a forward and wait until it is closed. Live TCP connections go on.

        Raises:
            ForwardError: ``proxy not found``.
        """
        running = self._running.pop((protocol, local), None)
        if running is None:
            raise ForwardError("unknown", "proxy not found")
        running.scope.cancel()
        await running.stopped.wait()
        self._emit("removed", running.entry)

    def _emit(self, what: str, entry: ForwardEntry, **more: Any) -> None:
        self._driver.events.emit(
            f"forward.{what}",
            local=entry.local,
            remote=entry.remote,
            protocol=entry.protocol,
            owner=None,
            source=entry.source,
            **more,
        )

    # TCP

    async def _serve_tcp(
        self, running: _Running, target: tuple[bytes, int], task_status: trio.TaskStatus[None]
    ) -> None:
        try:
            listeners = await _listen_tcp(running.entry.local)
            handler = partial(self._accepted, running.entry, target)
            with running.scope:
                task_status.started()
                await trio.serve_listeners(handler, listeners)
        finally:
            running.stopped.set()

    async def _accepted(self, entry: ForwardEntry, target: tuple[bytes, int], stream: trio.SocketStream) -> None:
        """Hand the connection to the network's nursery, where it outlives the forward."""
        sock = take_socket(stream)
        if not self._driver.spawn(None, self._carry, entry, target, sock):
            sock.close()
        await trio.lowlevel.checkpoint()

    async def _carry(self, entry: ForwardEntry, target: tuple[bytes, int], sock: socket.socket) -> None:
        driver = self._driver
        peer = _peer_text(sock)
        tune(sock)
        flow = driver.flows.opened("forward", entry.remote, peer, driver.now())
        flow.state = "dialling"
        self._emit_connection("opened", entry, peer, flow.id)
        waiter = _Opening()
        try:
            connection = driver.stack.connect(target[0], target[1], driver.now())
        except LocalError:
            driver.flows.closed(flow, "host_error", driver.now())
            sock.close()
            return
        connection.owner = waiter
        driver.pump()
        try:
            with trio.move_on_after(CONNECT_TIMEOUT):
                await waiter.decided.wait()
        finally:
            if not waiter.open:
                connection.owner = None
                if not waiter.gone:
                    connection.abort(driver.now())
                sock.close()
                driver.flows.closed(flow, waiter.reason or "timeout", driver.now())
                driver.pump()
        if waiter.open:
            relay = SocketRelay(driver, connection, sock, flow)
            if waiter.early_data:
                relay.readable()
            if waiter.gone:
                relay.closed(waiter.reason)
            elif waiter.fin:
                relay.peer_closed()
            flow.state = "established"
            await relay.run()
        self._emit_connection(
            "closed", entry, peer, flow.id, bytes_in=flow.bytes_in, bytes_out=flow.bytes_out, reason=flow.reason
        )

    def _emit_connection(self, what: str, entry: ForwardEntry, peer: str, flow: int, **more: Any) -> None:
        self._driver.events.emit(
            f"forward.{what}",
            local=entry.local,
            remote=entry.remote,
            protocol=entry.protocol,
            peer=peer,
            flow=flow,
            **more,
        )

    # UDP

    async def _serve_udp(
        self, running: _Running, target: tuple[bytes, int], task_status: trio.TaskStatus[None]
    ) -> None:
        try:
            sock = _bind_udp(running.entry.local)
            forward = _UdpForward(self._driver, sock, target)
            with running.scope:
                task_status.started()
                await forward.run()
        finally:
            running.stopped.set()


class _Opening:
    """Owner of a connection to the guest until it is established: remembers what comes before the relay exists."""

    def __init__(self) -> None:
        self.decided = trio.Event()
        self.open = self.gone = self.fin = self.early_data = False
        self.reason: str | None = None

    def connected(self) -> None:
        self.open = True
        self.decided.set()

    def readable(self) -> None:
        self.early_data = True

    def peer_closed(self) -> None:
        self.fin = True

    def writable(self) -> None:
        pass

    def sink_closed(self) -> None:
        pass

    def closed(self, reason: str | None) -> None:
        self.gone = True
        self.reason = "refused" if reason in ("reset", "refused") and not self.open else reason
        self.decided.set()


class _UdpForward:
    """One UDP forward: each client address has a port of the gateway, as gvproxy does it."""

    def __init__(self, driver: Driver, sock: socket.socket, target: tuple[bytes, int]) -> None:
        self._driver = driver
        self._socket = sock
        self._target = target
        self._clients: OrderedDict[Any, tuple[int, float]] = OrderedDict()
        """Client address to (gateway port, time of the last datagram), longest idle first."""
        self._next_port = FIRST_EPHEMERAL

    async def run(self) -> None:
        driver, sock = self._driver, self._socket
        try:
            while True:
                for _ in range(BATCH):
                    try:
                        payload, client = sock.recvfrom(65_535)
                    except BlockingIOError:
                        break
                    except OSError:
                        continue  # the ICMP error of an earlier reply
                    self._to_guest(payload, client)
                driver.pump()
                with trio.move_on_after(UDP_IDLE if self._clients else float("inf")):
                    await trio.lowlevel.wait_readable(sock)
                self._forget_idle()
        finally:
            for port, _ in self._clients.values():
                driver.unbind_datagrams((driver.network.gateway_ip, port))
            trio.lowlevel.notify_closing(sock)
            sock.close()

    def _to_guest(self, payload: bytes, client: Any) -> None:
        driver = self._driver
        known = self._clients.pop(client, None)
        port = known[0] if known else self._allocate(client)
        self._clients[client] = (port, driver.now())
        driver.stack.send_datagram(driver.network.gateway_ip, port, *self._target, payload, driver.now())

    def _allocate(self, client: Any) -> int:
        driver = self._driver
        if len(self._clients) >= MAX_UDP_CLIENTS:
            _, (old, _) = self._clients.popitem(last=False)
            driver.unbind_datagrams((driver.network.gateway_ip, old))
        while True:
            port = self._next_port
            self._next_port = port + 1 if port < 65_535 else FIRST_EPHEMERAL
            if driver.bind_datagrams((driver.network.gateway_ip, port), partial(self._from_guest, client)):
                return port

    def _from_guest(self, client: Any, event: DatagramReceived) -> None:
        if (event.source_ip, event.source_port) != self._target:
            self._driver.stack.counters.drop("udp_unsolicited")
            return
        if client in self._clients:
            port, _ = self._clients.pop(client)
            self._clients[client] = (port, self._driver.now())
        try:
            self._socket.sendto(event.payload, client)
        except OSError:
            self._driver.stack.counters.drop("udp_client_gone")

    def _forget_idle(self) -> None:
        driver = self._driver
        while self._clients:
            client, (port, last) = next(iter(self._clients.items()))
            if last + UDP_IDLE > driver.now():
                return
            del self._clients[client]
            driver.unbind_datagrams((driver.network.gateway_ip, port))


def parse_remote(remote: str) -> tuple[bytes, int]:
    """(address, port) of a tcp or udp remote: literally ``IPv4:port``.

    Raises:
        ForwardError: with gvproxy's text.
    """
    if remote.count(":") != 1:
        raise ForwardError("remote", "invalid remote addr")
    host, _, port_text = remote.partition(":")
    if not (port_text.isascii() and port_text.isdigit()):
        raise ForwardError("remote", f'strconv.ParseUint: parsing "{port_text}": invalid syntax')
    if int(port_text) > 65_535:
        raise ForwardError("remote", f'strconv.ParseUint: parsing "{port_text}": value out of range')
    try:
        return parse_ip(host), int(port_text)
    except ConfigError as error:
        raise ForwardError("remote", f"invalid remote addr: {error}") from None


def split_local(local: str) -> tuple[str, int]:
    """(host, port) of a Go listen address; host empty for all interfaces.

    Raises:
        ForwardError: not ``host:port``.
    """
    if not local:
        return "", 0
    host, colon, port_text = local.rpartition(":")
    if not colon:
        raise ForwardError("bind", f"listen tcp: address {local}: missing port in address")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ForwardError("bind", f"listen tcp: address {local}: too many colons in address")
    if not (port_text.isascii() and port_text.isdigit()) or int(port_text) > 65_535:
        raise ForwardError("bind", f"listen tcp: address {local}: invalid port")
    return host, int(port_text)


def bind_error(protocol: str, local: str, error: OSError) -> ForwardError:
    """The Go text of a bind error, and its code; EACCES names the sysctl."""
    what = {
        errno.EADDRINUSE: "address already in use",
        errno.EACCES: "permission denied",
        errno.EADDRNOTAVAIL: "cannot assign requested address",
    }.get(error.errno or 0, (error.strerror or str(error)).lower())
    text = f"listen {protocol} {local}: bind: {what}"
    if error.errno != errno.EACCES:
        return ForwardError("bind", text)
    hint = "; use a port from 1024 up"
    if sys.platform == "linux":
        hint += ", or lower net.ipv4.ip_unprivileged_port_start"
    return ForwardError("privileged", text + hint)


async def _listen_tcp(local: str) -> list[trio.SocketListener]:
    host, port = split_local(local)
    # An empty host is Go's dual-stack wildcard: one listener per family here.
    return await trio.open_tcp_listeners(port, host=host or None)


def _bind_udp(local: str) -> socket.socket:
    host, port = split_local(local)
    family = socket.AF_INET6 if ":" in host or (not host and socket.has_dualstack_ipv6()) else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        if family == socket.AF_INET6 and not host:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind((host, port))
    except BaseException:
        sock.close()
        raise
    return sock


def _peer_text(sock: socket.socket) -> str:
    try:
        host, port = sock.getpeername()[:2]
    except OSError:
        return "gone"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
