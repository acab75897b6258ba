"""What a forward's two addresses mean: the listeners on the host, and the port in the virtual network.

Texts are gvproxy's (specs/gvproxy.md section 2.5). A host of ``localhost`` is both loopbacks, 127.0.0.1 and ::1: a program
that looks the name up may try either.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from typing import Final

import trio

from sulla_trio.config import parse_ip
from sulla_trio.errors import ConfigError, ForwardError
from sulla_trio.forward.inbound_udp import bind_udp

LOOPBACKS: Final = ("127.0.0.1", "::1")
NO_IPV6: Final = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
"""What binding ::1 fails with on a host without IPv6."""


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


async def listen_tcp(local: str) -> list[trio.SocketListener]:
    """Listeners on `local`: one per family for all interfaces (Go's dual-stack wildcard) and for ``localhost``.

    Raises:
        ForwardError: not ``host:port``.
        OSError: one of them cannot be had; then none is.
    """
    host, port = split_local(local)
    if host.lower() != "localhost":
        return await trio.open_tcp_listeners(port, host=host or None)
    listeners: list[trio.SocketListener] = []
    try:
        for loopback in LOOPBACKS:
            try:
                listeners += await trio.open_tcp_listeners(port, host=loopback)
            except OSError as error:
                if not listeners or error.errno not in NO_IPV6:
                    raise
            port = listeners[0].socket.getsockname()[1]
    except BaseException:
        for listener in listeners:
            listener.socket.close()
        raise
    return listeners


async def listen_udp(local: str) -> list[socket.socket]:
    """Sockets on `local`, as `listen_tcp`; one for all interfaces."""
    host, port = split_local(local)
    if host.lower() != "localhost":
        return [bind_udp(await _literal(host, port), port)]
    sockets: list[socket.socket] = []
    try:
        for loopback in LOOPBACKS:
            try:
                sockets.append(bind_udp(loopback, port))
            except OSError as error:
                if not sockets or error.errno not in NO_IPV6:
                    raise
            port = sockets[0].getsockname()[1]
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    await trio.lowlevel.cancel_shielded_checkpoint()
    return sockets


async def _literal(host: str, port: int) -> str:
    """`host` or, if it is a name, its first address."""
    try:
        ipaddress.ip_address(host or "0.0.0.0")
    except ValueError:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        return str(found[0][4][0])
    await trio.lowlevel.cancel_shielded_checkpoint()
    return host
