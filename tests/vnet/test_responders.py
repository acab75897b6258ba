"""The gateway's DHCP and DNS over the driven stack, against scripted upstreams."""

from __future__ import annotations

import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import dnslib
import trio

from sulla_trio.config import GUEST_MAC, network_config
from sulla_trio.link.endpoint import Endpoint
from sulla_trio.services.dhcp_client import DhcpClient
from sulla_trio.vnet import resolver as resolving
from sulla_trio.vnet.network import VirtualNetwork
from sulla_trio.vnet.resolver import Resolver, receive_message
from sulla_trio.vnet.sockets import connect_tcp
from sulla_trio.wire import dhcp
from tests.support.dhcp_link import DhcpLink, mac
from tests.support.two_drivers import GATEWAY, GUEST, gateway_and_guest


def question(name: str, kind: str = "A") -> bytes:
    return dnslib.DNSRecord.question(name, kind).pack()


async def ask(guest, query: bytes) -> dnslib.DNSRecord:
    got = []
    guest.on_datagram = got.append
    guest.stack.send_datagram(GUEST, 5353, GATEWAY, 53, query, guest.now())
    guest.pump()
    with trio.fail_after(20):
        while not got:
            await trio.sleep(0.001)
    assert (got[0].source_ip, got[0].source_port) == (GATEWAY, 53)
    return dnslib.DNSRecord.parse(got[0].payload)


async def test_dhcp_client_gets_its_lease_and_the_lease_table_shows_it() -> None:
    async with gateway_and_guest() as (network, guest):
        client = DhcpClient(GUEST_MAC, random.Random(1), guest.now())
        guest.on_datagram = lambda event: client.receive(event.payload, guest.now())
        with trio.fail_after(10):
            while client.lease is None:
                for payload in client.messages_to_send(guest.now()):
                    guest.stack.send_datagram(bytes(4), 68, b"\xff" * 4, 67, payload, guest.now())
                guest.pump()
                await trio.sleep(0.001)
        assert (client.lease.ip, client.lease.prefix, client.lease.router) == (GUEST, 24, GATEWAY)
        assert network.leases.all()["192.168.127.2"] == "5a:94:ef:e4:0c:ee"
        assert any(
            event["type"] == "lease.acquired" or event["type"] == "lease.renewed" for event in network.events.since(0)
        )


@asynccontextmanager
async def clients_of(network: VirtualNetwork) -> AsyncIterator[DhcpLink]:
    """`network`, running, and a link to it."""
    left, right = socket.socketpair()
    async with trio.open_nursery() as nursery:
        await nursery.start(network.run)
        nursery.start_soon(network.serve_link, Endpoint(left, "test://clients"))
        async with trio.SocketStream(trio.socket.from_stdlib_socket(right)) as stream:
            with trio.fail_after(60):
                yield DhcpLink(stream)
        nursery.cancel_scope.cancel()


def network_of(subnet: str, resolver: Resolver | None = None) -> VirtualNetwork:
    return VirtualNetwork(network_config(subnet), resolver=resolver or Resolver(servers=()), poison=True, strict=True)


async def test_three_hundred_clients_on_a_slash_23() -> None:
    network = network_of("192.168.126.0/23")
    async with clients_of(network) as link:
        given = [await link.lease(mac(number)) for number in range(300)]
        again = [await link.lease(mac(number)) for number in reversed(range(300))]
    taken = {bytes((192, 168, 126, last)) for last in (0, 1, 2, 254)} | {bytes((192, 168, 127, 255))}
    assert len(set(given)) == 300
    assert not taken & set(given)
    assert bytes((192, 168, 127, 40)) in given
    assert again == given[::-1]
    assert len(network.leases.all(network.driver.now())) == 302


