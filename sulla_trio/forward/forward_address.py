"""What a forward's two addresses mean: the listeners on the host, and the port in the virtual network.

Texts are gvproxy's (specs/gvproxy.md section 2.5). A host of ``localhost`` is both loopbacks, 127.0.0.1 and ::1: a program
that looks the name up may try either.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import select
import socket
import sys
from typing import Final, NamedTuple

import trio

from sulla_trio.config import parse_ip
from sulla_trio.errors import ConfigError, ForwardError
from sulla_trio.forward.inbound_udp import bind_udp

LOOPBACKS: Final = ("127.0.0.1", "::1")
NO_IPV6: Final = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
"""What binding ::1 fails with on a host without IPv6."""
BATCH: Final = 64
"""Ports bound before other tasks run."""
BACKLOG: Final = 4096
"""Connections that wait to be accepted; Linux's own bound by default."""
RESERVED_DESCRIPTORS: Final = 64
_RANGE: Final = re.compile(r"(.*):([0-9]{1,5})-([0-9]{1,5})")


def check_protocol(protocol: str) -> None:
    if protocol in ("unix", "npipe"):
        raise ForwardError("protocol", f"{protocol} forwards are not supported by this host-switch")
    if protocol not in ("tcp", "udp"):
        raise ForwardError("protocol", f"unknown protocol {protocol}")


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
        raise ForwardError("local", f"listen tcp: address {local}: missing port in address")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ForwardError("local", f"listen tcp: address {local}: too many colons in address")
    if not (port_text.isascii() and port_text.isdigit()) or int(port_text) > 65_535:
        raise ForwardError("local", f"listen tcp: address {local}: invalid port")
    return host, int(port_text)


class ForwardPorts(NamedTuple):
    """Both addresses of a forward, read: `size` ports of `host` from `first` on, to as many of `remote_ip`."""

    host: str
    first: int
    size: int
    remote_ip: bytes
    remote_first: int

    def target(self, port: int) -> tuple[bytes, int]:
        """Where the host's `port` leads."""
        return self.remote_ip, self.remote_first + (port - self.first if self.size > 1 else 0)


def parse_forward(local: str, remote: str) -> ForwardPorts:
    """Read both addresses. A range is ``host:FIRST-LAST`` to ``IPv4:FIRST-LAST``, as many ports on both sides.

    Raises:
        ForwardError: with gvproxy's text; ours for what is wrong with a range.
    """
    here, there = (_RANGE.fullmatch(text) for text in (local, remote))
    if here is None or there is None:
        ip, port = parse_remote(remote)
        return ForwardPorts(*split_local(local), 1, ip, port)
    (first, count), (remote_first, remote_count) = _bounds(here), _bounds(there)
    if count != remote_count:
        raise ForwardError(
            "remote", f"{local} has {count} ports and {remote} has {remote_count}; want as many on both sides"
        )
    host, _ = split_local(f"{here[1]}:{first}")
    ip, _ = parse_remote(f"{there[1]}:{remote_first}")
    return ForwardPorts(host, first, count, ip, remote_first)


def _bounds(found: re.Match[str]) -> tuple[int, int]:
    """The first port of a range, and how many it has."""
    first, last = int(found[2]), int(found[3])
    if not 1 <= first <= last <= 65_535:
        raise ForwardError("local", f"{found[2]}-{found[3]} is no range of ports; want for example 8000-8099")
    return first, last - first + 1


async def listen_tcp(ports: ForwardPorts) -> list[trio.abc.Listener[trio.SocketStream]]:
    """Listeners on every address that is meant: both loopbacks for ``localhost``, both families for an empty host.

    Raises:
        OSError: one of them cannot be had; then none is. `filename` is its address, for a range.
    """
    if ports.size == 1 and ports.host.lower() != "localhost":
        return list(await trio.open_tcp_listeners(ports.first, host=ports.host or None))
    sockets = await _bind_all(ports, socket.SOCK_STREAM)
    if ports.size > 1 and hasattr(select, "epoll"):
        return [RangeListener(sockets)]
    return [trio.SocketListener(trio.socket.from_stdlib_socket(sock)) for sock in sockets]


