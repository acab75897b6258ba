"""An HTTP/1.1 client that hides nothing: bytes in, status, headers and body out."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NamedTuple

import trio
import trio.testing

from sulla_trio.api.serve import serve_asgi
from tests.support.fake_network import as_guest


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


def request_bytes(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: x"] if "Host" not in headers else [f"{method} {path} HTTP/1.1"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def read_answer(stream: Any, method: str = "GET") -> Answer:
    buffer = b""
    while b"\r\n\r\n" not in buffer:
        data = await stream.receive_some(65536)
        if not data:
            raise EOFError(buffer)
        buffer += data
    head, _, body = buffer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = 0 if method == "HEAD" else int(headers.get("content-length", 0))
    while len(body) < length:
        body += await stream.receive_some(65536)
    assert len(body) == length
    return Answer(int(first.split()[1]), headers, body)


async def read_to_end(stream: Any) -> bytes:
    data = b""
    while more := await stream.receive_some(65536):
        data += more
    return data


class Served:
    """An application behind memory streams; `connect` is a new client."""

    def __init__(self, send: Any, virtual: bool) -> None:
        self._send, self._virtual = send, virtual

    async def connect(self) -> Any:
        ours, theirs = trio.testing.memory_stream_pair()
        if self._virtual:
            as_guest(theirs)
        await self._send.send(theirs)
        return ours

    async def ask(self, method: str, path: str, body: bytes | dict[str, Any] = b"", **headers: str) -> Answer:
        stream = await self.connect()
        if isinstance(body, dict):
            body = json.dumps(body).encode()
        await stream.send_all(request_bytes(method, path, body, **headers))
        answer = await read_answer(stream, method)
        await trio.aclose_forcefully(stream)
        return answer


class _Listener(trio.abc.Listener[Any]):
    def __init__(self, channel: Any) -> None:
        self._channel = channel

    async def accept(self) -> Any:
        return await self._channel.receive()

    async def aclose(self) -> None:
        await self._channel.aclose()


@asynccontextmanager
async def served(app: Any, *, virtual: bool = False, **options: Any) -> AsyncIterator[Served]:
    """Serve `app` over memory streams; `virtual` ones have the guest's address."""
    send, receive = trio.open_memory_channel[Any](100)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_asgi, app, [_Listener(receive)], **options))
        yield Served(send, virtual)
        nursery.cancel_scope.cancel()
