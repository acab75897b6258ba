"""The client against servers that are right, wrong, silent and gone."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from sulla_trio.api.app import host_app
from sulla_trio.api.client import ApiClient, ApiError
from sulla_trio.api.location import ApiLocation
from sulla_trio.api.serve import serve_asgi
from tests.support.fake_network import FakeNetwork


@asynccontextmanager
async def listening(path: Path, serve: Callable[..., Awaitable[Any]]) -> AsyncIterator[ApiClient]:
    sock = trio.socket.socket(socket.AF_UNIX)
    await sock.bind(str(path))
    sock.listen()
    async with trio.open_nursery() as nursery:
        await nursery.start(serve, [trio.SocketListener(sock)])
        yield ApiClient(ApiLocation(f"unix://{path}"))
        nursery.cancel_scope.cancel()


def app_server(network: FakeNetwork) -> Callable[..., Awaitable[Any]]:
    return partial(serve_asgi, host_app(network))


def answering(data: bytes) -> Callable[..., Awaitable[Any]]:
    async def handle(stream: trio.SocketStream) -> None:
        await stream.receive_some(65_536)
        await stream.send_all(data)
        await stream.aclose()

    return partial(trio.serve_listeners, handle)


async def test_verbs_and_refusals(tmp_path: Path) -> None:
    network = FakeNetwork()
    async with listening(tmp_path / "a", app_server(network)) as client:
        await client.expose("127.0.0.1:1", "192.168.127.2:1", "udp")
        assert await client.forwards() == [{"local": "127.0.0.1:1", "remote": "192.168.127.2:1", "protocol": "udp"}]
        with pytest.raises(ApiError, match=r"^proxy already running for udp on 127\.0\.0\.1:1$") as caught:
            await client.expose("127.0.0.1:1", "192.168.127.2:1", "udp")
        assert caught.value.status == 500
        await client.unexpose("127.0.0.1:1", "udp")
        with pytest.raises(ApiError, match=r"^proxy not found$"):
            await client.unexpose("127.0.0.1:1")
        with pytest.raises(ApiError, match="404 page not found"):
            await client.get("/nope")


async def test_events(tmp_path: Path) -> None:
    network = FakeNetwork()
    network.events.emit("daemon.ready", text="é")
    async with listening(tmp_path / "a", app_server(network)) as client:
        async with client.events(since=0, types=("daemon", "flow")) as events:
            network.events.emit("lease.added")
            network.events.emit("flow.opened", flow=1)
            first = await anext(events)
            assert (first["seq"], first["type"], first["text"]) == (1, "daemon.ready", "é")
            assert (await anext(events))["flow"] == 1
        with trio.fail_after(5):
            while network.events._subscribers:
                await trio.lowlevel.checkpoint()


async def test_events_end_with_the_server(tmp_path: Path) -> None:
    network = FakeNetwork()
    scope = trio.CancelScope()

    async def serve(listeners: Any, task_status: Any) -> None:
        with scope:
            await serve_asgi(host_app(network), listeners, task_status=task_status)

    async with listening(tmp_path / "a", serve) as client, client.events() as events:
        network.events.emit("daemon.stopping")
        assert (await anext(events))["type"] == "daemon.stopping"
        scope.cancel()
        assert [event async for event in events] == []
    with pytest.raises(ApiError, match="cannot reach"):
        async with client.events():
            pass


async def test_error_in_the_body_of_events_comes_out_bare(tmp_path: Path) -> None:
    async with listening(tmp_path / "a", app_server(FakeNetwork())) as client:
        with pytest.raises(BrokenPipeError):
            async with client.events():
                raise BrokenPipeError


@pytest.mark.parametrize(
    ("data", "pattern"),
    [
        (b"", "not HTTP, or was cut short|without an answer"),
        (b"SSH-2.0-x\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}", "cut short"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{,", "is not JSON"),
        (b"HTTP/1.1 500 x\r\nContent-Length: 0\r\n\r\n", "status 500"),
    ],
)
async def test_strange_servers(tmp_path: Path, data: bytes, pattern: str, autojump_clock: Any) -> None:
    async with listening(tmp_path / "a", answering(data)) as client:
        with pytest.raises(ApiError, match=pattern):
            await client.get("/cam")
        with pytest.raises(ApiError):
            async with client.events():
                pass


async def test_silent_server(tmp_path: Path, autojump_clock: Any) -> None:
    async def silent(_: Any) -> None:
        await trio.sleep_forever()

    async with listening(tmp_path / "a", partial(trio.serve_listeners, silent)) as client:
        with pytest.raises(ApiError, match="did not answer within 15 seconds"):
            await client.get("/cam")
        with pytest.raises(ApiError, match="did not open a stream of events"):
            async with client.events():
                pass


async def test_unreachable(tmp_path: Path) -> None:
    with pytest.raises(ApiError, match=f"cannot reach unix://{tmp_path}/none: there is no such socket"):
        await ApiClient(ApiLocation(f"unix://{tmp_path}/none")).get("/")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{sock.getsockname()[1]}"
        with pytest.raises(ApiError, match=f"cannot reach {url}: "):
            await ApiClient(ApiLocation(url)).get("/")
