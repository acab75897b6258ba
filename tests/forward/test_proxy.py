"""The port proxy: which sockets a mapping opens and who releases them, TCP through it, and its bounds."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import AsyncIterator

import pytest
import trio
import trio.lowlevel
import trio.testing

from sulla_trio.forward import proxy as proxy_module
from sulla_trio.forward.host_sockets import RESERVED
from sulla_trio.forward.proxy import TCP_DESCRIPTORS, Key, bind, has_ipv6
from tests.support.published import UPSTREAM, free_port, mapping, proxying, until


@contextlib.asynccontextmanager
async def upstream(port: int) -> AsyncIterator[trio.SocketListener]:
    (listener,) = await trio.open_tcp_listeners(port, host=UPSTREAM)
    async with listener:
        yield listener


async def refused(port: int, host: str = "127.0.0.1") -> bool:
    try:
        await (await trio.open_tcp_stream(host, port)).aclose()
    except OSError:
        return True
    return False


async def receive_all(stream: trio.SocketStream) -> bytes:
    return b"".join([bytes(part) async for part in stream])


async def test_a_published_port_is_refused_then_reached_then_refused() -> None:
    port = free_port()
    async with proxying() as (proxy, events), upstream(port) as server:
        assert await refused(port)
        proxy.apply(mapping(("tcp", "127.0.0.1", port)))
        client = await trio.open_tcp_stream("127.0.0.1", port)
        far = await server.accept()
        await client.send_all(b"GET / HTTP/1.0\r\n\r\n")
        await client.send_eof()
        assert await receive_all(far) == b"GET / HTTP/1.0\r\n\r\n"
        proxy.apply(mapping(("tcp", "127.0.0.1", port), remove=True))
        assert await refused(port)
        # The connection goes on without its listener, half closed as it is.
        await far.send_all(b"200 OK")
        await far.aclose()
        assert await receive_all(client) == b"200 OK"
        await client.aclose()
        await until(lambda: events.since(0)[-1]["type"] == "forward.closed")
        local, remote = f"127.0.0.1:{port}", f"{UPSTREAM}:{port}"
        shared = {"local": local, "remote": remote, "protocol": "tcp"}
        added, opened, removed, closed = events.since(0)
        assert added == {
            "seq": 1, "time": 1000.0, "type": "forward.added", **shared, "owner": None, "source": "wsl-proxy",
        }  # fmt: skip
        assert removed == {**added, "seq": 3, "type": "forward.removed"}
        peer = opened["peer"]
        assert peer.startswith("127.0.0.1:")
        assert opened == {"seq": 2, "time": 1000.0, "type": "forward.opened", **shared, "peer": peer, "flow": 1}
        assert closed == {
            **opened, "seq": 4, "type": "forward.closed", "bytes_in": 18, "bytes_out": 6, "reason": "eof",
        }  # fmt: skip


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize(
    ("host_ip", "with_ipv6", "addresses"),
    [
        ("", True, ["127.0.0.1", "[::1]"]),
        ("", False, ["127.0.0.1"]),
        ("localhost", True, ["127.0.0.1", "[::1]"]),
        ("127.0.0.1", True, ["127.0.0.1"]),
        ("127.0.0.9", True, ["127.0.0.9"]),
        ("0.0.0.0", True, ["0.0.0.0", "[::]"]),
        ("0.0.0.0", False, ["0.0.0.0"]),
        ("::", True, ["[::]"]),
        ("::1", True, ["[::1]"]),
    ],
)
async def test_host_ip(protocol: str, host_ip: str, with_ipv6: bool, addresses: list[str]) -> None:
    port = free_port()
    async with proxying(ipv6_exists=lambda: with_ipv6) as (proxy, _):
        proxy.apply(mapping((protocol, host_ip, port)))
        assert proxy.listeners() == [f"{protocol} {address}:{port}" for address in addresses]
        proxy.apply(mapping((protocol, host_ip, port), remove=True))
        assert proxy.listeners() == []
        # Freed, not only forgotten: the same again.
        proxy.apply(mapping((protocol, host_ip, port)))
        assert len(proxy.listeners()) == len(addresses)


async def test_the_wildcard_answers_on_both_families() -> None:
    port = free_port()
    async with proxying() as (proxy, _):
        proxy.apply(mapping(("tcp", "0.0.0.0", port)))
        for host in ("127.0.0.1", "127.0.0.77", "::1"):
            assert not await refused(port, host)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
async def test_each_socket_is_released_by_the_mapping_that_added_it(protocol: str) -> None:
    port = free_port()
    four, six = f"{protocol} 0.0.0.0:{port}", f"{protocol} [::]:{port}"
    wildcard, explicit = (protocol, "0.0.0.0", port), (protocol, "::", port)
    async with proxying() as (proxy, _):
        proxy.apply(mapping(wildcard))
        proxy.apply(mapping(explicit))
        assert proxy.listeners() == [four, six]
        proxy.apply(mapping(wildcard, remove=True))
        assert proxy.listeners() == [six]
        proxy.apply(mapping(wildcard))
        proxy.apply(mapping(explicit, remove=True))
        assert proxy.listeners() == [four, six]
        proxy.apply(mapping(wildcard, remove=True))
        assert proxy.listeners() == []
        # Both in one mapping, as Docker lists them.
        proxy.apply(mapping(wildcard, explicit))
        assert proxy.listeners() == [four, six]
        proxy.apply(mapping(wildcard, explicit, remove=True))
        assert proxy.listeners() == []


async def test_who_did_not_add_it_does_not_remove_it() -> None:
    port = free_port()
    here, everywhere = ("tcp", "127.0.0.1", port), ("tcp", "0.0.0.0", port)
    async with proxying() as (proxy, events):
        proxy.apply(mapping(here, remove=True))
        assert events.since(0) == []
        proxy.apply(mapping(here))
        for other in (
            mapping(everywhere, remove=True),
            mapping(("udp", "127.0.0.1", port), remove=True),
            mapping(("tcp", "", port), remove=True),
            mapping(here, remove=True, container_port="81"),
        ):
            proxy.apply(other)
        assert proxy.listeners() == [f"tcp 127.0.0.1:{port}"]
        proxy.apply(mapping(here, container_port="81"))
        proxy.apply(mapping(here))  # the same again is the same
        proxy.apply(mapping(here, remove=True))
        assert proxy.listeners() == [f"tcp 127.0.0.1:{port}"]
        proxy.apply(mapping(here, remove=True, container_port="81"))
        assert proxy.listeners() == []
        assert [event["type"] for event in events.since(0)] == ["forward.added", "forward.removed"]


async def test_same_port_by_both_protocols_and_several_addresses() -> None:
    port = free_port()
    async with proxying() as (proxy, _):
        proxy.apply(mapping(("tcp", "127.0.0.1", port), ("udp", "127.0.0.1", port), ("tcp", "127.0.0.3", port)))
        assert proxy.listeners() == [f"tcp 127.0.0.1:{port}", f"tcp 127.0.0.3:{port}", f"udp 127.0.0.1:{port}"]
        proxy.apply(mapping(("tcp", "127.0.0.1", port), remove=True))
        assert proxy.listeners() == [f"tcp 127.0.0.3:{port}", f"udp 127.0.0.1:{port}"]


async def test_one_that_cannot_be_had_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    taken, free = free_port(), free_port()
    with socket.create_server(("127.0.0.1", taken)):
        async with proxying() as (proxy, events):
            proxy.apply(
                mapping(
                    ("tcp", "127.0.0.1", "x"),
                    ("sctp", "127.0.0.1", free),
                    ("sctp", "127.0.0.1", free),
                    ("tcp", "127.0.0.1", taken),
                    ("tcp", "example.com", free),
                    ("tcp", "192.0.2.1", free),
                    ("tcp", "", taken),
                    ("tcp", "127.0.0.1", free),
                )
            )
            assert proxy.listeners() == [f"tcp 127.0.0.1:{free}", f"tcp [::1]:{taken}"]
            proxy.apply(mapping(("tcp", "", taken), remove=True))
            assert proxy.listeners() == [f"tcp 127.0.0.1:{free}"]
    in_use = f"listen tcp 127.0.0.1:{taken}: bind: address already in use"
    nowhere = f"listen tcp 192.0.2.1:{free}: bind: cannot assign requested address"
    nobody = f"failed creating listener for published port [{free}]: listen tcp: lookup example.com: no such host"
    assert [(record.levelname, record.message) for record in caplog.records if record.levelno >= logging.WARNING] == [
        ("ERROR", "parsing port error: invalid port 'x': invalid syntax"),
        ("WARNING", "unsupported protocol: [sctp]"),
        ("ERROR", f"failed creating listener for published port [{taken}]: {in_use}"),
        ("ERROR", nobody),
        ("ERROR", f"failed creating listener for published port [{free}]: {nowhere}"),
        ("ERROR", f"failed creating listener for published port [{taken}]: {in_use}"),
    ]
    failed = [event for event in events.since(0) if event["type"] == "forward.failed"]
    assert [event["reason"] for event in failed][1:4] == [in_use, nobody, nowhere]
    assert failed[1] == {
        **failed[1],
        "local": f"127.0.0.1:{taken}",
        "remote": f"{UPSTREAM}:{taken}",
        "protocol": "tcp",
        "source": "wsl-proxy",
    }


async def test_a_port_that_was_taken_is_had_when_it_is_asked_for_again() -> None:
    port = free_port()
    async with proxying() as (proxy, _):
        with socket.create_server(("127.0.0.1", port)):
            proxy.apply(mapping(("tcp", "127.0.0.1", port)))
            assert proxy.listeners() == []
        proxy.apply(mapping(("tcp", "127.0.0.1", port)))
        assert proxy.listeners() == [f"tcp 127.0.0.1:{port}"]


async def test_added_and_removed_before_any_task_has_run() -> None:
    port = free_port()
    async with proxying() as (proxy, _), upstream(port):
        for protocol in ("tcp", "udp"):
            for _ in range(3):
                proxy.apply(mapping((protocol, "127.0.0.1", port)))
                proxy.apply(mapping((protocol, "127.0.0.1", port), remove=True))
        await trio.testing.wait_all_tasks_blocked()
        assert proxy.listeners() == []
        assert await refused(port)
        for _ in range(20):  # a client in the same moment
            proxy.apply(mapping(("tcp", "127.0.0.1", port)))
            await trio.testing.wait_all_tasks_blocked()
            with socket.create_connection(("127.0.0.1", port)):
                await trio.lowlevel.checkpoint()
                proxy.apply(mapping(("tcp", "127.0.0.1", port), remove=True))
            await trio.testing.wait_all_tasks_blocked()


async def test_a_refused_dial_resets_the_client(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    async with proxying() as (proxy, events):
        proxy.apply(mapping(("tcp", "127.0.0.1", port)))
        async with await trio.open_tcp_stream("127.0.0.1", port) as client:
            with pytest.raises(trio.BrokenResourceError):
                await client.receive_some()
        await until(lambda: events.since(0)[-1]["type"] == "forward.closed")
        assert events.since(0)[-1]["reason"] == "refused"
    remote = f"{UPSTREAM}:{port}"
    assert f"Failed to dial upstream {remote}: dial tcp {remote}: connect: connection refused" in caplog.text


async def test_a_dial_takes_five_seconds_at_most(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    async def never(*_: object) -> socket.socket:
        await trio.sleep_forever()
        raise AssertionError

    monkeypatch.setattr(proxy_module, "connect", never)
    port = free_port()
    async with proxying() as (proxy, events):
        proxy.apply(mapping(("tcp", "127.0.0.1", port)))
        with socket.create_connection(("127.0.0.1", port)):
            start = trio.current_time()
            while len(events.since(0)) < 3:
                await trio.sleep(0.5)
            assert 5 <= trio.current_time() - start <= 7
            assert events.since(0)[-1]["reason"] == "timeout"
    assert "i/o timeout" in caplog.text


async def test_shutdown_resets_what_is_open() -> None:
    port = free_port()
    async with upstream(port) as server:
        async with proxying(leaves=2) as (proxy, events):
            proxy.apply(mapping(("tcp", "127.0.0.1", port), ("udp", "127.0.0.1", port)))
            client = await trio.open_tcp_stream("127.0.0.1", port)
            far = await server.accept()
        for stream in (client, far):
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
            await stream.aclose()
        assert events.since(0)[-1]["reason"] == "shutdown"
        assert proxy.listeners() == []
        assert await refused(port)
    proxy.apply(mapping(("tcp", "127.0.0.1", port)))  # afterwards: refused, no exception
    assert proxy.listeners() == []


async def test_connections_beyond_the_descriptors_are_reset(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    limit = RESERVED + 2 + 2 * TCP_DESCRIPTORS  # one listener, two connections
    async with proxying(limit=limit) as (proxy, events), upstream(port) as server:
        proxy.apply(mapping(("tcp", "127.0.0.1", port)))
        clients = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(2)]
        fars = [await server.accept() for _ in range(2)]
        for _ in range(2):
            async with await trio.open_tcp_stream("127.0.0.1", port) as third:
                with pytest.raises(trio.BrokenResourceError):
                    await third.receive_some()
        assert caplog.text.count("are refused: the descriptors are used up") == 1
        await clients.pop().aclose()
        await fars.pop().aclose()
        await until(lambda: events.since(0)[-1]["type"] == "forward.closed")
        await trio.testing.wait_all_tasks_blocked()
        async with await trio.open_tcp_stream("127.0.0.1", port) as again, await server.accept() as far:
            await far.send_all(b"welcome")
            assert await again.receive_some() == b"welcome"
        for stream in (*clients, *fars):
            await stream.aclose()


async def test_no_limit_of_the_process_makes_it_take_more_than_it_can_end_in_time() -> None:
    async with proxying(limit=1 << 20) as (proxy, _):
        assert proxy._descriptors.free == proxy_module.MOST_DESCRIPTORS


async def test_listeners_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    async with proxying(limit=RESERVED + 6) as (proxy, _):
        proxy.apply(mapping(*(("tcp", f"127.0.0.{last}", port) for last in range(11, 20))))
        assert len(proxy.listeners()) == 3
        assert caplog.text.count("too many published ports") == 6
        proxy.apply(mapping(("tcp", "127.0.0.11", port), remove=True))
        proxy.apply(mapping(("tcp", "127.0.0.19", port)))
        assert len(proxy.listeners()) == 3


async def test_a_bug_ends_its_flow_alone(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    async def broken(*_: object) -> socket.socket:
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError

    monkeypatch.setattr(proxy_module, "connect", broken)
    port = free_port()
    async with proxying(strict=False) as (proxy, events):
        proxy.apply(mapping(("tcp", "127.0.0.1", port)))
        for _ in range(3):
            async with await trio.open_tcp_stream("127.0.0.1", port) as client:
                assert await client.receive_some() == b""
        assert [event["reason"] for event in events.since(0) if "reason" in event] == ["internal_error"] * 3
    assert caplog.text.count("internal error in a flow: ZeroDivisionError") == 1


async def test_an_ipv6_upstream() -> None:
    port = free_port()
    (server,) = await trio.open_tcp_listeners(port, host="::1")
    async with server, proxying("::1") as (proxy, events):
        proxy.apply(mapping(("tcp", "127.0.0.1", port)))
        async with await trio.open_tcp_stream("127.0.0.1", port) as client, await server.accept() as far:
            await client.send_all(b"six")
            assert await far.receive_some() == b"six"
        assert events.since(0)[0]["remote"] == f"[::1]:{port}"


def test_ipv6_is_seen_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_ipv6()

    def without(family: int, kind: int) -> socket.socket:
        raise OSError(97, "Address family not supported by protocol")

    monkeypatch.setattr(proxy_module.socket, "socket", without)
    assert not has_ipv6()


def test_a_bound_socket_is_ipv6_alone() -> None:
    port = free_port()
    with bind(Key("tcp", bytes(16), port)) as six, bind(Key("tcp", bytes(4), port)) as four:
        assert six.getsockname()[:2] == ("::", port)
        assert four.getsockname() == ("0.0.0.0", port)
