"""A connected byte stream to the kernel: four non-blocking calls, so that every transport looks the same above it.

Try the call first; wait only on `BlockingIOError` (a wait costs more than the call). Source: DESIGN section 3.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
from collections.abc import Callable
from typing import Final

import trio

from sulla_trio.errors import ConfigError
from sulla_trio.link.endpoint_url import EndpointUrl

Buffer = bytes | bytearray | memoryview
Address = str | tuple[object, ...]

MAX_BUFFERS: Final = 1024  # Linux's IOV_MAX: more in one sendmsg is EMSGSIZE
SOCKET_BUFFER: Final = 4 << 20  # asked for; the kernel clamps it to net.core.{r,w}mem_max
VSOCK_BUFFER: Final = 256 << 10  # the largest ring of a Hyper-V socket, the default credit of a virtio one

# Not every system has every family, and the type checker knows only its own.
AF_UNIX: Final[int | None] = getattr(socket, "AF_UNIX", None)
AF_VSOCK: Final[int | None] = getattr(socket, "AF_VSOCK", None)
AF_HYPERV: Final[int | None] = getattr(socket, "AF_HYPERV", None)

BACKLOG_RETRY: Final = 0.02
"""Seconds until a unix listener whose queue is full is tried again: the kernel tells nobody when it has room."""

_DARWIN_SOL_LOCAL: Final = 0
_DARWIN_LOCAL_PEERCRED: Final = 1
_XUCRED: Final = struct.Struct("=IIhxx16I")  # sys/ucred.h: version, uid, number of groups, groups
_UCRED: Final = struct.Struct("=iII")  # unix(7): pid, uid, gid


class Endpoint(trio.abc.AsyncResource):
    """One connected stream socket. Owns it.

    One task may wait for each direction at a time. After `aclose` every call raises `OSError`, and a waiter gets
    `trio.ClosedResourceError`.
    """

    __slots__ = ("_gather", "_socket", "name", "peer")

    def __init__(self, sock: socket.socket, name: str) -> None:
        sock.setblocking(False)
        tune(sock)
        self._socket = sock
        # Windows has no sendmsg.
        self._gather: Callable[[list[Buffer]], int] | None = getattr(sock, "sendmsg", None)
        self.name = name
        """The URL that it was made from, for logs."""
        self.peer = peer_of(sock)
        """The machine or user at the other end, for logs and for comparing: `peer_of`."""

    def fileno(self) -> int:
        return self._socket.fileno()

    def recv_into(self, buffer: memoryview) -> int:
        """Bytes read into `buffer`; 0 at end of stream. Raises BlockingIOError, OSError."""
        return self._socket.recv_into(buffer)

    def send_gathered(self, buffers: list[Buffer]) -> int:
        """Bytes of `buffers`, in order, that the kernel took in one call. Raises BlockingIOError, OSError."""
        if self._gather:
            return self._gather(buffers if len(buffers) <= MAX_BUFFERS else buffers[:MAX_BUFFERS])
        # One join costs a copy, many sends would cost a wake-up of the peer each.
        return self._socket.send(b"".join(buffers[:MAX_BUFFERS]))

    async def wait_readable(self) -> None:
        """Until `recv_into` would not block. Raises trio.ClosedResourceError."""
        self._check_open()
        await trio.lowlevel.wait_readable(self._socket)

    async def wait_writable(self) -> None:
        """Until `send_gathered` would not block. Raises trio.ClosedResourceError."""
        self._check_open()
        await trio.lowlevel.wait_writable(self._socket)

    async def aclose(self) -> None:
        """Close now; never blocks. Waiters get `trio.ClosedResourceError`."""
        self.close()
        await trio.lowlevel.cancel_shielded_checkpoint()

    def close(self) -> None:
        close_socket(self._socket)

    def _check_open(self) -> None:
        if self._socket.fileno() < 0:
            raise trio.ClosedResourceError(f"{self.name} is closed")


def close_socket(sock: socket.socket) -> None:
    """Close `sock`; who waits for it gets `trio.ClosedResourceError`. Twice is no error."""
    if sock.fileno() >= 0:
        trio.lowlevel.notify_closing(sock)
        sock.close()


def new_socket(family: int | None, url: EndpointUrl) -> socket.socket:
    """A stream socket of `family`, not blocking, with a link's options.

    Raises:
        ConfigError: this system does not know the family.
        OSError: no more descriptors, or the family's module is not there.
    """
    if family is None:
        raise ConfigError(f"{url.text}: this system has no {url.scheme} sockets")
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setblocking(False)
    tune(sock)
    return sock


async def connect_socket(sock: socket.socket, address: Address) -> None:
    """Connect a socket that does not block to `address`. Failure and cancellation close it.

    Raises:
        OSError: the connection failed.
    """
    try:
        while True:
            await trio.lowlevel.checkpoint_if_cancelled()
            try:
                sock.connect(address)
            except BlockingIOError:
                if sock.family == AF_UNIX:
                    await trio.sleep(BACKLOG_RETRY)
                    continue
                await trio.lowlevel.wait_writable(sock)
                if number := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    raise OSError(number, os.strerror(number)) from None
            await trio.lowlevel.checkpoint()
            return
    except BaseException:
        sock.close()
        raise


def tune(sock: socket.socket) -> None:
    """Buffers and delays of a link's socket; before connect and listen, because that is when some transports read them.

    Never fails: macOS refuses options on a socket whose peer has gone, which the next call tells better.
    """
    with contextlib.suppress(OSError):
        size = VSOCK_BUFFER if sock.family in (AF_VSOCK, AF_HYPERV) else SOCKET_BUFFER
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, size)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def peer_of(sock: socket.socket) -> str:
    """Who is at the other end of `sock`, as far as the kernel vouches for it.

    ``vsock:CID``, ``hyperv:GUID``, ``tcp:IP``, ``unix:UID`` (the user that connected, or that called listen); ``?`` for
    what cannot be told (the peer has gone). Ports and process numbers are left out: they differ between two connections of
    the same peer.
    """
    try:
        host = _peer_uid(sock) if sock.family == AF_UNIX else str(sock.getpeername()[0])
    except (OSError, struct.error):
        host = "?"
    if sock.family == AF_UNIX:
        return f"unix:{host}"
    if sock.family == AF_VSOCK:
        return f"vsock:{host}"
    if sock.family == AF_HYPERV:
        return f"hyperv:{host.lower()}"
    return f"tcp:{host}" if sock.family in (socket.AF_INET, socket.AF_INET6) else "fd:?"


def _peer_uid(sock: socket.socket) -> str:
    if sys.platform == "linux":
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        return str(_UCRED.unpack(credentials)[1])
    elif sys.platform == "darwin":
        credentials = sock.getsockopt(_DARWIN_SOL_LOCAL, _DARWIN_LOCAL_PEERCRED, _XUCRED.size)
        return str(_XUCRED.unpack(credentials)[1])
    else:
        return "?"