async def listen_udp(ports: ForwardPorts) -> list[socket.socket]:
    """Sockets, as `listen_tcp`; one of both families for an empty host."""
    return await _bind_all(ports, socket.SOCK_DGRAM)


async def _bind_all(ports: ForwardPorts, kind: socket.SocketKind) -> list[socket.socket]:
    if ports.size > _descriptors():
        raise OSError(errno.EMFILE, f"{ports.size} ports need as many descriptors; {_descriptors()} are allowed")
    hosts = LOOPBACKS if ports.host.lower() == "localhost" else (await _literal(ports.host, ports.first),)
    if kind == socket.SOCK_STREAM and hosts == ("",):
        hosts = ("0.0.0.0", "::")
    sockets: list[socket.socket] = []
    first = ports.first
    try:
        for host in hosts:
            try:
                sockets.append(_bind(kind, host, first))
            except OSError as error:
                if sockets and error.errno in NO_IPV6:
                    continue
                raise
            first = sockets[0].getsockname()[1]  # where it was 0
            for offset in range(1, ports.size):
                if offset % BATCH == 0:
                    await trio.lowlevel.checkpoint()
                sockets.append(_bind(kind, host, first + offset))
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    await trio.lowlevel.cancel_shielded_checkpoint()
    return sockets


def _bind(kind: socket.SocketKind, host: str, port: int) -> socket.socket:
    try:
        return bind_udp(host, port) if kind == socket.SOCK_DGRAM else _bind_tcp(host, port)
    except OSError as error:
        error.filename = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        raise


def _bind_tcp(host: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if os.name == "posix":  # elsewhere it would let two programs have one port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _descriptors() -> int:
    """How many a forward may take: the limit, less what the API, DNS and links need (DESIGN law 6)."""
    if sys.platform == "win32":
        return 65_535
    import resource

    return max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - RESERVED_DESCRIPTORS)


async def _literal(host: str, port: int) -> str:
    """`host` or, if it is a name, its first address."""
    try:
        ipaddress.ip_address(host or "0.0.0.0")
    except ValueError:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        return str(found[0][4][0])
    await trio.lowlevel.cancel_shielded_checkpoint()
    return host


class RangeListener(trio.abc.Listener[trio.SocketStream]):
    """Many listening sockets as one listener: one task and one wake-up, where a task for each port would cost 10 KB."""

    def __init__(self, sockets: list[socket.socket]) -> None:
        self._sockets = {sock.fileno(): sock for sock in sockets}
        self._poll = select.epoll(len(sockets))
        for descriptor in self._sockets:
            self._poll.register(descriptor, select.EPOLLIN)
        self._ready: list[int] = []

    async def accept(self) -> trio.SocketStream:
        """The next connection to any of the ports. Raises OSError and trio.ClosedResourceError as `trio.SocketListener`."""
        await trio.lowlevel.checkpoint()
        while True:
            if self._poll.closed:
                raise trio.ClosedResourceError
            if not self._ready:
                self._ready = [descriptor for descriptor, _ in self._poll.poll(0)]
            while self._ready:
                try:
                    accepted, _ = self._sockets[self._ready.pop()].accept()
                except (BlockingIOError, ConnectionAbortedError):
                    continue
                accepted.setblocking(False)
                return trio.SocketStream(trio.socket.from_stdlib_socket(accepted))
            await trio.lowlevel.wait_readable(self._poll.fileno())

    async def aclose(self) -> None:
        if not self._poll.closed:
            trio.lowlevel.notify_closing(self._poll.fileno())
            self._poll.close()
            for sock in self._sockets.values():
                sock.close()
        await trio.lowlevel.checkpoint()
