"""A forward's addresses: gvproxy's texts, and both loopbacks for localhost, all or none."""

from __future__ import annotations

import contextlib
import os
import socket

import pytest
import trio
import trio.testing

from sulla_trio.errors import ForwardError
from sulla_trio.forward import forward_address
from sulla_trio.forward.forward_address import (
    ForwardPorts,
    listen_tcp,
    listen_udp,
    parse_forward,
    parse_remote,
    split_local,
)
from sulla_trio.vnet.sockets import TcpListener
from tests.support.two_drivers import GUEST, gateway_and_guest


@pytest.mark.parametrize(
    ("remote", "text"),
    [
        ("192.168.127.2", "invalid remote addr"),
        ("a:b:c", "invalid remote addr"),
        ("192.168.127.2:x", 'strconv.ParseUint: parsing "x": invalid syntax'),
        ("192.168.127.2:-1", 'strconv.ParseUint: parsing "-1": invalid syntax'),
        ("192.168.127.2:65536", 'strconv.ParseUint: parsing "65536": value out of range'),
        ("guest:80", "invalid remote addr: invalid IPv4 address: guest"),
    ],
)
def test_bad_remotes(remote: str, text: str) -> None:
    with pytest.raises(ForwardError) as caught:
        parse_remote(remote)
    assert str(caught.value) == text


def test_locals() -> None:
    assert split_local("127.0.0.1:80") == ("127.0.0.1", 80)
    assert split_local(":80") == ("", 80)
    assert split_local("[::1]:80") == ("::1", 80)
    assert split_local("") == ("", 0)
    for bad in ("80", "a:b:c", "127.0.0.1:x", "127.0.0.1:65536"):
        with pytest.raises(ForwardError):
            split_local(bad)


def free_port() -> int:
    """A port that nobody has on either loopback, for TCP or UDP."""
    for _ in range(50):
        with contextlib.ExitStack() as stack:
            port = 0
            try:
                for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
                    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                        sock = stack.enter_context(socket.socket(family, kind))
                        sock.bind((host, port))
                        port = sock.getsockname()[1]
            except OSError:
                continue
            return port
    raise AssertionError("no port is free on both loopbacks")


def ports(local: str) -> ForwardPorts:
    return parse_forward(local, "192.168.127.2:80")


def names(listeners: list[trio.SocketListener]) -> list[tuple[str, int]]:
    return [listener.socket.getsockname()[:2] for listener in listeners]


async def close(listeners: list[trio.SocketListener]) -> None:
    for listener in listeners:
        await listener.aclose()


async def test_localhost_is_both_loopbacks_on_one_port() -> None:
    for local in (f"localhost:{free_port()}", f"LocalHost:{free_port()}"):
        listeners = await listen_tcp(ports(local))
        (four, port), (six, other) = names(listeners)
        assert (four, six, port) == ("127.0.0.1", "::1", other)
        await close(listeners)
        sockets = await listen_udp(ports(local))
        assert [sock.getsockname()[0] for sock in sockets] == ["127.0.0.1", "::1"]
        assert sockets[0].getsockname()[1] == sockets[1].getsockname()[1]
        for sock in sockets:
            sock.close()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
async def test_localhost_with_one_loopback_taken_is_none(family: socket.AddressFamily) -> None:
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    for kind, listen in ((socket.SOCK_STREAM, listen_tcp), (socket.SOCK_DGRAM, listen_udp)):
        with socket.socket(family, kind) as taken:
            taken.bind((host, free_port()))
            if kind == socket.SOCK_STREAM:
                taken.listen()
            port = taken.getsockname()[1]
            with pytest.raises(OSError, match="in use"):
                await listen(ports(f"localhost:{port}"))
            with socket.socket(socket.AF_INET6 if family == socket.AF_INET else socket.AF_INET, kind) as other:
                other.bind(("::1" if family == socket.AF_INET else "127.0.0.1", port))


async def test_localhost_without_ipv6_is_the_one_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward_address, "LOOPBACKS", ("127.0.0.1", "2001:db8::1"))
    listeners = await listen_tcp(ports("localhost:0"))
    assert [host for host, _ in names(listeners)] == ["127.0.0.1"]
    await close(listeners)


