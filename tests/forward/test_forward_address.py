"""A forward's addresses: gvproxy's texts, and both loopbacks for localhost, all or none."""

from __future__ import annotations

import contextlib
import socket

import pytest
import trio

from sulla_trio.errors import ForwardError
from sulla_trio.forward import forward_address
from sulla_trio.forward.forward_address import listen_tcp, listen_udp, parse_remote, split_local
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


def names(listeners: list[trio.SocketListener]) -> list[tuple[str, int]]:
    return [listener.socket.getsockname()[:2] for listener in listeners]


async def close(listeners: list[trio.SocketListener]) -> None:
    for listener in listeners:
        await listener.aclose()


async def test_localhost_is_both_loopbacks_on_one_port() -> None:
    for local in (f"localhost:{free_port()}", f"LocalHost:{free_port()}"):
        listeners = await listen_tcp(local)
        (four, port), (six, other) = names(listeners)
        assert (four, six, port) == ("127.0.0.1", "::1", other)
        await close(listeners)
        sockets = await listen_udp(local)
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
                await listen(f"localhost:{port}")
            with socket.socket(socket.AF_INET6 if family == socket.AF_INET else socket.AF_INET, kind) as other:
                other.bind(("::1" if family == socket.AF_INET else "127.0.0.1", port))


async def test_localhost_without_ipv6_is_the_one_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward_address, "LOOPBACKS", ("127.0.0.1", "2001:db8::1"))
    listeners = await listen_tcp("localhost:0")
    assert [host for host, _ in names(listeners)] == ["127.0.0.1"]
    await close(listeners)


async def test_a_name_is_looked_up_for_udp_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async def lookup(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        assert host == "loop.example"
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("127.0.0.3", port))]

    monkeypatch.setattr(trio.socket, "getaddrinfo", lookup)
    (sock,) = await listen_udp("loop.example:0")
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
