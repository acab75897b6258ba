"""UDP mappings: endpoint-independent, filtered, idle, bounded."""

from __future__ import annotations

import pytest
import trio

from sulla_trio.forward import outbound_udp
from sulla_trio.netstack.events import DatagramReceived
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
