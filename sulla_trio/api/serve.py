"""Serving ASGI applications on any trio listener, and the two applications of one virtual network on theirs.

Quart and Hypercorn are imported by `serve_apis`, in a worker thread, while the network is already carrying frames.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import secrets
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import trio

from sulla_trio.api.access import LOCAL_HOSTS, Access
from sulla_trio.api.location import make_private, runtime_directory, sweep
from sulla_trio.config import NetworkConfig
from sulla_trio.errors import ConfigError
from sulla_trio.link import endpoint as endpoints

if TYPE_CHECKING:
    from sulla_trio.api.app import EventSource, Network
    from sulla_trio.api.http1 import AsgiApp, Limits

    class ServedNetwork(Network, Protocol):
        """A network whose API is served: it says where, and lets the gateway listen."""

        network: NetworkConfig
        own_listeners: set[tuple[str, int]]

        def listen_tcp(self, local_ip: bytes, port: int) -> trio.abc.Listener[Any]: ...


log = logging.getLogger(__name__)

GUEST_PORT: Final = 80
CRASH_LOG_INTERVAL: Final = 60.0
"""Seconds between two tracebacks of connections that crashed: it would be a bug, and a client may repeat it at will."""


async def serve_asgi(
    app: AsgiApp,
    listeners: Sequence[trio.abc.Listener[Any]],
    *,
    limits: Limits | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` on `listeners` until cancelled; then every connection and listener is closed at once.

    A connection that crashes is logged and ends alone. Lifespan events are not sent.
    """
    from hypercorn.config import Config
    from hypercorn.trio.worker_context import WorkerContext

    from sulla_trio.api.http1 import Connection, Limits

    config = Config()
    config.errorlog = log
    config.accesslog = None
    config.include_server_header = False
    context, limits = WorkerContext(None), limits or Limits()
    config.websocket_max_message_size = limits.body
    count, last_crash = 0, -CRASH_LOG_INTERVAL

    async def handle(stream: Any) -> None:
        nonlocal count, last_crash
        if count >= limits.connections:
            await trio.aclose_forcefully(stream)
            return
        count += 1
        try:
            await Connection(app, stream, config, context, limits).run()
        except Exception:
            if trio.current_time() - last_crash >= CRASH_LOG_INTERVAL:
                last_crash = trio.current_time()
                log.exception("an API connection crashed")
        finally:
            count -= 1

    await trio.serve_listeners(handle, list(listeners), task_status=_Adapter(task_status))


class _Adapter:
    """Reports `started()` without trio's list of listeners."""

    def __init__(self, inner: trio.TaskStatus[None]) -> None:
        self._inner = inner

    def started(self, _: object = None) -> None:
        self._inner.started()


async def serve_apis(
    network: ServedNetwork,
    listen: Sequence[str],
    *,
    limits: Limits | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the guest's API on the gateway and the host's on each URL of `listen`, until cancelled.

    Socket files, and the api file of a TCP listener, are removed at the end.

    Raises:
        ConfigError: a URL cannot be listened on.
    """
    guest = network.listen_tcp(network.network.gateway_ip, GUEST_PORT)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(trio.aclose_forcefully, guest)
        host: list[tuple[trio.abc.Listener[Any], Access | None]] = []
        for url in listen:
            host.append(await _open(network, url, stack))
        application = await _import_applications()
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(serve_asgi, application.guest_app(network), [guest], limits=limits))
            for listener, access in host:
                app = application.host_app(network, access)
                await nursery.start(partial(serve_asgi, app, [listener], limits=limits))
            task_status.started()


async def serve_events(
    source: EventSource,
    listen: str,
    *,
    limits: Limits | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve only the events of `source`, on one unix socket, until cancelled; then its file is removed.

    Raises:
        ConfigError: `listen` is no unix URL, or cannot be listened on.
    """
    url = endpoints.parse_endpoint(listen)
    if url.scheme != "unix":
        raise ConfigError(f"cannot serve events on {listen}: want unix:///path")
    async with AsyncExitStack() as stack:
        listener = await _open_unix(url, stack)
        application = await _import_applications()
        await serve_asgi(application.events_app(source), [listener], limits=limits, task_status=task_status)


async def _import_applications() -> Any:
    return await trio.to_thread.run_sync(importlib.import_module, "sulla_trio.api.app", abandon_on_cancel=True)


async def _open_unix(url: endpoints.EndpointUrl, stack: AsyncExitStack) -> trio.abc.Listener[Any]:
    try:
        _make_parent(Path(url.host).parent)
        listener = await endpoints.listen(url)
    except OSError as error:
        raise ConfigError(f"cannot serve the API on {url.text}: {(error.strerror or str(error)).lower()}") from None
    stack.push_async_callback(trio.aclose_forcefully, listener)
    stack.callback(_unlink_own, Path(url.host), os.stat(url.host))
    log.info("API server is running on: %s", url.text)
    return listener


async def _open(
    network: ServedNetwork, text: str, stack: AsyncExitStack
) -> tuple[trio.abc.Listener[Any], Access | None]:
    """One listener of the host API; its end is `stack`'s."""
    url = endpoints.parse_endpoint(text)
    if url.scheme not in ("unix", "tcp"):
        raise ConfigError(f"cannot serve the API on {text}: want unix:///path or tcp://host:port")
    if url.scheme == "unix":
        return await _open_unix(url, stack), None
    try:
        listener = await endpoints.listen(url)
    except OSError as error:
        raise ConfigError(f"cannot serve the API on {text}: {(error.strerror or str(error)).lower()}") from None
    stack.push_async_callback(trio.aclose_forcefully, listener)
    host, port = listener.socket.getsockname()[:2]
    network.own_listeners.add((host, port))
    stack.callback(network.own_listeners.discard, (host, port))
    access = Access(secrets.token_urlsafe(32), LOCAL_HOSTS | {url.host.lower()})
    path = write_api_file(runtime_directory(), f"tcp://{host}:{port}", access.token)
    stack.callback(_unlink_own, path, os.stat(path))
    log.info("API server is running on: tcp://%s:%d (token in %s)", host, port, path)
    return listener, access


def _make_parent(directory: Path) -> None:
    try:
        is_ours = directory == runtime_directory()
    except ConfigError:  # there is none: no matter to a socket elsewhere
        is_ours = False
    if is_ours:
        make_private(directory)
        sweep(directory)
    else:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)


def write_api_file(directory: Path, url: str, token: str) -> Path:
    """Where a TCP API is and its token, for the owner's eyes only; `client.find_api` reads it.

    Raises:
        ConfigError: it cannot be written.
    """
    path = directory / f"api-{os.getpid()}-{url.rpartition(':')[2]}.json"
    try:
        make_private(directory)
        path.unlink(missing_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump({"url": url, "token": token}, file)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {(error.strerror or str(error)).lower()}") from None
    return path


def _unlink_own(path: Path, made: os.stat_result) -> None:
    """Remove a file of ours, unless another process has put its own there since."""
    try:
        now = path.lstat()
        if (now.st_dev, now.st_ino) == (made.st_dev, made.st_ino):
            path.unlink()
    except OSError:
        pass
