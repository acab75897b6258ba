"""The forward table: gvproxy's texts, listeners that come and go, live connections that stay, UDP clients."""

from __future__ import annotations

import socket

import pytest
import trio

from sulla_trio.config import PortForward
from sulla_trio.errors import ForwardError
from sulla_trio.forward import inbound
from sulla_trio.forward.inbound import parse_remote, split_local
from sulla_trio.vnet.sockets import TcpListener
from tests.support.two_drivers import GUEST, gateway_and_guest


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


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


async def test_expose_lists_and_unexpose_frees_the_port() -> None:
    port = free_port()
    local = f"127.0.0.1:{port}"
    async with gateway_and_guest() as (network, _):
        forwards = network.forwards
        await forwards.expose(local, "192.168.127.2:80", "tcp")
        assert [(entry.local, entry.remote, entry.protocol) for entry in forwards.all()] == [
            (local, "192.168.127.2:80", "tcp")
        ]
        with pytest.raises(ForwardError, match=f"proxy already running for tcp on {local}"):
            await forwards.expose(local, "192.168.127.2:81", "tcp")
        await forwards.unexpose(local, "tcp")
        assert forwards.all() == []
        with pytest.raises(ForwardError, match="proxy not found"):
            await forwards.unexpose(local, "tcp")
        await forwards.expose(local, "192.168.127.2:80", "tcp")
        assert [event["type"] for event in network.events.since(0) if event["type"].startswith("forward")] == [
            "forward.added",
            "forward.removed",
            "forward.added",
        ]


async def test_port_in_use_names_it_and_is_an_event() -> None:
    async with gateway_and_guest() as (network, _):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            local = f"127.0.0.1:{taken.getsockname()[1]}"
            with pytest.raises(ForwardError) as caught:
                await network.forwards.expose(local, "192.168.127.2:80", "tcp")
        assert str(caught.value) == f"listen tcp {local}: bind: address already in use"
        assert network.events.since(0)[-1]["type"] == "forward.failed"
        assert network.forwards.all() == []


def test_privileged_names_the_sysctl() -> None:
    error = inbound.bind_error("tcp", "127.0.0.1:80", PermissionError(13, "Permission denied"))
    assert error.code == "privileged"
    assert str(error).startswith("listen tcp 127.0.0.1:80: bind: permission denied")
    assert "ip_unprivileged_port_start" in str(error)


@pytest.mark.parametrize(
    ("protocol", "text"), [("sctp", "unknown protocol sctp"), ("unix", "unix forwards are not supported")]
)
async def test_protocols(protocol: str, text: str) -> None:
    async with gateway_and_guest() as (network, _):
        with pytest.raises(ForwardError, match=text):
            await network.forwards.expose("127.0.0.1:1", "192.168.127.2:80", protocol)


async def test_connection_reaches_the_guest_and_outlives_the_forward() -> None:
    port = free_port()
    async with gateway_and_guest() as (network, guest):
        listener = TcpListener(guest, GUEST, 80)
        guest.on_request = listener.requested
        await network.add_static_forwards((PortForward(f"127.0.0.1:{port}", "192.168.127.2:80"),))
        host = await trio.open_tcp_stream("127.0.0.1", port)
        stream = await listener.accept()
        assert stream.peer[0] == "192.168.127.1"
        await network.forwards.unexpose(f"127.0.0.1:{port}", "tcp")
        await host.send_all(b"in")
        assert await stream.receive_some() == b"in"
        await stream.send_all(b"out")
        assert await host.receive_some() == b"out"
        await host.send_eof()
        assert await stream.receive_some() == b""
        await stream.aclose()
        assert await host.receive_some() == b""
        await host.aclose()
        with trio.fail_after(10):
            while len(network.flows):
                await trio.sleep(0.001)
        closed = network.events.since(0)[-1]
        assert closed["type"] == "forward.closed"
        assert (closed["bytes_in"], closed["bytes_out"], closed["reason"]) == (2, 3, "eof")


async def test_refused_by_the_guest_closes_the_client() -> None:
    port = free_port()
    async with gateway_and_guest() as (network, _):
        await network.forwards.expose(f"127.0.0.1:{port}", "192.168.127.2:81", "tcp")
        async with await trio.open_tcp_stream("127.0.0.1", port) as host:
            assert await host.receive_some() == b""
        with trio.fail_after(10):
            while len(network.flows):
                await trio.sleep(0.001)
        assert network.flows.lately_closed()[0].reason == "refused"
