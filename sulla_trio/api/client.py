"""The client of a host API: one HTTP/1.1 request per connection, and the websocket of events."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import trio

from sulla_trio.api.location import ApiLocation
from sulla_trio.errors import SullaError

REQUEST_TIMEOUT: Final = 15.0
"""Seconds for a whole exchange: a little more than host-switch gives itself."""
MAX_ANSWER: Final = 64 << 20
"""Bytes of one answer: the flows of a full table are under 16 MiB."""


class ApiError(SullaError):
    """The API cannot be reached, or said no; the text says why. `status` is 0 where there was no answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


async def connect(location: ApiLocation) -> trio.SocketStream:
    """A stream to the API.

    Raises:
        ApiError: it cannot be reached; the text names the URL and the way out.
    """
    parts = urlsplit(location.url)
    try:
        if parts.scheme == "unix":
            return await trio.open_unix_socket(parts.path)
        return await trio.open_tcp_stream(parts.hostname or "", parts.port or 0)
    except FileNotFoundError:
        why = "there is no such socket; is host-switch running?"
    except ConnectionRefusedError:
        why = "nobody listens there; is host-switch running?"
    except PermissionError:
        why = "permission denied; it belongs to another user"
    except OSError as error:
        why = (error.strerror or str(error)).lower()
    raise ApiError(f"cannot reach {location.url}: {why}")


class ApiClient:
    """The host API at one place. Every method may raise `ApiError`."""

    def __init__(self, location: ApiLocation) -> None:
        self.location = location

    async def get(self, path: str) -> Any:
        """The JSON at `path`."""
        return _decode(await self._request("GET", path), path)

    async def forwards(self) -> list[dict[str, Any]]:
        """``[{"local", "remote", "protocol"}]``, sorted."""
        return list(await self.get("/services/forwarder/all"))

    async def expose(self, local: str, remote: str, protocol: str = "tcp") -> None:
        """Have the host listen on `local` and forward to `remote`."""
        await self._post("/services/forwarder/expose", {"local": local, "remote": remote, "protocol": protocol})

    async def unexpose(self, local: str, protocol: str = "tcp") -> None:
        """Undo `expose`."""
        await self._post("/services/forwarder/unexpose", {"local": local, "protocol": protocol})

    async def _post(self, path: str, value: dict[str, str]) -> None:
        await self._request("POST", path, json.dumps(value).encode())

    async def _request(self, method: str, path: str, body: bytes = b"") -> bytes:
        with trio.move_on_after(REQUEST_TIMEOUT):
            async with await connect(self.location) as stream:
                try:
                    status, answer = await self._exchange(stream, method, path, body)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    raise ApiError(f"{self.location.url} closed the connection without an answer") from None
                if status == 200:
                    return answer
                text = answer.decode("utf-8", "replace").strip() or f"status {status}"
                raise ApiError(text, status)
        raise ApiError(f"{self.location.url} did not answer within {REQUEST_TIMEOUT:.0f} seconds")

    async def _exchange(self, stream: trio.SocketStream, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        import h11

        connection = h11.Connection(h11.CLIENT)
        headers = [("Host", _host(self.location)), ("Connection", "close"), *_authorization(self.location)]
        if method == "POST":
            headers.append(("Content-Length", str(len(body))))
        request = connection.send(h11.Request(method=method, target=path, headers=headers)) or b""
        data = connection.send(h11.Data(data=body)) if body else b""
        await stream.send_all(request + (data or b"") + (connection.send(h11.EndOfMessage()) or b""))
        status, answer = 0, bytearray()
        try:
            while True:
                event = connection.next_event()
                if event is h11.NEED_DATA:
                    connection.receive_data(await stream.receive_some(65_536))
                elif isinstance(event, h11.Response):
                    status = event.status_code
                elif isinstance(event, h11.Data):
                    answer += event.data
                    if len(answer) > MAX_ANSWER:
                        raise ApiError(f"the answer of {self.location.url} is too large")
                elif isinstance(event, h11.EndOfMessage):
                    return status, bytes(answer)
                elif isinstance(event, h11.ConnectionClosed):
                    raise trio.BrokenResourceError
        except h11.RemoteProtocolError:
            raise ApiError(f"{self.location.url} is not an API: its answer is not HTTP, or was cut short") from None

    @asynccontextmanager
    async def events(
        self, *, since: int | None = None, types: tuple[str, ...] = ()
    ) -> AsyncGenerator[EventIterator, None]:
        """The events as they come, from the one after `since` where given, until host-switch ends.

        Use it as ``async with client.events() as events: async for event in events``.
        """
        import trio_websocket

        stream = await connect(self.location)
        try:
            async with trio.open_nursery() as nursery:
                with trio.fail_after(REQUEST_TIMEOUT):
                    websocket = await trio_websocket.wrap_client_stream(
                        nursery,
                        stream,
                        _host(self.location),
                        _events_path(since, types),
                        extra_headers=[
                            (name.encode(), value.encode()) for name, value in _authorization(self.location)
                        ],
                        max_message_size=1 << 20,
                    )
                yield EventIterator(websocket)
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            # trio-websocket raises a refusal in its reader task, whose group also holds the handshake's own failure.
            refused, _ = group.split(trio_websocket.ConnectionRejected)
            error = _single(refused or group)
            if isinstance(error, trio_websocket.ConnectionRejected):
                text = (error.body or b"").decode("utf-8", "replace").strip()
                raise ApiError(text or f"status {error.status_code}", error.status_code) from None
            if isinstance(error, (trio_websocket.HandshakeError, trio.TooSlowError)):
                raise ApiError(f"{self.location.url} did not open a stream of events") from None
            raise error from None
        finally:
            await trio.aclose_forcefully(stream)


class EventIterator:
    """Events of one websocket; ends when it does."""

    def __init__(self, websocket: Any) -> None:
        self._websocket = websocket

    def __aiter__(self) -> EventIterator:
        return self

    async def __anext__(self) -> dict[str, Any]:
        from trio_websocket import ConnectionClosed

        try:
            event: dict[str, Any] = json.loads(await self._websocket.get_message())
        except ConnectionClosed:
            raise StopAsyncIteration from None
        return event


def _events_path(since: int | None, types: tuple[str, ...]) -> str:
    query = {"since": since, "types": ",".join(types) or None}
    text = urlencode({name: value for name, value in query.items() if value is not None})
    return f"/events?{text}" if text else "/events"


def _single(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one exception inside nested groups of one; the group itself where there are more."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _host(location: ApiLocation) -> str:
    return urlsplit(location.url).netloc or "localhost"


def _authorization(location: ApiLocation) -> list[tuple[str, str]]:
    return [("Authorization", f"Bearer {location.token}")] if location.token else []


def _decode(answer: bytes, path: str) -> Any:
    try:
        return json.loads(answer)
    except ValueError:
        raise ApiError(f"the answer to {path} is not JSON") from None
