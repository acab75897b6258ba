"""UDP forwards: every client its own answers, bounded, gone with the forward."""

from __future__ import annotations

import socket

import pytest
import trio

from sulla_trio.forward import inbound_udp
from tests.support.two_drivers import GUEST, gateway_and_guest


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


async def test_udp_clients_get_their_own_answers() -> None:
    port = free_port()
    async with gateway_and_guest() as (network, guest):

        def echo(event) -> None:
            guest.stack.send_datagram(
                GUEST, event.destination_port, event.source_ip, event.source_port, event.payload.upper(), guest.now()
            )

        guest.on_datagram = echo
        await network.forwards.expose(f"127.0.0.1:{port}", "192.168.127.2:53", "udp")
        clients = [trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) for _ in range(3)]
        with trio.fail_after(10):
            for number, client in enumerate(clients):
                await client.connect(("127.0.0.1", port))
                await client.send(b"ask%d" % number)
            for number, client in enumerate(clients):
                assert await client.recv(100) == b"ASK%d" % number
                client.close()
        await network.forwards.unexpose(f"127.0.0.1:{port}", "udp")
        assert network.driver._handlers.keys() == {(network.network.gateway_ip, 53)}


async def test_udp_clients_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbound_udp, "MAX_UDP_CLIENTS", 2)
    port = free_port()
    async with gateway_and_guest() as (network, guest):
        got = []
        guest.on_datagram = got.append
        await network.forwards.expose(f"127.0.0.1:{port}", "192.168.127.2:53", "udp")
        for _ in range(5):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.sendto(b"x", ("127.0.0.1", port))
        with trio.fail_after(10):
            while len(got) < 5:
                await trio.sleep(0.001)
        assert len(network.driver._handlers) == 1 + 2
