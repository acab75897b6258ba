"""UDP mappings: endpoint-independent, filtered, idle, bounded; and the errors of the outside."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from sulla_trio.config import network_config
from sulla_trio.forward import outbound_udp
from sulla_trio.forward.datagram_socket import HostSocket
from sulla_trio.forward.outbound_udp import OutboundUdp
from sulla_trio.netstack.events import DatagramReceived
from sulla_trio.services.policy import may_dial
from sulla_trio.wire import icmp, udp
from tests.support.lone_driver import LoneDriver, lone_driver
from tests.support.stack_guest import REMOTE, icmp_of, ip_of
from tests.support.two_drivers import GUEST, HOST_ALIAS, gateway_and_guest


async def bound() -> tuple[trio.socket.SocketType, int]:
    sock = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
    await sock.bind(("127.0.0.1", 0))
    return sock, sock.getsockname()[1]


def inbox(guest) -> list[DatagramReceived]:
    got: list[DatagramReceived] = []
    guest.on_datagram = got.append
    return got


async def wait_for(got: list[DatagramReceived], count: int) -> None:
    with trio.fail_after(10):
        while len(got) < count:
            await trio.sleep(0.001)


def send(guest, sport: int, dport: int, payload: bytes) -> None:
    guest.stack.send_datagram(GUEST, sport, HOST_ALIAS, dport, payload, guest.now())
    guest.pump()


async def test_one_source_port_for_all_destinations_and_answers_from_the_alias() -> None:
    async with gateway_and_guest() as (network, guest):
        got = inbox(guest)
        (one, one_port), (two, two_port) = await bound(), await bound()
        send(guest, 4000, one_port, b"to one")
        send(guest, 4000, two_port, b"to two")
        data, peer_one = await one.recvfrom(100)
        assert data == b"to one"
        _, peer_two = await two.recvfrom(100)
        assert peer_one == peer_two
        await one.sendto(b"", peer_one)
        await two.sendto(b"answer", peer_two)
        await wait_for(got, 2)
        assert {(event.source_ip, event.source_port, event.payload) for event in got} == {
            (HOST_ALIAS, one_port, b""),
            (HOST_ALIAS, two_port, b"answer"),
        }
        assert len(network.flows) == 1
        one.close()
        two.close()


async def test_unsolicited_datagrams_are_dropped_and_counted() -> None:
    async with gateway_and_guest() as (network, guest):
        got = inbox(guest)
        (one, port), (stranger, _) = await bound(), await bound()
        send(guest, 4000, port, b"x")
        _, mapping = await one.recvfrom(10)
        await stranger.sendto(b"hello?", ("127.0.0.1", mapping[1]))
        await one.sendto(b"mine", mapping)
        await wait_for(got, 1)
        assert [event.payload for event in got] == [b"mine"]
        assert network.driver.counters.drops["udp_unsolicited"] == 1
        one.close()
        stranger.close()


async def test_idle_mapping_ends_and_the_next_datagram_opens_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbound_udp, "IDLE", 0.05)
    async with gateway_and_guest() as (network, guest):
        one, port = await bound()
        send(guest, 4000, port, b"x")
        _, first = await one.recvfrom(10)
        with trio.fail_after(10):
            while len(network.flows):
                await trio.sleep(0.01)
        assert network.flows.lately_closed()[0].reason == "idle"
        send(guest, 4000, port, b"again")
        data, _ = await one.recvfrom(10)
        assert data == b"again"
        assert first[0] == "127.0.0.1"
        one.close()


async def test_mappings_are_bounded_the_longest_idle_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbound_udp, "MAX_FLOWS", 3)
    async with gateway_and_guest() as (network, guest):
        one, port = await bound()
        for sport in range(4000, 4006):
            send(guest, sport, port, b"x")
            await one.recvfrom(10)
        with trio.fail_after(10):
            while len(network.flows) > 3:
                await trio.sleep(0.001)
        assert {flow.guest for flow in network.flows.live()} == {f"192.168.127.2:{p}" for p in (4003, 4004, 4005)}
        one.close()


# What the outside says, and the virtual clock


class Failing(HostSocket):
    """A socket of a host that cannot send."""

    def send(self, data: bytes, address: tuple[str, int], ttl: int, *, dont_fragment: bool) -> None:
        raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))


def receive(driver: LoneDriver, outbound: OutboundUdp, frame: bytes) -> None:
    """One frame of the guest, through the stack to `outbound`."""
    assert driver.guest.send(frame) == []
    for event in driver.guest.events():
        outbound.received(event)


def outbound_of(driver: LoneDriver) -> OutboundUdp:
    return OutboundUdp(driver, partial(may_dial, driver.network))


def codes(frames: list[bytes]) -> list[tuple[int, int]]:
    return [(icmp_of(frame)[0].type, icmp_of(frame)[0].code) for frame in frames]


async def test_a_closed_port_is_port_unreachable(autojump_clock: MockClock) -> None:
    async with lone_driver() as driver:
        outbound = outbound_of(driver)
        sock, port = await bound()
        sock.close()
        sent = driver.guest.udp(HOST_ALIAS, b"x", port)
        receive(driver, outbound, sent)
        (frame,) = await driver.frames()
        assert codes([frame]) == [(icmp.UNREACHABLE, icmp.UNREACHABLE_PORT)]
        assert (ip_of(frame).source, icmp_of(frame)[1]) == (HOST_ALIAS, sent[14:42])
        assert [flow.state for flow in driver.flows.live()] == ["open"]  # the mapping lives on


async def test_each_error_quotes_its_own_destination(autojump_clock: MockClock) -> None:
    async with lone_driver() as driver:
        outbound = outbound_of(driver)
        (one, first), (two, second) = await bound(), await bound()
        one.close()
        two.close()
        sent = [driver.guest.udp(HOST_ALIAS, b"x", port) for port in (first, second)]
        for frame in sent:
            receive(driver, outbound, frame)
        assert {icmp_of(frame)[1] for frame in await driver.frames()} == {frame[14:42] for frame in sent}


async def test_policy_is_told(autojump_clock: MockClock) -> None:
    async with lone_driver() as driver:
        outbound = outbound_of(driver)
        receive(driver, outbound, driver.guest.udp(bytes((169, 254, 169, 254)), b"x"))
        assert codes(await driver.frames()) == [(icmp.UNREACHABLE, icmp.UNREACHABLE_ADMIN)]
        assert driver.guest.drops == {"udp_denied": 1}
        assert not driver.flows.live()


async def test_no_network_is_net_unreachable(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    monkeypatch.setattr(outbound_udp, "HostSocket", Failing)
    async with lone_driver() as driver:
        outbound = outbound_of(driver)
        receive(driver, outbound, driver.guest.udp(REMOTE, b"x"))
        (frame,) = await driver.frames()
        assert codes([frame]) == [(icmp.UNREACHABLE, icmp.UNREACHABLE_NET)]
        assert ip_of(frame).source == driver.network.gateway_ip
        assert driver.guest.drops == {"udp_enetunreach": 1}


@pytest.mark.parametrize(
    ("name_server", "also", "life"),
    [(False, False, 90.0), (True, False, 10.0), (True, True, 90.0)],
    ids=["data", "DNS", "DNS and data"],
)
async def test_how_long_a_mapping_lives(
    name_server: bool, also: bool, life: float, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async with lone_driver() as driver:
        outbound = outbound_of(driver)
        sock, port = await bound()
        if name_server:
            monkeypatch.setattr(outbound_udp, "DNS_PORT", port)
        if also:
            other, other_port = await bound()
            receive(driver, outbound, driver.guest.udp(HOST_ALIAS, b"data", other_port))
        receive(driver, outbound, driver.guest.udp(HOST_ALIAS, b"question", port))
        _, mapping = await sock.recvfrom(100)
        await sock.sendto(b"answer", mapping)
        assert len(await driver.frames()) == 1
        await trio.sleep(100.0)
        (flow,) = driver.flows.lately_closed()
        assert flow.reason == "idle"
        assert flow.closed_at is not None
        assert flow.closed_at - flow.opened_at == pytest.approx(life)
        sock.close()
        if also:
            other.close()


async def test_endpoint_independent_filtering(autojump_clock: MockClock) -> None:
    async with lone_driver(replace(network_config(), udp_filter="endpoint-independent")) as driver:
        outbound = outbound_of(driver)
        (one, port), (stranger, strange) = await bound(), await bound()
        receive(driver, outbound, driver.guest.udp(HOST_ALIAS, b"x", port))
        _, mapping = await one.recvfrom(10)
        await stranger.sendto(b"hello", ("127.0.0.1", mapping[1]))
        (frame,) = await driver.frames()
        header = ip_of(frame)
        got = udp.parse(frame, 34, len(frame), header.source, header.destination)
        assert (header.source, got.source_port, frame[got.payload_offset :]) == (HOST_ALIAS, strange, b"hello")
        one.close()
        stranger.close()


async def test_who_may_not_be_reached_may_not_reach(autojump_clock: MockClock) -> None:
    network = network_config()
    network = replace(network, udp_filter="endpoint-independent", host_loopback_ports=frozenset((9,)))
    async with lone_driver(network) as driver:
        outbound = outbound_of(driver)
        receive(driver, outbound, driver.guest.udp(HOST_ALIAS, b"x", 9))
        ((flow),) = outbound._flows.values()
        await driver.frames()
        stranger, _ = await bound()
        await stranger.sendto(b"hello", ("127.0.0.1", flow.host.sock.getsockname()[1]))
        assert await driver.frames() == []
        assert driver.guest.drops == {"udp_unsolicited": 1}
        stranger.close()
