"""The forward table: gvproxy's texts, listeners that come and go, live connections that stay, UDP clients."""

from __future__ import annotations

import socket

import pytest
import trio
import trio.testing

from sulla_trio.config import PortForward
from sulla_trio.errors import ForwardError
from sulla_trio.forward.inbound import ForwardEntry
from sulla_trio.vnet.sockets import TcpListener
from tests.support.two_drivers import GUEST, gateway_and_guest


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


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


def forward_events(network) -> list[tuple[str, str]]:
    return [
        (event["type"].removeprefix("forward."), event["local"])
        for event in network.events.since(0)
        if event["type"].startswith("forward.")
    ]


async def test_snapshot_has_what_the_command_line_does_not_name() -> None:
    static, api, guest = (f"127.0.0.1:{free_port()}" for _ in range(3))
    async with gateway_and_guest() as (network, _):
        await network.add_static_forwards((PortForward(static, "192.168.127.2:80"),))
        await network.forwards.expose(api, "192.168.127.2:80", "tcp")
        await network.forwards.expose(guest, "192.168.127.2:53", "udp", source="guest")
        kept = network.forwards.snapshot()
        assert sorted(kept) == sorted(
            [ForwardEntry(api, "tcp", "192.168.127.2:80"), ForwardEntry(guest, "udp", "192.168.127.2:53")]
        )
        assert {entry.local: entry.source for entry in kept} == {api: "api", guest: "guest"}


async def test_restored_forwards_answer_and_a_static_one_stays_as_it_is() -> None:
    static, other = (f"127.0.0.1:{free_port()}" for _ in range(2))
    entries = [
        ForwardEntry(static, "tcp", "192.168.127.2:1"),
        ForwardEntry(other, "tcp", "192.168.127.2:80", "guest"),
        ForwardEntry(other, "udp", "192.168.127.2:80"),
    ]
    async with gateway_and_guest() as (network, guest), trio.open_nursery() as nursery:
        await network.add_static_forwards((PortForward(static, "192.168.127.2:80"),))
        network.forwards.want(entries)
        await nursery.start(network.forwards.restore)
        assert [(entry.local, entry.protocol, entry.remote) for entry in network.forwards.all()] == sorted(
            [
                (static, "tcp", "192.168.127.2:80"),
                (other, "tcp", "192.168.127.2:80"),
                (other, "udp", "192.168.127.2:80"),
            ]
        )
        assert sorted(network.forwards.snapshot()) == sorted(entries[1:])
        listener = TcpListener(guest, GUEST, 80)
        guest.on_request = listener.requested
        async with await trio.open_tcp_stream("127.0.0.1", int(other[10:])), await listener.accept():
            pass


async def test_a_restored_forward_whose_port_is_taken_is_told_once_and_comes_when_it_is_free(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with gateway_and_guest() as (network, _), trio.open_nursery() as nursery:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            local = f"127.0.0.1:{taken.getsockname()[1]}"
            entry = ForwardEntry(local, "tcp", "192.168.127.2:80", "guest")
            network.forwards.want([entry])
            await nursery.start(network.forwards.restore)
            await trio.sleep(10.0)
            assert network.forwards.all() == []
            assert network.forwards.snapshot() == [entry]
        await trio.sleep(10.0)
        assert network.forwards.all() == [entry]
        assert network.forwards.all()[0].source == "guest"
        assert forward_events(network) == [("failed", local), ("added", local)]
    (record,) = caplog.records
    assert record.getMessage() == (
        f"cannot restore the forward of {local} to 192.168.127.2:80: listen tcp {local}: bind: address already in use"
    )


async def test_after_a_minute_it_is_left_alone_but_not_forgotten(autojump_clock: trio.testing.MockClock) -> None:
    async with gateway_and_guest() as (network, _), trio.open_nursery() as nursery:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            entry = ForwardEntry(f"127.0.0.1:{taken.getsockname()[1]}", "tcp", "192.168.127.2:80")
            network.forwards.want([entry])
            await nursery.start(network.forwards.restore)
            await trio.sleep(120.0)
            assert not nursery.child_tasks
        assert network.forwards.snapshot() == [entry]
        await network.forwards.unexpose(entry.local, "tcp")
        assert network.forwards.snapshot() == []
        assert forward_events(network) == [("failed", entry.local), ("removed", entry.local)]
        with pytest.raises(ForwardError, match="proxy not found"):
            await network.forwards.unexpose(entry.local, "tcp")


async def test_who_exposes_a_wanted_address_takes_its_place(autojump_clock: trio.testing.MockClock) -> None:
    async with gateway_and_guest() as (network, _), trio.open_nursery() as nursery:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            local = f"127.0.0.1:{taken.getsockname()[1]}"
            network.forwards.want([ForwardEntry(local, "tcp", "192.168.127.2:80")])
            await nursery.start(network.forwards.restore)
            with pytest.raises(ForwardError, match="address already in use"):
                await network.forwards.expose(local, "192.168.127.2:81", "tcp")
            assert network.forwards.snapshot() == []
        await trio.sleep(120.0)
        assert network.forwards.all() == []
        await network.forwards.expose(local, "192.168.127.2:81", "tcp")


@pytest.mark.parametrize("local", ["a" * 64 + ".example:80", "127.0.0.1", "\u2028:80", "no-such-name.invalid:80"])
async def test_an_address_that_cannot_be_had_ends_no_restore(
    local: str, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    good = ForwardEntry(f"127.0.0.1:{free_port()}", "tcp", "192.168.127.2:80")
    bad = ForwardEntry(local, "tcp", "192.168.127.2:80")
    async with gateway_and_guest() as (network, _), trio.open_nursery() as nursery:
        network.forwards.want([bad, good])
        await nursery.start(network.forwards.restore)
        assert network.forwards.all() == [good]
        assert len(caplog.records) == 1
        nursery.cancel_scope.cancel()


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
