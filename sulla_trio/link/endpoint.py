"""A connected byte stream to the kernel: four non-blocking calls, so that every transport looks the same above it.

An endpoint is named by a URL (specs: DESIGN section 6): ``fd://N`` an inherited connected socket, ``unix:///path``,
``tcp://host:port``, ``vsock://CID:PORT`` (``ANY`` when listening). Try the call first; wait only on `BlockingIOError`
(a wait costs more than the call).
"""

from __future__ import annotations

import os
import socket
import stat
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import trio

from sulla_trio.errors import ConfigError

Buffer = bytes | bytearray | memoryview

MAX_BUFFERS: Final = 1024  # Linux's IOV_MAX: more in one sendmsg is EMSGSIZE
SOCKET_BUFFER: Final = 4 << 20  # asked for; the kernel clamps it to net.core.{r,w}mem_max
VSOCK_BUFFER: Final = 256 << 10  # both peers' default credit, DESIGN section 3


class Endpoint:
    """One connected stream socket. Owns it.

    One task may wait for each direction at a time. After `aclose` every call raises `OSError`, and a waiter gets
    `trio.ClosedResourceError`.
    """

    __slots__ = ("_gather", "_socket", "name")

    def __init__(self, sock: socket.socket, name: str) -> None:
        sock.setblocking(False)
        size = VSOCK_BUFFER if sock.family == getattr(socket, "AF_VSOCK", -1) else SOCKET_BUFFER
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, size)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = sock
        self._gather = hasattr(sock, "sendmsg")
        self.name = name

    def fileno(self) -> int:
        return self._socket.fileno()

    def recv_into(self, buffer: memoryview) -> int:
        """Bytes read into `buffer`; 0 at end of stream. Raises BlockingIOError, OSError."""
        return self._socket.recv_into(buffer)

    def send_gathered(self, buffers: list[Buffer]) -> int:
        """Bytes of `buffers`, in order, that the kernel took in one call. Raises BlockingIOError, OSError."""
        if self._gather:
            return self._socket.sendmsg(buffers if len(buffers) <= MAX_BUFFERS else buffers[:MAX_BUFFERS])
        # Windows has no sendmsg: one join costs a copy, many sends would cost a wake-up of the peer each.
        return self._socket.send(b"".join(buffers[:MAX_BUFFERS]))

    async def wait_readable(self) -> None:
        await trio.lowlevel.wait_readable(self._socket)

    async def wait_writable(self) -> None:
        await trio.lowlevel.wait_writable(self._socket)

    async def aclose(self) -> None:
        """Close now; never blocks. Waiters get `trio.ClosedResourceError`."""
        self.close()
        await trio.lowlevel.cancel_shielded_checkpoint()

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()


class EndpointUrl(NamedTuple):
    """A parsed endpoint URL. `host` is a path for unix, a CID or ``ANY`` for vsock, empty for fd; `port` the fd's number
    for ``fd://``."""

    scheme: str
    host: str
    port: int
    text: str


def parse_endpoint(url: str, default_port: int | None = None) -> EndpointUrl:
    """Parse an endpoint URL.

    Raises:
        ConfigError: unknown scheme or a missing or bad part; the text names the URL.
    """
    parts = urlsplit(url)
    try:
        match parts.scheme:
            case "fd":
                return EndpointUrl("fd", "", int(parts.netloc), url)
            case "unix" if parts.path and not parts.netloc:
                return EndpointUrl("unix", parts.path, 0, url)
            case "tcp" if parts.hostname and parts.port is not None:
                return EndpointUrl("tcp", parts.hostname, parts.port, url)
            case "vsock":
                host, _, port = parts.netloc.partition(":")
                if host != "ANY":
                    int(host)
                if not port and default_port is None:
                    raise ValueError(url)
                return EndpointUrl("vsock", host, int(port or default_port or 0), url)
    except ValueError:
        pass
    raise ConfigError(f"invalid endpoint {url}: want fd://N, unix:///path, tcp://host:port or vsock://CID:PORT")


def inherited_socket(url: EndpointUrl) -> socket.socket:
    """The connected socket behind ``fd://N``, taken over (close-on-exec).

    Raises:
        ConfigError: N is not an open stream socket.
    """
    try:
        sock = socket.socket(fileno=url.port)
    except OSError as error:
        raise ConfigError(f"{url.text} is not an inherited socket: {error.strerror}") from None
    if sock.type != socket.SOCK_STREAM:
        sock.detach()
        raise ConfigError(f"{url.text} is not a stream socket")
    sock.set_inheritable(False)
    return sock


async def connect(url: EndpointUrl) -> Endpoint:
    """Connect to (or take over) the stream that `url` names.

    Raises:
        ConfigError: `url` names nothing that can be connected to.
        OSError: the connection failed.
    """
    match url.scheme:
        case "fd":
            await trio.lowlevel.checkpoint()
            return Endpoint(inherited_socket(url), url.text)
        case "unix":
            stream = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            address: object = url.host
        case "tcp":
            stream = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            address = (url.host, url.port)
        case _:
            if not hasattr(socket, "AF_VSOCK"):
                raise ConfigError(f"{url.text}: this system has no AF_VSOCK")
            stream = trio.socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
            address = (int(url.host), url.port)
    try:
        await stream.connect(address)
    except BaseException:
        stream.close()
        raise
    return Endpoint(socket.socket(fileno=stream.detach()), url.text)


async def listen(url: EndpointUrl) -> trio.SocketListener:
    """A listener for guests' data connections.

    An existing socket file of a dead listener is replaced, one that answers is an error.

    Raises:
        ConfigError: `url` cannot be listened on.
        OSError: bind or listen failed.
    """
    match url.scheme:
        case "unix":
            await remove_stale_socket(url.host)
            sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            address: object = url.host
        case "tcp":
            sock = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            address = (url.host, url.port)
            if os.name == "posix":  # on Windows the option would let another program steal the port
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        case "vsock" if hasattr(socket, "AF_VSOCK"):
            sock = trio.socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
            address = (socket.VMADDR_CID_ANY if url.host == "ANY" else int(url.host), url.port)
        case _:
            raise ConfigError(f"cannot listen on {url.text}: want unix:///path, tcp://host:port or vsock://ANY:PORT")
    try:
        await sock.bind(address)
        if url.scheme == "unix":
            os.chmod(url.host, 0o600)
        sock.listen(128)
    except BaseException:
        sock.close()
        raise
    return trio.SocketListener(sock)


async def remove_stale_socket(path: str) -> None:
    """Unlink `path` if it is the socket file of a listener that is gone.

    Raises:
        ConfigError: something answers there, or it is not a socket.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):  # connect(2) refuses a plain file too: never unlink one
        raise ConfigError(f"{path} exists and is not a socket; choose another path")
    probe = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        await probe.connect(path)
    except (ConnectionRefusedError, FileNotFoundError):
        os.unlink(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be probed: {error.strerror}") from None
    else:
        raise ConfigError(f"{path} is in use by a running listener; end it or choose another path")
    finally:
        probe.close()


def take_socket(stream: trio.SocketStream) -> socket.socket:
    """The stdlib socket of an accepted stream, non-blocking; `stream` is spent afterwards."""
    sock = socket.socket(fileno=stream.socket.detach())
    sock.setblocking(False)
    return sock
