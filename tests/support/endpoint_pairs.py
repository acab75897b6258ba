"""Connected pairs: an endpoint of each kind over each kind of socket, and the plain socket at its other end."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

from sulla_trio.link.endpoint import Endpoint
from sulla_trio.link.endpoint_threads import ThreadedEndpoint

KINDS: dict[str, Callable[[socket.socket, str], Endpoint]] = {"readiness": Endpoint, "threads": ThreadedEndpoint}


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        left = socket.create_connection(listener.getsockname())
        return left, listener.accept()[0]


SOCKETS: dict[str, Callable[[], tuple[socket.socket, socket.socket]]] = {"unix": socket.socketpair, "tcp": tcp_pair}


def threads_of_endpoints() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith(("receive ", "send ", "accept "))]


def wait_for_no_thread() -> None:
    """Until the threads of closed endpoints have ended; an AssertionError names those that do not."""
    deadline = time.monotonic() + 20
    while threads_of_endpoints():
        assert time.monotonic() < deadline, threads_of_endpoints()
        time.sleep(0.002)