async def test_a_name_is_looked_up_for_udp_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async def lookup(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        assert host == "loop.example"
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("127.0.0.3", port))]

    monkeypatch.setattr(trio.socket, "getaddrinfo", lookup)
    (sock,) = await listen_udp(ports("loop.example:0"))
    assert sock.getsockname()[0] == "127.0.0.3"
    sock.close()


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
async def test_a_forward_of_localhost_answers_on_both(protocol: str) -> None:
    port = free_port()
    async with gateway_and_guest() as (network, guest):

        def echo(event) -> None:
            answer = event.payload.upper()
            guest.stack.send_datagram(GUEST, 53, event.source_ip, event.source_port, answer, guest.now())

        guest.on_datagram = echo
        await network.forwards.expose(f"localhost:{port}", "192.168.127.2:53", protocol)
        assert [entry.local for entry in network.forwards.all()] == [f"localhost:{port}"]
        for host in ("127.0.0.1", "::1"):
            if protocol == "tcp":
                await (await trio.open_tcp_stream(host, port)).aclose()
                continue
            family = trio.socket.AF_INET6 if ":" in host else trio.socket.AF_INET
            with trio.socket.socket(family, trio.socket.SOCK_DGRAM) as client, trio.fail_after(10):
                await client.connect((host, port))
                await client.send(b"ask")
                assert await client.recv(100) == b"ASK"
        await network.forwards.unexpose(f"localhost:{port}", protocol)
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with socket.socket(family, socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM) as again:
                again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                again.bind((host, port))


def free_range(size: int) -> int:
    """The first of `size` ports that nobody has on 127.0.0.1."""
    for first in range(21_000, 60_000, 97):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + size):
                    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                        stack.enter_context(socket.socket(socket.AF_INET, kind)).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise AssertionError("no range is free")


def test_ranges_are_as_long_on_both_sides() -> None:
    guest = bytes((192, 168, 127, 2))
    found = parse_forward("127.0.0.1:8000-8099", "192.168.127.2:9000-9099")
    assert found == ForwardPorts("127.0.0.1", 8000, 100, guest, 9000)
    assert [found.target(port) for port in (8000, 8099)] == [(guest, 9000), (guest, 9099)]
    assert parse_forward("[::1]:1-65535", "192.168.127.2:1-65535").size == 65_535
    assert parse_forward(":0", "192.168.127.2:80").target(40_000) == (guest, 80)


@pytest.mark.parametrize(
    ("local", "remote", "text"),
    [
        (":1-2", "192.168.127.2:1-3", ":1-2 has 2 ports and 192.168.127.2:1-3 has 3; want as many on both sides"),
        (":2-1", "192.168.127.2:1-2", "2-1 is no range of ports; want for example 8000-8099"),
        (":0-1", "192.168.127.2:1-2", "0-1 is no range of ports"),
        (":1-2", "192.168.127.2:65535-65536", "65535-65536 is no range of ports"),
        (":1-2", "guest:1-2", "invalid remote addr"),
        (":1-2", "192.168.127.2:80", "listen tcp: address :1-2: invalid port"),
        (":80", "192.168.127.2:1-2", 'strconv.ParseUint: parsing "1-2": invalid syntax'),
        (":1-2-3", "192.168.127.2:1-2-3", "strconv.ParseUint"),
        ("::1:1-2", "192.168.127.2:1-2", "too many colons in address"),
        (":-1-2", "192.168.127.2:1-2", "strconv.ParseUint"),
    ],
)
def test_bad_ranges(local: str, remote: str, text: str) -> None:
    with pytest.raises(ForwardError) as caught:
        parse_forward(local, remote)
    assert text in str(caught.value)


