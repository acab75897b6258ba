"""wsl-proxy: lets the other distros of a VM reach ports that are published inside the isolated network namespace.

Port mappings come over a unix socket, one JSON value in each connection; nothing is written back, the end of the connection
says that the mapping is in place. Source: specs/daemons.md sections 3.5 and 6.
"""

from __future__ import annotations

import logging
import signal
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

import trio

from sulla_trio.errors import ConfigError
from sulla_trio.forward.proxy import PortProxy
from sulla_trio.link.endpoint_listener import ListenerFile, remove_stale_socket
from sulla_trio.link.process import raise_descriptor_limit
from sulla_trio.services.events import EventLog
from sulla_trio.services.gojson_scan import GoJsonError
from sulla_trio.services.port_mapping import MAX_MESSAGE, MappingReader, PortMapping

log = logging.getLogger(__name__)

MESSAGE_TIMEOUT: Final = 10.0
"""Seconds for a client to say all it has to say; the guest agent needs one write."""
MAX_CLIENTS: Final = 32
"""Control connections that have not said all yet; the oldest goes. An agent opens one at a time for each of its watchers."""
BACKLOG: Final = 4096
"""Of the control socket, as the Go daemon asks for (the kernel clamps it): beyond it a client is refused, not held up."""


@dataclass(frozen=True, slots=True)
class WslProxyConfig:
    """What the command line says, checked."""

    socket_file: str
    upstream: str
    """An address; the port is the published one."""
    events: str = ""
    """Where events are served, ``unix:///path``; empty: nowhere."""
    strict: bool = False


async def wsl_proxy(config: WslProxyConfig) -> int:
    """Run until SIGINT or SIGTERM. Returns the exit status, 0.

    Raises:
        ConfigError: the control socket or the events' one cannot be had.
    """
    events = EventLog(time.time)
    proxy = PortProxy(config.upstream, events, limit=raise_descriptor_limit(), strict=config.strict)
    # Around the nursery: a second signal must not cut the cleaning short.
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch_signals, signals, nursery.cancel_scope)
            await nursery.start(proxy.run)
            await nursery.start(ControlServer(proxy).serve, config.socket_file)
            log.info("Proxy server started accepting on %s, forwarding to %s", config.socket_file, config.upstream)
            events.emit("daemon.ready", daemon="wsl-proxy", upstream=config.upstream)
            if config.events:
                await nursery.start(_serve_events, _Source(events), config.events)
    return 0


@dataclass(frozen=True, slots=True)
class _Source:
    """What the API needs of a daemon."""

    events: EventLog


async def _serve_events(
    source: _Source, url: str, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    # Quart and Hypercorn take half a second to import: who has not asked for events does not pay for them.
    from sulla_trio.api.serve import serve_events

    await serve_events(source, url, task_status=task_status)


async def _watch_signals(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for _ in signals:
        log.info("Shutting down...")
        scope.cancel()


class ControlServer:
    """The control socket: each connection brings one mapping.

    Mappings are applied in the order in which their last bytes came: an agent that does not wait for the end of its
    connection adds and removes a port in that order all the same.
    """

    def __init__(self, proxy: PortProxy) -> None:
        self._proxy = proxy
        self._reading: dict[trio.CancelScope, None] = {}
        """Connections that have not said all yet, oldest first."""

    async def serve(self, path: str, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Accept on the socket file `path` until cancelled; then it is removed.

        Raises:
            ConfigError: it cannot be listened on.
        """
        listener = await listen(path)
        file = ListenerFile(path)
        try:
            task_status.started()
            await trio.serve_listeners(self._handle, [listener])
        finally:
            file.remove()

    async def _handle(self, stream: trio.SocketStream) -> None:
        """One connection; its end, which `serve_listeners` brings about, is the answer."""
        if len(self._reading) >= MAX_CLIENTS:
            oldest = next(iter(self._reading))
            del self._reading[oldest]
            oldest.cancel()
        mapping, failure = None, f"not complete after {MESSAGE_TIMEOUT:g} s, or too many others are waiting"
        with trio.move_on_after(MESSAGE_TIMEOUT) as scope:
            self._reading[scope] = None
            try:
                mapping = await _receive(stream)
            except GoJsonError as error:
                failure = str(error)
            except trio.BrokenResourceError:
                failure = "connection reset by peer"
            finally:
                self._reading.pop(scope, None)
        if mapping is None:
            log.error("port server decoding received payload error: %s", failure)
        else:
            self._proxy.apply(mapping)


async def _receive(stream: trio.SocketStream) -> PortMapping:
    reader = MappingReader()
    while data := await stream.receive_some(MAX_MESSAGE + 1):
        mapping = reader.feed(bytes(data))
        if mapping is not None:
            return mapping
    return reader.finish()


async def listen(path: str) -> trio.SocketListener:
    """A listener on the socket file `path`, with the mode that the umask leaves; the file of a dead one is replaced.

    Raises:
        ConfigError: it cannot be had.
    """
    text = f"failed to create listener for published ports: listen unix {path}"
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        await remove_stale_socket(path)
        # At once, not in a thread as trio binds: whoever sees the file may connect.
        sock.bind(path)
        sock.listen(BACKLOG)
        return trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    except BaseException as error:
        sock.close()
        if isinstance(error, ConfigError):
            raise ConfigError(f"{text}: {error}") from None
        if isinstance(error, OSError):
            raise ConfigError(f"{text}: bind: {(error.strerror or str(error)).lower()}") from None
        raise
