"""Outbound TCP flows through the relay: bytes, half-closes, resets, back-pressure, ends. The host side is real sockets."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import AsyncIterator

import pytest
import trio

from sulla_trio.vnet.sockets import TcpStream, connect_tcp
from tests.support.two_drivers import HOST_ALIAS, gateway_and_guest

RESET = struct.pack("ii", 1, 0)


@contextlib.asynccontextmanager
async def flow(mtu: int = 1500) -> AsyncIterator[tuple[object, TcpStream, trio.SocketStream]]:
    """(network, the guest's end, the host's end) of a flow to a listener on 127.0.0.1."""
    async with gateway_and_guest(mtu) as (network, guest):
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with listener:
            stream = await connect_tcp(guest, HOST_ALIAS, listener.socket.getsockname()[1])
            host = await listener.accept()
            async with host:
                yield network, stream, host
            await stream.aclose()


async def settle(network) -> None:
    """Until no flow is live."""
    with trio.fail_after(20):
        while len(network.flows):
            await trio.sleep(0.001)


async def receive_all(stream) -> bytes:
    return b"".join([bytes(part) async for part in stream])


@pytest.mark.parametrize("mtu", [1500, 65_520])
async def test_half_close_in_both_orders(mtu: int) -> None:
    async with flow(mtu) as (network, guest, host):
        await guest.send_all(b"question")
        await guest.send_eof()
        assert await receive_all(host) == b"question"
        await host.send_all(b"answer")
        await host.send_eof()
        assert await receive_all(guest) == b"answer"
        await settle(network)
        (closed,) = network.flows.lately_closed()
        assert (closed.reason, closed.bytes_out, closed.bytes_in) == ("eof", 8, 6)
    async with flow(mtu) as (network, guest, host):
        await host.send_eof()
        assert await receive_all(guest) == b""
        await guest.send_all(b"still open")
        await guest.send_eof()
        assert await receive_all(host) == b"still open"
        await settle(network)


async def test_megabytes_each_way_against_a_host_that_reads_slowly() -> None:
    data = bytes(range(256)) * (1 << 13)
    async with flow() as (_, guest, host), trio.open_nursery() as nursery:
        host.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32_768)
        got: dict[str, bytes] = {}

        async def send(stream) -> None:
            await stream.send_all(data)
            await stream.send_eof()

        async def slow() -> None:
            parts = []
            while part := await host.receive_some(3000):
                parts.append(bytes(part))
            got["host"] = b"".join(parts)

        async def fast() -> None:
            got["guest"] = await receive_all(guest)

        nursery.start_soon(send, guest)
        nursery.start_soon(send, host)
        nursery.start_soon(slow)
        nursery.start_soon(fast)
    assert got == {"host": data, "guest": data}


async def test_host_reset_is_a_reset_of_the_guest() -> None:
    async with flow() as (network, guest, host):
        host.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        await host.aclose()
        with pytest.raises(trio.BrokenResourceError, match="reset"):
            await guest.receive_some()
        await settle(network)
        assert network.flows.lately_closed()[0].reason == "host_reset"


async def test_guest_reset_is_a_reset_of_the_host() -> None:
    async with flow() as (network, guest, host):
        guest.abort()
        with pytest.raises(trio.BrokenResourceError):
            await host.receive_some()
        await settle(network)
        assert network.flows.lately_closed()[0].reason == "guest_reset"


async def test_flow_dies_with_its_port() -> None:
    async with flow() as (network, _, host):
        network.driver.ports[0].endpoint._socket.shutdown(2)
        with pytest.raises(trio.BrokenResourceError):
            await host.receive_some()
        await settle(network)
        assert network.stack.connections == {}
