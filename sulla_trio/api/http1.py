"""One HTTP/1.1 connection of the API, on any trio stream, by hypercorn's protocol classes.

hypercorn's own server is not used, because (specs/dependencies.md section 2.2) one bad h2c request ends it, its connections
never close under quart-trio, a client that does not read holds up its cancellation, and it has no deadline for a whole
request. What is taken from it are the h11 and websocket protocols; the version is pinned.
"""

from __future__ import annotations

import enum
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlsplit

import h11
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.ws_stream import ASGIWebsocketState, WSStream
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from wsproto.events import Ping

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
AsgiApp = Callable[[Any, Receive, Send], Awaitable[None]]

RECEIVE_SIZE: Final = 65_536


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one server; times in seconds. The first three times are Go's (specs/gvproxy.md section 2.0)."""

    request: float = 10.0
    """For a whole request to arrive, head and body."""
    write: float = 10.0
    """For the client to take one write of a response."""
    keep_alive: float = 10.0
    """Between a response and the next request, and before the first."""
    linger: float = 0.5
    """For the client to see our end of the stream before it is closed: closing with unread bytes would reset it."""
    teardown: float = 1.0
    """For the application to notice that its client is gone; then it is cancelled."""
    ping: float = 20.0
    """Between two pings of a websocket."""
    silence: float = 60.0
    """A websocket whose client sends nothing, not even a pong, for so long is dead."""
    body: int = 65_536
    """Bytes of a request body; every real one is under 1 KiB."""
    connections: int = 128
    """At once per server: an event subscriber per program and a page of short requests; beyond it they are closed."""


class Phase(enum.Enum):
    """Where a connection is; decides which deadline its reader has."""

    IDLE = enum.auto()
    REQUEST = enum.auto()
    RESPONSE = enum.auto()
    WEBSOCKET = enum.auto()
    CLOSING = enum.auto()


class _Refused(Exception):
    """The request was answered with an error and the connection ends."""