async def test_an_exhausted_slash_24_is_silent_says_so_once_and_recovers() -> None:
    network = network_of("192.168.127.0/24")
    async with clients_of(network) as link:
        given = [await link.lease(mac(number)) for number in range(251)]
        assert given == [bytes((192, 168, 127, last)) for last in range(3, 254)]
        for number in range(251, 260):
            await link.send(mac(number), dhcp.DISCOVER)
        await link.send(mac(7), dhcp.DISCOVER)
        assert (await link.reply(mac(7))).yiaddr == given[7]
        assert link.others == []
        (told,) = [event for event in network.events.since(0) if event["type"] == "lease.exhausted"]
        assert told["subnet"] == "192.168.127.0/24"
        await link.send(mac(7), dhcp.RELEASE, ciaddr=given[7])
        assert await link.lease(mac(259)) == given[7]


async def test_the_search_list_is_the_hosts(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    names = tuple(f"d{number}.corp.example" for number in range(60))
    path.write_text(f"nameserver 127.0.0.1\nsearch {' '.join(names)}\n")
    async with clients_of(network_of("192.168.127.0/24", Resolver(str(path)))) as link:
        await link.send(mac(1), dhcp.DISCOVER, {dhcp.MAX_MESSAGE_SIZE: (1500).to_bytes(2, "big")})
        offer = await link.reply(mac(1))
        assert dhcp.parse_search(offer.options[dhcp.DOMAIN_SEARCH]) == names


async def test_local_names_and_servfail_without_upstreams() -> None:
    async with gateway_and_guest() as (_, guest):
        answer = await ask(guest, question("HOST.docker.internal"))
        assert [str(record.rdata) for record in answer.rr] == ["192.168.127.254"]
        assert str(answer.q.qname) == "HOST.docker.internal."
        assert (await ask(guest, question("nobody.docker.internal"))).header.rcode == dnslib.RCODE.NXDOMAIN
        assert (await ask(guest, question("example.com", "MX"))).header.rcode == dnslib.RCODE.SERVFAIL


async def test_tcp_pipelines_queries() -> None:
    async with gateway_and_guest() as (_, guest):
        stream = await connect_tcp(guest, GATEWAY, 53)
        queries = [question(name) for name in ("host.docker.internal", "gateway.docker.internal", "x.docker.internal")]
        await stream.send_all(b"".join(len(query).to_bytes(2, "big") + query for query in queries))
        buffered = bytearray()
        answers = {}
        for _ in queries:
            message = await receive_message(stream, buffered)
            assert message is not None
            record = dnslib.DNSRecord.parse(message)
            answers[record.header.id] = [str(rr.rdata) for rr in record.rr]
        assert [answers[dnslib.DNSRecord.parse(query).header.id] for query in queries] == [
            ["192.168.127.254"],
            ["192.168.127.1"],
            [],
        ]
        await stream.aclose()


async def test_everything_else_is_forwarded_as_bytes(monkeypatch) -> None:
    upstream = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
    await upstream.bind(("127.0.0.1", 0))
    monkeypatch.setattr(resolving, "DNS_PORT", upstream.getsockname()[1])
    seen: list[bytes] = []

    async def serve() -> None:
        while True:
            query, peer = await upstream.recvfrom(4096)
            seen.append(query)
            await upstream.sendto(b"\0\0" + query[2:], peer)  # wrong ID: must be ignored
            reply = dnslib.DNSRecord.parse(query).reply()
            reply.add_answer(*dnslib.RR.fromZone("example.com 60 CAA 0 issue letsencrypt.org"))
            await upstream.sendto(reply.pack(), peer)

    async with gateway_and_guest(servers=("127.0.0.1",)) as (network, guest), trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        query = question("example.com", "CAA")
        answer = await ask(guest, query)
        assert answer.header.id == dnslib.DNSRecord.parse(query).header.id
        assert len(answer.rr) == 1
        assert seen[0][2:] == query[2:]
        (event,) = [event for event in network.events.since(0) if event["type"] == "dns.query"]
        assert (event["name"], event["result"]) == ("example.com. CAA", "NOERROR")
        nursery.cancel_scope.cancel()
    upstream.close()
