"""What a guest's SYN becomes: refused, denied, cancelled, out of descriptors, and the dial before the SYN-ACK."""

from __future__ import annotations

import errno
import os
import socket

import pytest
import trio

from sulla_trio.config import parse_ip
from sulla_trio.forward import outbound_tcp
from sulla_trio.vnet.sockets import connect_tcp
from tests.support.two_drivers import GATEWAY, HOST_ALIAS, gateway_and_guest


def closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def types(network) -> list[str]:
    return [event["type"] for event in network.events.since(0)]


async def test_refused_is_a_reset() -> None:
    async with gateway_and_guest() as (network, guest):
        with pytest.raises(trio.BrokenResourceError, match="refused"):
            await connect_tcp(guest, HOST_ALIAS, closed_port())
        assert network.flows.lately_closed()[0].reason == "refused"


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("192.168.127.1", "virtual_subnet"),
        ("192.168.127.77", "virtual_subnet"),
        ("169.254.169.254", "link_local"),
    ],
)
async def test_denied_is_a_reset_and_an_event(address: str, reason: str) -> None:
    async with gateway_and_guest() as (network, guest):
        # The guest's own stack asks ARP for on-link addresses: teach it that all of them are behind the gateway.
        gateway = network.network.gateway_mac
        guest.stack._neighbors.learn(parse_ip(address), gateway, 0)
        with pytest.raises(trio.BrokenResourceError, match="refused"):
            await connect_tcp(guest, parse_ip(address), 4444)
        (event,) = [event for event in network.events.since(0) if event["type"] == "flow.denied"]
        assert (event["reason"], event["remote"]) == (reason, f"{address}:4444")


async def fail_with(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(address: bytes, port: int) -> socket.socket:
        await trio.lowlevel.checkpoint()
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(outbound_tcp, "connect_out", fail)


async def test_unreachable_is_icmp_and_a_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    await fail_with(errno.EHOSTUNREACH, monkeypatch)
    async with gateway_and_guest() as (network, guest):
        with pytest.raises(trio.BrokenResourceError):
            await connect_tcp(guest, HOST_ALIAS, 80)
        assert network.driver.counters.icmp_errors_sent == 1
        assert network.flows.lately_closed()[0].reason == "unreachable"


@pytest.mark.parametrize(("code", "reason"), [(errno.ETIMEDOUT, "timeout"), (errno.EMFILE, "host_error")])
async def test_silence_where_the_guest_may_try_again(code: int, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await fail_with(code, monkeypatch)
    async with gateway_and_guest() as (network, guest):
        with trio.move_on_after(0.2) as scope:
            await connect_tcp(guest, HOST_ALIAS, 80)
        assert scope.cancelled_caught
        assert network.flows.lately_closed()[0].reason == reason
        assert ("flow.failed" in types(network)) == (reason == "host_error")
        assert network.stack.pending == 0


async def test_guest_that_gives_up_cancels_the_dial(monkeypatch: pytest.MonkeyPatch) -> None:
    cancelled = trio.Event()

    async def hang(address: bytes, port: int) -> socket.socket:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()
        raise AssertionError

    monkeypatch.setattr(outbound_tcp, "connect_out", hang)
    async with gateway_and_guest() as (network, guest):
        with trio.move_on_after(0.1):
            await connect_tcp(guest, HOST_ALIAS, 80)
        # The guest's abort in SYN-SENT sends nothing: it is the switch port's end that must cancel too.
        network.driver.ports[0].endpoint._socket.shutdown(2)
        with trio.fail_after(10):
            await cancelled.wait()
            while len(network.flows):
                await trio.sleep(0.001)


async def test_own_listeners_are_never_dialled() -> None:
    async with gateway_and_guest() as (network, guest):
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        network.own_listeners.add(("127.0.0.1", port))
        with pytest.raises(trio.BrokenResourceError, match="refused"):
            await connect_tcp(guest, HOST_ALIAS, port)
        await listeners[0].aclose()


async def test_gateway_port_without_a_server() -> None:
    async with gateway_and_guest() as (_, guest):
        with pytest.raises(trio.BrokenResourceError, match="refused"):
            await connect_tcp(guest, GATEWAY, 9999)