class _Protocol(H11Protocol):
    """HTTP/1.1 and websockets only: ``Upgrade: h2c`` is ignored, as Go ignores it, and HTTP/2 is refused."""

    _head = b""

    async def _check_protocol(self, event: h11.Request) -> None:
        if event.http_version not in (b"1.0", b"1.1"):
            await self._send_error_response(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
            await self.send(Closed())
            raise _Refused

    async def _create_stream(self, request: h11.Request) -> None:
        # Without permessage-deflate no small message can inflate into a large one.
        headers = [pair for pair in request.headers.raw_items() if pair[0].lower() != b"sec-websocket-extensions"]
        await super()._create_stream(
            h11.Request(
                method=request.method, target=request.target, headers=headers, http_version=request.http_version
            )
        )

    async def _send_h11_event(self, event: Any) -> None:
        """Encode `event`; the head of a response waits for the first byte of its body, so that both are one segment."""
        if isinstance(event, h11.Response) and not event.reason:
            event = h11.Response(
                status_code=event.status_code, headers=event.headers, reason=_reason(event.status_code)
            )
        try:
            data = self.connection.send(event)
        except h11.LocalProtocolError:
            if self.connection.their_state != h11.ERROR:
                raise
            return
        if isinstance(event, h11.Response):
            self._head = data
            return
        data, self._head = self._head + (data or b""), b""
        if data:
            await self.send(RawData(data=data))


def _reason(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""


def addresses(stream: Any) -> tuple[tuple[str, int] | None, tuple[str, int] | None]:
    """(client, server) of a stream, each (host, port), or None where there are none (unix sockets, memory streams)."""
    if hasattr(stream, "peer"):
        return stream.peer, stream.local
    sock = getattr(stream, "socket", None)
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return None, None
    return sock.getpeername()[:2], sock.getsockname()[:2]


class Connection:
    """Serves `app` on one stream until either side ends it."""

    def __init__(self, app: AsgiApp, stream: Any, config: Config, context: WorkerContext, limits: Limits) -> None:
        self._app, self._stream, self._limits = app, stream, limits
        self._config, self._context = config, context
        self._phase = Phase.IDLE
        self._reading = trio.CancelScope()
        self._settled = trio.Event()
        self._lock = trio.Lock()
        self._dead = False
        self._protocol: _Protocol
        self._nursery: trio.Nursery

    async def run(self) -> None:
        """Serve requests, then close the stream. Cancellation closes it at once, whatever is being sent."""
        stream, limits = self._stream, self._limits
        try:
            client, server = addresses(stream)
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                async with TaskGroup() as group:
                    self._protocol = _Protocol(
                        self._serve, self._config, self._context, group, ConnectionState({}), False, client, server, self._send
                    )  # fmt: skip
                    self._enter(Phase.IDLE)
                    await self._read()
                    self._dead = True
                    nursery.cancel_scope.deadline = trio.current_time() + limits.teardown
                    await self._protocol.handle(Closed())
                nursery.cancel_scope.cancel()
        except OSError:
            pass  # the peer went before its address could be read
        finally:
            await trio.aclose_forcefully(stream)

    def _enter(self, phase: Phase) -> None:
        """Change phase, and with it the reader's deadline."""
        if self._phase is Phase.CLOSING:
            return
        self._phase = phase
        limits = self._limits
        seconds = {
            Phase.IDLE: limits.keep_alive,
            Phase.REQUEST: limits.request,
            Phase.RESPONSE: float("inf"),
            Phase.WEBSOCKET: limits.silence,
            Phase.CLOSING: limits.linger,
        }[phase]
        self._reading.deadline = trio.current_time() + seconds

    async def _read(self) -> None:
        with self._reading:
            while True:
                try:
                    data = await self._stream.receive_some(RECEIVE_SIZE)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    return
                if not data:
                    await self._answer_half_closed()
                    return
                if self._phase is Phase.CLOSING:
                    continue
                if self._phase is Phase.IDLE:
                    self._enter(Phase.REQUEST)
                elif self._phase is Phase.WEBSOCKET:
                    self._enter(Phase.WEBSOCKET)
                try:
                    await self._protocol.handle(RawData(data=bytes(data)))
                except _Refused:
                    continue

    async def _answer_half_closed(self) -> None:
        """The client has sent all it will (``nc -N``): it may still read the answer to a whole request."""
        protocol = self._protocol
        connection = protocol.connection
        whole = isinstance(connection, h11.Connection) and connection.their_state in (h11.DONE, h11.MUST_CLOSE)
        if whole and protocol.stream is not None and self._phase in (Phase.REQUEST, Phase.RESPONSE):
            self._reading.deadline = trio.current_time() + self._limits.request
            await self._settled.wait()

    # Towards the client: called by hypercorn's protocol.

    async def _send(self, event: Event) -> None:
        if isinstance(event, RawData):
            await self._write(event.data)
        elif isinstance(event, Closed):
            await self._end()
            await self._protocol.handle(Closed())
        elif isinstance(event, Updated):
            if event.idle:
                self._settled.set()
                self._enter(Phase.IDLE)
            else:
                self._settled = trio.Event()
                self._enter(Phase.REQUEST)

    async def _write(self, data: bytes) -> None:
        limits = self._limits
        async with self._lock:
            if self._dead:
                await trio.lowlevel.checkpoint()  # an application that sends in a loop must not spin
                return
            try:
                with trio.fail_after(limits.silence if self._phase is Phase.WEBSOCKET else limits.write):
                    await self._stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
                self._dead = True
                self._reading.cancel()
            except BaseException:
                self._dead = True  # cancelled in mid-write: nothing may follow
                raise

    async def _end(self) -> None:
        self._enter(Phase.CLOSING)
        self._settled.set()
        async with self._lock:
            if not self._dead:
                self._dead = True
                try:
                    with trio.move_on_after(self._limits.linger):
                        await self._stream.send_eof()
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    self._reading.cancel()

    # Towards the application.

    async def _serve(
        self, scope: Any, receive: Receive, send: Send, sync_spawn: Callable[..., Any], call_soon: Callable[..., Any]
    ) -> None:
        path = scope["path"]
        if not path.startswith("/"):
            scope["path"] = _origin_path(path)
        if scope["type"] == "http":
            await self._serve_http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._serve_websocket(scope, receive, send)

    async def _serve_http(self, scope: Any, receive: Receive, send: Send) -> None:
        """Read the whole request, so that its deadline and bound are ours, then let the application answer."""
        body, size = bytearray(), 0
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            size += len(message.get("body", b""))
            if size <= self._limits.body:
                body += message.get("body", b"")
            more = message.get("more_body", False)
        self._enter(Phase.RESPONSE)
        if size > self._limits.body:
            await _refuse_large(send)
            return
        done = delivered = False

        async def receive_whole() -> Any:
            nonlocal delivered
            if not delivered:
                delivered = True
                return {"type": "http.request", "body": bytes(body), "more_body": False}
            message = await receive()
            if done:
                # hypercorn says http.disconnect at the end of a response, whereupon quart-trio would cancel the very
                # task that is about to close or recycle the connection (hypercorn issue 330).
                await trio.sleep_forever()
            return message

        async def send_noting_end(message: Any) -> None:
            nonlocal done
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                done = True
            await send(message)

        await self._app(scope, receive_whole, send_noting_end)

    async def _serve_websocket(self, scope: Any, receive: Receive, send: Send) -> None:
        self._enter(Phase.RESPONSE)

        async def send_noting_accept(message: Any) -> None:
            await send(message)
            if message["type"] == "websocket.accept":
                self._enter(Phase.WEBSOCKET)
                self._nursery.start_soon(self._ping)

        await self._app(scope, receive, send_noting_accept)

    async def _ping(self) -> None:
        """hypercorn's own pinger never looks for an answer; here the reader's deadline does."""
        while True:
            await trio.sleep(self._limits.ping)
            stream = self._protocol.stream
            if not isinstance(stream, WSStream) or stream.state is not ASGIWebsocketState.CONNECTED:
                return
            await stream._send_wsproto_event(Ping())


def _origin_path(target: str) -> str:
    """Path of an absolute-form (RFC 9112 section 3.2.2) or nonsensical request target."""
    try:
        path = urlsplit(target).path if "://" in target else target
    except ValueError:
        path = ""
    return path if path.startswith("/") else "/" + path


async def _refuse_large(send: Send) -> None:
    text = b"http: request body too large\n"
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"x-content-type-options", b"nosniff"),
        (b"content-length", str(len(text)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": text, "more_body": False})
