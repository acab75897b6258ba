"""A port proxy at work on this machine's loopback: its listeners on 127.0.0.1 and others, its upstream on 127.0.0.2."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

import trio

from sulla_trio.forward.proxy import PortProxy
from sulla_trio.services.events import EventLog
from sulla_trio.services.port_mapping import Binding, PortMapping

UPSTREAM = "127.0.0.2"


def free_port() -> int:
    """A port that nothing listens on at any address, for TCP and UDP."""
    while True:
        with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            tcp.bind(("0.0.0.0", 0))
            try:
                udp.bind(("0.0.0.0", tcp.getsockname()[1]))
            except OSError:
                continue
            return tcp.getsockname()[1]


def mapping(*bindings: tuple[str, str, int | str], remove: bool = False, container_port: str = "80") -> PortMapping:
    """A message of (protocol, HostIp, HostPort)."""
    return PortMapping(
        remove, tuple(Binding(container_port, protocol, ip, str(port)) for protocol, ip, port in bindings)
    )


def descriptors() -> dict[str, str]:
    """Every open descriptor of this process and what it is."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[name] = os.readlink(f"/proc/self/fd/{name}")
    return found


@contextlib.asynccontextmanager
async def proxying(
    upstream: str = UPSTREAM, *, leaves: int = 0, **options: Any
) -> AsyncIterator[tuple[PortProxy, EventLog]]:
    """A running proxy and its events; when it has ended all is closed but for `leaves` sockets that the test has opened."""
    events = EventLog(lambda: 1000.0)
    proxy = PortProxy(upstream, events, **{"limit": 1024, "strict": True, **options})
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.run)
        before = set(descriptors().values())
        try:
            yield proxy, events
        finally:
            nursery.cancel_scope.cancel()
    assert len({what for what in descriptors().values() if "socket" in what or "pipe" in what} - before) == leaves


async def until(condition: Any) -> None:
    """Until `condition()` holds: what other tasks and the kernel bring about has no event to wait for."""
    with trio.fail_after(20):
        while not condition():
            await trio.sleep(0.001)
