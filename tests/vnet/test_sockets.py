"""TcpStream and TcpListener over two driven stacks: trio's own conformance suite, and the corners it does not reach."""

from __future__ import annotations

from functools import partial

import pytest
import trio
from trio.testing import check_half_closeable_stream

from sulla_trio.errors import LocalError
from sulla_trio.vnet.sockets import connect_tcp
from tests.support.two_drivers import GATEWAY, GUEST, gateway_and_guest


async def stream_pair(network, guest):
    listener = network.listen_tcp(GATEWAY, 7)
    client = await connect_tcp(guest, GATEWAY, 7)
    server = await listener.accept()
    await listener.aclose()
    return client, server


@pytest.mark.parametrize("mtu", [1500, 65_520])
async def test_trio_conformance(mtu: int) -> None:
    async with gateway_and_guest(mtu) as (network, guest):
        make = partial(stream_pair, network, guest)
        await check_half_closeable_stream(make, None)


async def test_a_megabyte_each_way_at_once() -> None:
    async with gateway_and_guest() as (network, guest):
        client, server = await stream_pair(network, guest)
        data = bytes(range(256)) * 4096

        async def send(stream) -> None:
            await stream.send_all(data)
            await stream.send_eof()

        got: dict[str, bytes] = {}

        async def receive(name: str, stream) -> None:
            got[name] = b"".join([part async for part in stream])

        async with trio.open_nursery() as nursery:
            for name, stream in (("client", client), ("server", server)):
                nursery.start_soon(send, stream)
                nursery.start_soon(receive, name, stream)
        assert got == {"client": data, "server": data}
        await client.aclose()
        await server.aclose()


async def test_refused_without_a_listener() -> None:
    async with gateway_and_guest() as (_, guest):
        with pytest.raises(trio.BrokenResourceError, match="refused"):
            await connect_tcp(guest, GATEWAY, 9)


async def test_the_gateway_connects_to_the_guest() -> None:
    async with gateway_and_guest() as (network, guest):
        requests = []

        def accept(request) -> None:
            requests.append(guest.stack.accept(request, guest.now()))

        guest.on_request = accept
        stream = await network.connect_tcp(GUEST, 80)
        assert stream.peer == ("192.168.127.2", 80)
        assert stream.local[0] == "192.168.127.1"
        assert len(requests) == 1
        await stream.aclose()


async def test_two_listeners_on_one_address() -> None:
    async with gateway_and_guest() as (network, _):
        first = network.listen_tcp(GATEWAY, 7)
        with pytest.raises(LocalError, match=r"192\.168\.127\.1:7"):
            network.listen_tcp(GATEWAY, 7)
        await first.aclose()
        await network.listen_tcp(GATEWAY, 7).aclose()


async def test_stream_ends_with_its_port() -> None:
    async with gateway_and_guest() as (network, guest):
        client, server = await stream_pair(network, guest)
        network.driver.ports[0].endpoint._socket.shutdown(2)
        with pytest.raises(trio.BrokenResourceError):
            await server.receive_some()
        await client.aclose()
        await server.aclose()
