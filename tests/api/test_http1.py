"""Connections of hostile, slow, half-closing and silent clients. Times are a virtual clock's."""

from __future__ import annotations

import random
from typing import Any

import pytest
import trio
import trio.testing

from sulla_trio.api.app import host_app
from sulla_trio.api.http1 import Limits
from tests.support.fake_network import FakeNetwork
from tests.support.raw_http import Served, read_answer, read_to_end, request_bytes, served

EXPOSE = "/services/forwarder/expose"
FORWARD = b'{"local":"127.0.0.1:1","remote":"192.168.127.2:1"}'
UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec_WebSocket_Version": "13",
    "Sec_WebSocket_Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}


async def alive(api: Served) -> bool:
    return (await api.ask("GET", "/healthz")).status == 200


async def test_keep_alive_serves_many_requests_and_ends_after_ten_seconds(autojump_clock: Any) -> None:
    async with served(host_app(FakeNetwork())) as api:
        stream = await api.connect()
        for _ in range(3):
            await stream.send_all(request_bytes("GET", "/healthz"))
            assert (await read_answer(stream)).body == b"ok\n"
        started = trio.current_time()
        assert await read_to_end(stream) == b""
        assert 10 <= trio.current_time() - started < 11


async def test_connection_close_closes() -> None:
    async with served(host_app(FakeNetwork())) as api:
        stream = await api.connect()
        await stream.send_all(request_bytes("GET", "/healthz", Connection="close"))
        assert (await read_to_end(stream)).endswith(b"\r\n\r\nok\n")
        stream = await api.connect()
        await stream.send_all(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert (await read_to_end(stream)).endswith(b"\r\n\r\nok\n")


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with served(host_app(FakeNetwork())) as api:
        stream = await api.connect()
        await stream.send_all(
            request_bytes("GET", "/healthz")
            + request_bytes("GET", "/nope")
            + request_bytes("GET", "/cam", Connection="close")
        )
        heads = [line for line in (await read_to_end(stream)).split(b"\r\n") if b"HTTP/1.1" in line]
        assert [line[-len(b"HTTP/1.1 200 OK") :].split()[-2] for line in heads[:1]] == [b"200"]
        assert len(heads) == 3


async def test_head_and_body_leave_in_one_write() -> None:
    writes = []

    async with served(host_app(FakeNetwork())) as api:
        stream = await api.connect()
        hook = stream.receive_stream.receive_some

        async def noting(size: int | None = None) -> bytes:
            data = await hook(size)
            writes.append(bytes(data))
            return bytes(data)

        await stream.send_all(request_bytes("GET", "/healthz"))
        await noting()
    assert len(writes) == 1
    assert writes[0].startswith(b"HTTP/1.1 200 OK\r\n")
    assert writes[0].endswith(b"ok\n")


async def test_half_closed_client_gets_its_answer() -> None:
    network = FakeNetwork()
    network.forwards.gate = trio.Event()
    async with served(host_app(network)) as api:
        stream = await api.connect()
        await stream.send_all(request_bytes("POST", EXPOSE, FORWARD))
        await stream.send_eof()
        await trio.testing.wait_all_tasks_blocked()
        network.forwards.gate.set()
        assert (await read_answer(stream)).status == 200
        assert await read_to_end(stream) == b""
    assert len(network.forwards.all()) == 1


@pytest.mark.parametrize("prefix", [b"", b"G", b"GET / HTTP/1.1\r\n", request_bytes("POST", EXPOSE, b"x" * 50)[:-20]])
async def test_request_must_arrive_within_ten_seconds(prefix: bytes, autojump_clock: Any) -> None:
    async with served(host_app(FakeNetwork())) as api:
        stream = await api.connect()
        started = trio.current_time()
        if prefix:
            await stream.send_all(prefix)
        await read_to_end(stream)
        assert trio.current_time() - started < 12
        assert await alive(api)


async def test_dribbling_does_not_extend_the_deadline(autojump_clock: Any) -> None:
    async with served(host_app(FakeNetwork())) as api:
        stream = await api.connect()
        started = trio.current_time()

        async def dribble() -> None:
            for byte in b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 100:
                try:
                    await stream.send_all(bytes([byte]))
                except trio.BrokenResourceError:
                    return
                await trio.sleep(1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(dribble)
            await read_to_end(stream)
        assert trio.current_time() - started < 13


async def test_large_body_is_refused_and_the_connection_ends() -> None:
    async with served(host_app(FakeNetwork())) as api:
        answer = await api.ask("POST", EXPOSE, b"x" * 1_000_000)
        assert (answer.status, answer.body) == (413, b"http: request body too large\n")
        assert await alive(api)


async def test_h2c_upgrade_is_ignored_whatever_its_settings() -> None:
    async with served(host_app(FakeNetwork())) as api:
        for settings in ("", "AAMAAABkAAQAAP__", "not base64 \xff"):
            headers = {"Upgrade": "h2c", "Connection": "Upgrade, HTTP2-Settings", "HTTP2_Settings": settings}
            assert (await api.ask("GET", "/healthz", **headers)).status == 200
        stream = await api.connect()
        await stream.send_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(100))
        assert b" 505 " in (await read_to_end(stream)).split(b"\r\n")[0]
        assert await alive(api)


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        (b"GET /healthz HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"400"),
        (b"GET /healthz HTTP/1.1\r\nHost:\r\n\r\n", b"200"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b"400"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", b"431"),
    ],
)
async def test_malformed_requests(request_text: bytes, status: bytes) -> None:
    async with served(host_app(FakeNetwork())) as api:
        stream = await api.connect()
        await stream.send_all(request_text)
        await stream.send_eof()
        assert (await read_to_end(stream)).split(b" ")[1:2] == [status]
        assert await alive(api)


async def test_mutated_requests_never_end_the_server(autojump_clock: Any) -> None:
    random_source = random.Random(6)
    seeds = [
        request_bytes("POST", EXPOSE, FORWARD),
        request_bytes("GET", "/events?since=1", **UPGRADE) + b"\x81\x85\x00\x00\x00\x00hello",
        request_bytes("GET", "/healthz", Upgrade="h2c", Connection="Upgrade", HTTP2_Settings="AAMAAABk"),
    ]
    async with served(host_app(FakeNetwork())) as api:
        for _ in range(150):
            data = bytearray(random_source.choice(seeds))
            for _ in range(random_source.randrange(1, 5)):
                data[random_source.randrange(len(data))] = random_source.randrange(256)
            stream = await api.connect()
            await stream.send_all(data)
            if random_source.random() < 0.5:
                await stream.send_eof()
                with trio.move_on_after(5):
                    await read_to_end(stream)
            await trio.aclose_forcefully(stream)
        assert await alive(api)


async def test_websocket_is_pinged_and_a_silent_client_is_dropped(autojump_clock: Any) -> None:
    async with served(host_app(FakeNetwork())) as api:
        stream = await api.connect()
        await stream.send_all(request_bytes("GET", "/events", **UPGRADE))
        assert (await read_answer(stream)).status == 101
        started = trio.current_time()
        frames = await read_to_end(stream)
        assert frames.count(b"\x89\x00") == 2  # at 20 and 40 seconds
        assert 60 <= trio.current_time() - started < 63


async def test_websocket_that_pongs_lives(autojump_clock: Any) -> None:
    network = FakeNetwork()
    async with served(host_app(network)) as api:
        stream = await api.connect()
        await stream.send_all(request_bytes("GET", "/events", **UPGRADE))
        assert (await read_answer(stream)).status == 101
        for _ in range(10):
            assert await stream.receive_some(100) == b"\x89\x00"
            await stream.send_all(b"\x8a\x80\x00\x00\x00\x00")
        network.events.emit("daemon.ready")
        assert b'"type":"daemon.ready"' in await stream.receive_some(1000)


async def test_cancelling_does_not_wait_for_a_client_that_does_not_read(autojump_clock: Any) -> None:
    network = FakeNetwork()
    for index in range(2000):
        network.events.emit("flow.opened", text="x" * 1000, index=index)
    started = 0.0
    with trio.fail_after(5):
        async with served(host_app(network)) as api:
            ours, theirs = trio.testing.lockstep_stream_pair()  # takes nothing until it is read
            await api._send.send(theirs)
            await ours.send_all(request_bytes("GET", "/events?since=0", **UPGRADE))
            await trio.testing.wait_all_tasks_blocked()
            started = trio.current_time()
    assert trio.current_time() == started


async def test_client_that_does_not_read_is_dropped_after_ten_seconds(autojump_clock: Any) -> None:
    async with served(host_app(FakeNetwork())) as api:
        ours, theirs = trio.testing.lockstep_stream_pair()
        await api._send.send(theirs)
        await ours.send_all(request_bytes("GET", "/healthz"))
        await trio.sleep(15)
        with pytest.raises(trio.BrokenResourceError):
            await ours.send_all(b"x")
        assert await alive(api)


async def test_vanishing_client_does_not_leave_its_handler_behind(autojump_clock: Any) -> None:
    network = FakeNetwork()
    network.forwards.gate = trio.Event()
    async with served(host_app(network), limits=Limits(connections=1)) as api:
        stream = await api.connect()
        await stream.send_all(request_bytes("POST", EXPOSE, FORWARD))
        await trio.testing.wait_all_tasks_blocked()
        refused = await api.connect()  # one at a time
        with pytest.raises(trio.BrokenResourceError):
            await refused.send_all(request_bytes("GET", "/healthz"))
            await refused.receive_some(1)
            raise trio.BrokenResourceError
        await trio.aclose_forcefully(stream)
        await trio.sleep(12)
        assert await alive(api)
    assert network.forwards.all() == []
