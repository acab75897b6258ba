"""A listener whose connections are endpoints, and the files that unix ones leave.

The file of a listener is its owner's alone (0600 before the first connection can be made) and goes with it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from typing import Final

import trio

from sulla_trio.errors import ConfigError
from sulla_trio.link.endpoint_socket import AF_UNIX, Endpoint
from sulla_trio.link.endpoint_url import EndpointUrl

CONNECTION_GONE: Final = frozenset(
    getattr(errno, name)
    for name in (
        *("EPERM", "ECONNABORTED", "ECONNRESET", "EPROTO", "ENETDOWN", "ENOPROTOOPT", "EHOSTDOWN", "ENONET"),
        *("EHOSTUNREACH", "EOPNOTSUPP", "ENETUNREACH", "ETIMEDOUT"),
    )
    if hasattr(errno, name)
)
"""accept(2) tells these of the connection that it has taken from the queue, not of the listener."""


class EndpointListener(trio.abc.Listener[Endpoint]):
    """A listening socket; `trio.serve_listeners` runs on it. Owns the socket and, with `file`, the file at that path."""

    def __init__(self, sock: socket.socket, url: EndpointUrl, file: str = "") -> None:
        sock.setblocking(False)
        self._socket = sock
        self._file = ListenerFile(file) if file else None
        self.url = url
        """Where it listens; the port is the real one if 0 was asked for."""

    async def accept(self) -> Endpoint:
        """The next connection.

        Raises:
            OSError: out of descriptors or memory; the listener still is one.
            trio.ClosedResourceError: it is closed, maybe by another task meanwhile.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            if self._socket.fileno() < 0:
                raise trio.ClosedResourceError(f"{self.url.text} is closed")
            try:
                sock, _ = self._socket.accept()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._socket)
            except OSError as error:
                if error.errno not in CONNECTION_GONE:
                    raise
                await trio.lowlevel.checkpoint()  # a queue full of dead connections must not hold up the others
            else:
                endpoint = Endpoint(sock, self.url.text)
                await trio.lowlevel.cancel_shielded_checkpoint()
                return endpoint

    async def aclose(self) -> None:
        """Close now and remove the file, if it is still ours; never blocks."""
        self.close()
        await trio.lowlevel.cancel_shielded_checkpoint()

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            # The file first: who connects between the two would be in a queue that nobody reads.
            if self._file is not None:
                self._file.remove()
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()


class ListenerFile:
    """The file that bind made at `path`: removed only while it is the same file, another process may have replaced it."""

    __slots__ = ("_made", "_path")

    def __init__(self, path: str) -> None:
        self._path = path
        self._made = self._identity()

    def _identity(self) -> tuple[int, int] | None:
        try:
            status = os.lstat(self._path)
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def remove(self) -> None:
        if self._made is not None and self._identity() == self._made:
            with contextlib.suppress(OSError):
                os.unlink(self._path)


async def remove_stale_socket(path: str) -> None:
    """Unlink `path` if it is the socket file of a listener that is gone.

    Raises:
        ConfigError: something answers there, or it is not a socket.
        OSError: it cannot be looked at or unlinked.
    """
    await trio.lowlevel.checkpoint()
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):  # connect(2) refuses a plain file too: never unlink one
        raise ConfigError(f"{path} exists and is not a socket; choose another path")
    if AF_UNIX is None:
        raise ConfigError(f"{path}: this system has no unix sockets")
    with socket.socket(AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        except BlockingIOError:  # its queue is full: alive, if not well
            raise ConfigError(
                f"{path} is in use by a listener that does not answer; end it or choose another path"
            ) from None
        except OSError as error:
            raise ConfigError(f"{path} cannot be probed: {error.strerror or error}") from None
        else:
            raise ConfigError(f"{path} is in use by a running listener; end it or choose another path")
