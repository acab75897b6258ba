"""Published UDP ports: each client's own answers, from the address it asked; idle ends, bounds, refusals."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from sulla_trio.forward import proxy_udp
from sulla_trio.forward.host_sockets import RESERVED
from sulla_trio.services.events import EventLog
from tests.support.published import UPSTREAM, free_port, mapping, proxying, until


@contextlib.asynccontextmanager
async def udp_socket(host: str, port: int = 0, within: float = 20) -> AsyncIterator[trio.socket.SocketType]:
    family = trio.socket.AF_INET6 if ":" in host else trio.socket.AF_INET
    with trio.socket.socket(family, trio.socket.SOCK_DGRAM) as sock:
        await sock.bind((host, port))
        with trio.fail_after(within):
            yield sock


async def echo(sock: trio.socket.SocketType) -> None:
    """Answers each datagram with itself and who sent it."""
    while True:
        data, peer = await sock.recvfrom(65_535)
        await sock.sendto(data, peer)


def reasons(events: EventLog) -> list[str]:
    return [event["reason"] for event in events.since(0) if event["type"] == "forward.closed"]


async def test_a_datagram_arrives_unchanged_and_its_answer_comes_back() -> None:
    port = free_port()
    async with proxying() as (proxy, events), udp_socket(UPSTREAM, port) as server, udp_socket("127.0.0.1") as client:
        proxy.apply(mapping(("udp", "127.0.0.1", port)))
        await client.connect(("127.0.0.1", port))
        await client.send(b"this is a test message")
        data, peer = await server.recvfrom(65_535)
        assert data == b"this is a test message"
        await server.sendto(b"answer", peer)
        assert await client.recv(65_535) == b"answer"
        proxy.apply(mapping(("udp", "127.0.0.1", port), remove=True))
        await until(lambda: reasons(events))
        closed = events.since(0)[-1]
        assert (closed["bytes_in"], closed["bytes_out"], closed["reason"]) == (22, 6, "shutdown")
        assert closed["peer"] == "127.0.0.1:%d" % client.getsockname()[1]
        await client.send(b"nobody")
        with pytest.raises(ConnectionRefusedError):
            await client.recv(65_535)


@pytest.mark.parametrize("size", [0, 1, 1473, 65_507])
async def test_any_size(size: int) -> None:
    port = free_port()
    async with proxying() as (proxy, _), udp_socket(UPSTREAM, port) as server, udp_socket("127.0.0.1") as client:
        proxy.apply(mapping(("udp", "127.0.0.1", port)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo, server)
            for _ in range(2):
                await client.sendto(bytes(size), ("127.0.0.1", port))
                assert await client.recvfrom(65_535) == (bytes(size), ("127.0.0.1", port))
            nursery.cancel_scope.cancel()


async def test_each_client_has_its_own_answers() -> None:
    port = free_port()
    async with contextlib.AsyncExitStack() as stack:
        proxy, events = await stack.enter_async_context(proxying())
        server = await stack.enter_async_context(udp_socket(UPSTREAM, port))
        clients = [await stack.enter_async_context(udp_socket(f"127.0.0.{10 + n}")) for n in range(20)]
        proxy.apply(mapping(("udp", "127.0.0.1", port)))
        for number, client in enumerate(clients):
            await client.sendto(b"%d" % number, ("127.0.0.1", port))
        received = [await server.recvfrom(100) for _ in clients]
        assert len({peer for _, peer in received}) == len(clients)
        for data, peer in reversed(received):
            await server.sendto(b"for " + data, peer)
            await server.sendto(b"again", peer)
        for number, client in enumerate(clients):
            assert await client.recv(100) == b"for %d" % number
            assert await client.recv(100) == b"again"
        # Nobody but the upstream may answer.
        async with udp_socket("127.0.0.9") as stranger:
            await stranger.sendto(b"forged", received[0][1])
            await server.sendto(b"true", received[0][1])
            assert await clients[int(received[0][0])].recv(100) == b"true"
        assert len([event for event in events.since(0) if event["type"] == "forward.opened"]) == len(clients)


async def test_silence_ends_a_client_and_traffic_keeps_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    port = free_port()
    async with (
        proxying() as (proxy, events),
        udp_socket(UPSTREAM, port, 1000) as server,
        udp_socket("127.0.0.1", 0, 1000) as client,
    ):
        proxy.apply(mapping(("udp", "127.0.0.1", port)))
        peers = []
        for pause in (60, 60, 200):
            await client.sendto(b"x", ("127.0.0.1", port))
            while not peers or peers[-1] is None:
                try:
                    peers.append(server._sock.recvfrom(100)[1])  # type: ignore[attr-defined]
                except BlockingIOError:
                    await trio.sleep(0.01)
            peers.append(None)
            assert reasons(events) == []
            await trio.sleep(pause)
        assert len(set(peers)) == 2  # one upstream socket, and the mark
        assert reasons(events) == ["idle"]


async def test_answers_keep_a_client_too(autojump_clock: trio.testing.MockClock) -> None:
    port = free_port()
    async with (
        proxying() as (proxy, events),
        udp_socket(UPSTREAM, port, 1000) as server,
        udp_socket("127.0.0.1", 0, 1000) as client,
    ):
        proxy.apply(mapping(("udp", "127.0.0.1", port)))
        server_sock, client_sock = server._sock, client._sock  # type: ignore[attr-defined]
        await client.sendto(b"x", ("127.0.0.1", port))
        peer = None
        while peer is None:
            try:
                peer = server_sock.recvfrom(100)[1]
            except BlockingIOError:
                await trio.sleep(0.01)
        for _ in range(3):
            await trio.sleep(60)
            server_sock.sendto(b"y", peer)
            while True:
                try:
                    assert client_sock.recv(100) == b"y"
                    break
                except BlockingIOError:
                    await trio.sleep(0.01)
        assert reasons(events) == []


async def test_the_longest_idle_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_udp, "MAX_CLIENTS", 2)
    port = free_port()
    async with contextlib.AsyncExitStack() as stack:
        proxy, events = await stack.enter_async_context(proxying())
        server = await stack.enter_async_context(udp_socket(UPSTREAM, port))
        one, two, three = [await stack.enter_async_context(udp_socket("127.0.0.1")) for _ in range(3)]
        proxy.apply(mapping(("udp", "127.0.0.1", port)))
        for client in (one, two, one, three):
            await client.sendto(b"x", ("127.0.0.1", port))
            await server.recvfrom(100)
        closed = [event["peer"] for event in events.since(0) if event["type"] == "forward.closed"]
        assert closed == ["127.0.0.1:%d" % two.getsockname()[1]]
        assert reasons(events) == ["replaced"]


async def test_without_descriptors_the_longest_idle_makes_room_and_others_keep_theirs() -> None:
    port, other = free_port(), free_port()
    async with contextlib.AsyncExitStack() as stack:
        proxy, events = await stack.enter_async_context(proxying(limit=RESERVED + 4))
        server = await stack.enter_async_context(udp_socket(UPSTREAM, port))
        clients = [await stack.enter_async_context(udp_socket("127.0.0.1")) for _ in range(5)]
        proxy.apply(mapping(("udp", "127.0.0.1", port), ("udp", "127.0.0.1", other)))
        for client in clients:
            await client.sendto(b"x", ("127.0.0.1", port))
            await server.recvfrom(100)
        assert reasons(events) == ["replaced"] * 3
        # The other port has no client to give up: the datagram is dropped, the listener lives.
        await clients[0].sendto(b"x", ("127.0.0.1", other))
        await trio.testing.wait_all_tasks_blocked()
        await clients[0].sendto(b"x", ("127.0.0.1", port))
        await server.recvfrom(100)
        assert len(proxy.listeners()) == 2


async def test_an_upstream_that_comes_up_later_loses_no_datagram_more() -> None:
    port = free_port()
    async with proxying() as (proxy, events), udp_socket("127.0.0.1") as client:
        proxy.apply(mapping(("udp", "127.0.0.1", port)))
        for _ in range(3):
            await client.sendto(b"lost", ("127.0.0.1", port))
            await trio.testing.wait_all_tasks_blocked()
        async with udp_socket(UPSTREAM, port) as server:
            await client.sendto(b"found", ("127.0.0.1", port))
            assert (await server.recvfrom(100))[0] == b"found"
        assert reasons(events) == []


@pytest.mark.parametrize(
    ("host_ip", "asked", "upstream"),
    [("0.0.0.0", "127.0.0.77", "::1"), ("0.0.0.0", "127.0.0.1", "::1"), ("::", "::1", UPSTREAM)],
)
async def test_an_answer_comes_from_the_address_that_was_asked(host_ip: str, asked: str, upstream: str) -> None:
    port = free_port()
    async with (
        proxying(upstream, ipv6_exists=lambda: False) as (proxy, _),
        udp_socket(upstream, port) as server,
        udp_socket("127.0.0.5" if "." in asked else "::1") as client,
    ):
        proxy.apply(mapping(("udp", host_ip, port)))
        assert len(proxy.listeners()) == 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo, server)
            await client.sendto(b"who", (asked, port))
            data, peer = await client.recvfrom(100)
            assert (data, peer[:2]) == (b"who", (asked, port))
            nursery.cancel_scope.cancel()


async def test_no_way_upstream_costs_the_datagram_only() -> None:
    port = free_port()
    async with proxying("255.255.255.255") as (proxy, events), udp_socket("127.0.0.1") as client:
        proxy.apply(mapping(("udp", "127.0.0.1", port)))
        for _ in range(3):
            await client.sendto(b"x", ("127.0.0.1", port))
            await trio.testing.wait_all_tasks_blocked()
        assert [event["type"] for event in events.since(0)] == ["forward.added"]
        assert len(proxy.listeners()) == 1
