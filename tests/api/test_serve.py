"""Both applications on real listeners: files, modes, tokens, and everything gone afterwards."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from sulla_trio.api import serve
from sulla_trio.api.client import ApiClient, ApiError
from sulla_trio.api.location import ApiLocation, find_api
from sulla_trio.errors import ConfigError
from sulla_trio.vnet.sockets import connect_tcp
from tests.support.fake_network import FakeNetwork
from tests.support.raw_http import read_answer, request_bytes
from tests.support.two_drivers import GATEWAY, gateway_and_guest


@asynccontextmanager
async def serving(network: FakeNetwork, *urls: str, **options: Any) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve.serve_apis, network, urls, **options))
        yield
        nursery.cancel_scope.cancel()


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(serve, "runtime_directory", lambda: tmp_path)
    return tmp_path


def files(directory: Path) -> list[Path]:
    return list(directory.iterdir())


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


async def test_unix_socket_is_private_and_goes_away(tmp_path: Path) -> None:
    path = tmp_path / "new" / "host-switch.sock"
    network = FakeNetwork()
    async with serving(network, f"unix://{path}"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        client = ApiClient(ApiLocation(f"unix://{path}"))
        await client.expose("127.0.0.1:1", "192.168.127.2:1")
        assert [entry["remote"] for entry in await client.forwards()] == ["192.168.127.2:1"]
        with pytest.raises(ApiError, match="missing port in address"):
            await client.expose("127.0.0.1:2", ":1")
    assert not path.exists()


async def test_guest_api_is_served_beside_it(tmp_path: Path) -> None:
    network = FakeNetwork()
    async with serving(network):
        ours, theirs = trio.testing.memory_stream_pair()
        await network.dial.send(theirs)
        body = json.dumps({"local": ":1", "remote": ":1"}).encode()
        await ours.send_all(request_bytes("POST", "/services/forwarder/expose", body))
        assert (await read_answer(ours)).status == 200
    assert [entry.remote for entry in network.forwards.all()] == ["192.168.127.2:1"]


async def test_guest_reaches_it_through_the_stack() -> None:
    async with gateway_and_guest() as (network, guest), trio.open_nursery() as nursery:
        await nursery.start(serve.serve_apis, network, ())
        for path, status in (("/services/forwarder/all", 200), ("/stats", 404)):
            stream = await connect_tcp(guest, GATEWAY, serve.GUEST_PORT)
            await stream.send_all(request_bytes("GET", path))
            assert (await read_answer(stream)).status == status
            await stream.aclose()
        body = b'{"local":"127.0.0.1:0","remote":":22"}'
        stream = await connect_tcp(guest, GATEWAY, serve.GUEST_PORT)
        await stream.send_all(request_bytes("POST", "/services/forwarder/expose", body, Connection="close"))
        assert (await read_answer(stream)).status == 200
        assert await stream.receive_some() == b""
        (entry,) = network.forwards.all()
        assert (entry.remote.endswith(":22"), entry.source) == (True, "guest")
        nursery.cancel_scope.cancel()


async def test_tcp_needs_the_token_of_the_api_file(runtime: Path) -> None:
    network = FakeNetwork()
    async with serving(network, "tcp://127.0.0.1:0"):
        ((host, port),) = network.own_listeners
        (path,) = files(runtime)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        url = f"tcp://{host}:{port}"
        location = find_api(None, {}, runtime)
        assert location.url == url
        assert await ApiClient(location).get("/cam") == network.cam()
        assert find_api(url, {}, runtime) == location
        with pytest.raises(ApiError, match="bearer token") as caught:
            await ApiClient(ApiLocation(url)).get("/cam")
        assert caught.value.status == 401
        with pytest.raises(ApiError) as caught:
            async with ApiClient(ApiLocation(url, "wrong")).events():
                pass
        assert caught.value.status == 401
    assert network.own_listeners == set()
    assert files(runtime) == []


async def test_address_that_cannot_be_had_is_one_line(tmp_path: Path, runtime: Path) -> None:
    network = FakeNetwork()
    async with serving(network, f"unix://{tmp_path}/a.sock"):
        second = FakeNetwork()
        with pytest.raises(ConfigError, match=r"a\.sock is in use") as caught:
            await serve.serve_apis(second, (f"unix://{tmp_path}/a.sock",))
        assert "\n" not in str(caught.value)
    for url, pattern in (
        ("unix:///proc/nowhere/a.sock", "cannot serve the API on unix:///proc/nowhere"),
        ("tcp://192.0.2.1:1", "cannot serve the API on tcp://192.0.2.1:1: "),
        ("fd://3", "want unix:///path or tcp://host:port"),
        ("carrier-pigeon", "invalid endpoint"),
    ):
        with pytest.raises(ConfigError, match=pattern):
            await serve.serve_apis(FakeNetwork(), (url,))
    assert files(tmp_path) == []


async def test_somebody_elses_file_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    async with serving(FakeNetwork(), f"unix://{path}"):
        path.unlink()
        path.write_text("theirs")
    assert path.read_text() == "theirs"


async def test_no_descriptor_is_left(tmp_path: Path, runtime: Path) -> None:
    async def use() -> None:
        async with serving(FakeNetwork(), f"unix://{tmp_path}/a.sock", "tcp://127.0.0.1:0"):
            streams = [await trio.open_unix_socket(f"{tmp_path}/a.sock") for _ in range(5)]
            for stream in streams[:3]:
                await stream.send_all(request_bytes("GET", "/healthz"))
            await read_answer(streams[0])
            async with ApiClient(ApiLocation(f"unix://{tmp_path}/a.sock")).events():
                for stream in streams:
                    await trio.aclose_forcefully(stream)

    await use()
    before = descriptors()
    await use()
    assert descriptors() == before


async def test_connection_that_crashes_ends_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from sulla_trio.api import http1

    def fail(stream: Any) -> Any:
        raise RuntimeError("a bug")

    async with serving(FakeNetwork(), f"unix://{tmp_path}/a.sock"):
        with monkeypatch.context() as patch:
            patch.setattr(http1, "addresses", fail)
            for _ in range(3):
                with pytest.raises(ApiError, match="without an answer"):
                    await ApiClient(ApiLocation(f"unix://{tmp_path}/a.sock")).get("/cam")
        assert await ApiClient(ApiLocation(f"unix://{tmp_path}/a.sock")).get("/cam")
    assert [record.getMessage() for record in caplog.records].count("an API connection crashed") == 1


async def test_accept_failures_do_not_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: Any
) -> None:
    network = FakeNetwork()
    failures = [OSError(errno.EMFILE, "Too many open files")] * 2
    accept = trio.SocketListener.accept

    async def failing(self: trio.SocketListener) -> trio.SocketStream:
        if failures:
            raise failures.pop()
        return await accept(self)

    monkeypatch.setattr(trio.SocketListener, "accept", failing)
    async with serving(network, f"unix://{tmp_path}/a.sock"):
        await trio.sleep(1)
        assert failures == []
        assert await ApiClient(ApiLocation(f"unix://{tmp_path}/a.sock")).get("/cam")


async def test_events_alone_are_served_on_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "events.sock"
    source = FakeNetwork()
    source.events.emit("forward.added", local="127.0.0.1:1")
    async with trio.open_nursery() as nursery:
        await nursery.start(serve.serve_events, source, f"unix://{path}")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        client = ApiClient(ApiLocation(f"unix://{path}"))
        with trio.fail_after(20):
            async with client.events(since=0) as stream:
                async for event in stream:
                    assert (event["seq"], event["type"], event["local"]) == (1, "forward.added", "127.0.0.1:1")
                    break
        with pytest.raises(ApiError, match="404 page not found"):
            await client.forwards()
        with pytest.raises(ConfigError, match="running listener"):
            await serve.serve_events(source, f"unix://{path}")
        nursery.cancel_scope.cancel()
    assert files(tmp_path) == []
    with pytest.raises(ConfigError, match=r"cannot serve events on tcp://127.0.0.1:0: want unix:///path"):
        await serve.serve_events(source, "tcp://127.0.0.1:0")
