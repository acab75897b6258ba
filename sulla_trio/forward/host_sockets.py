"""Sockets of the host's own stack, as every forward has them: options, names, and the words for a bind that failed."""

from __future__ import annotations

import errno
import socket
import struct
import sys
from typing import Final

from sulla_trio.errors import ForwardError

RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # struct linger: on, 0 s
RESERVED: Final = 64
"""Descriptors for API, DNS, control connections and the log (DESIGN law 6)."""


def tune(sock: socket.socket) -> None:
    """Options of a host-side TCP socket: no Nagle (whoever sends has done it) and keep-alive.

    The buffers stay the kernel's to tune: a fixed SO_SNDBUF is clamped to net.core.wmem_max, far below what it grows to. So
    is the unsent part of them: trio lets 16 KiB of it be on a stream that it has accepted, a wake-up for each 16 KiB.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 0)  # the system's own


def reset_on_close(sock: socket.socket) -> None:
    """Closing `sock` will send a RST: what was cut off must not look complete."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    except OSError:
        pass  # a socket the peer has reset refuses options on some systems


def address_text(host: str, port: int) -> str:
    """``address:port``, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def peer_text(sock: socket.socket) -> str:
    """The other end's ``address:port``, or ``gone``."""
    try:
        host, port = sock.getpeername()[:2]
    except OSError:
        return "gone"
    return address_text(host, port)


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


class Descriptors:
    """How many descriptors forwards may hold together: one that would take too many is refused before the kernel says so.

    Of the process's limit, `RESERVED` stay for what is not a forward.
    """

    def __init__(self, limit: int) -> None:
        self.free = max(0, limit - RESERVED)

    def take(self, count: int) -> bool:
        """False, and nothing is taken, where so many are not free."""
        if count > self.free:
            return False
        self.free -= count
        return True

    def give(self, count: int) -> None:
        """What `take` took is closed."""
        self.free += count