@pytest.mark.parametrize("epoll", [True, False])
async def test_each_port_of_a_range_leads_to_its_own(epoll: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not epoll:
        monkeypatch.delattr("select.epoll")
    first = free_range(200)
    async with gateway_and_guest() as (network, guest):
        listeners = {port: TcpListener(guest, GUEST, port) for port in (5000, 5077, 5199)}
        guest.on_request = lambda request: listeners[request.local_port].requested(request)
        local, remote = f"127.0.0.1:{first}-{first + 199}", "192.168.127.2:5000-5199"
        await network.forwards.expose(local, remote)
        assert [(entry.local, entry.remote) for entry in network.forwards.all()] == [(local, remote)]
        for port, listener in listeners.items():
            host = await trio.open_tcp_stream("127.0.0.1", first + port - 5000)
            async with host, await listener.accept() as stream:
                await host.send_all(b"%d" % port)
                assert await stream.receive_some() == b"%d" % port
        opened = [event for event in network.events.since(0) if event["type"] == "forward.opened"]
        assert [(event["local"], event["remote"]) for event in opened] == [
            (f"127.0.0.1:{first + port - 5000}", f"192.168.127.2:{port}") for port in listeners
        ]
        await network.forwards.unexpose(local)
        assert network.forwards.all() == []
        with pytest.raises(OSError, match="attempts to connect"):
            await trio.open_tcp_stream("127.0.0.1", first + 77)


async def test_many_at_once_and_an_idle_range_costs_one_task() -> None:
    first = free_range(150)
    async with gateway_and_guest() as (network, guest):
        accepted = []
        guest.on_request = lambda request: (
            accepted.append(request.local_port) or guest.stack.reject(request, guest.now())
        )
        before = trio.lowlevel.current_statistics().tasks_living
        await network.forwards.expose(f"127.0.0.1:{first}-{first + 149}", "192.168.127.2:5000-5149")
        await trio.testing.wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().tasks_living - before <= 3

        async def connect(port: int) -> None:
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                assert await stream.receive_some() == b""

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for port in range(first, first + 150):
                    nursery.start_soon(connect, port)
        assert sorted(accepted) == list(range(5000, 5150))


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
async def test_a_range_is_had_whole_or_not_at_all(protocol: str) -> None:
    first = free_range(100)
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    async with gateway_and_guest() as (network, _):
        before = len(os.listdir("/proc/self/fd"))
        with socket.socket(socket.AF_INET, kind) as taken:
            taken.bind(("127.0.0.1", first + 90))
            if protocol == "tcp":
                taken.listen()
            with pytest.raises(ForwardError) as caught:
                await network.forwards.expose(f"127.0.0.1:{first}-{first + 99}", "192.168.127.2:1-100", protocol)
        assert str(caught.value) == f"listen {protocol} 127.0.0.1:{first + 90}: bind: address already in use"
        assert len(os.listdir("/proc/self/fd")) == before
        await network.forwards.expose(f"127.0.0.1:{first}-{first + 99}", "192.168.127.2:1-100", protocol)
        assert len(os.listdir("/proc/self/fd")) >= before + 100


async def test_a_range_of_udp_leads_each_port_to_its_own() -> None:
    first = free_range(10)
    async with gateway_and_guest() as (network, guest):
        got = []
        guest.on_datagram = lambda event: got.append((event.destination_port, event.payload))
        await network.forwards.expose(f"127.0.0.1:{first}-{first + 9}", "192.168.127.2:53-62", "udp")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            for offset in (0, 9):
                client.sendto(b"%d" % offset, ("127.0.0.1", first + offset))
        with trio.fail_after(20):
            while len(got) < 2:
                await trio.sleep(0.001)
        assert sorted(got) == [(53, b"0"), (62, b"9")]


async def test_no_range_takes_the_last_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward_address, "RESERVED_DESCRIPTORS", 1 << 40)
    async with gateway_and_guest() as (network, _):
        with pytest.raises(ForwardError, match="2 ports need as many descriptors; 1 are allowed"):
            await network.forwards.expose("127.0.0.1:8000-8001", "192.168.127.2:1-2")


async def test_a_closed_range_listener_says_so() -> None:
    first = free_range(3)
    (listener,) = await listen_tcp(parse_forward(f"127.0.0.1:{first}-{first + 2}", "192.168.127.2:1-3"))
    async with trio.open_nursery() as nursery:

        async def accept() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await listener.accept()

        nursery.start_soon(accept)
        await trio.testing.wait_all_tasks_blocked()
        await listener.aclose()
    await listener.aclose()
