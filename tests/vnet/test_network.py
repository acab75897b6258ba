"""The network as a whole: what its API is built on, and what is left when it ends."""

from __future__ import annotations

import gc
import os
import socket

import trio

from sulla_trio.vnet.sockets import connect_tcp
from tests.support.two_drivers import HOST_ALIAS, gateway_and_guest


async def test_flows_statistics_and_cam() -> None:
    async with gateway_and_guest() as (network, guest):
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        stream = await connect_tcp(guest, HOST_ALIAS, port)
        (flow,) = network.flows.all(network.driver.now())
        assert (flow["kind"], flow["remote"], flow["state"]) == ("tcp", f"192.168.127.254:{port}", "established")
        statistics = network.statistics()
        assert statistics["TCP"]["PassiveConnectionOpenings"] == 1
        assert statistics["BytesReceived"] > 0
        assert network.cam() == {"5a:94:ef:e4:0c:ee": 0}
        await stream.aclose()
        await listener.aclose()


async def test_nothing_is_left_when_it_ends() -> None:
    before = set(os.listdir("/proc/self/fd"))
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with gateway_and_guest() as (network, guest):
        port = listener.socket.getsockname()[1]
        streams = [await connect_tcp(guest, HOST_ALIAS, port) for _ in range(20)]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            local = f"127.0.0.1:{probe.getsockname()[1]}"
        await network.forwards.expose(local, "192.168.127.2:80", "tcp")
        guest.stack.send_datagram(guest.network.gateway_ip, 9, HOST_ALIAS, 9, b"x", guest.now())
        guest.pump()
        await trio.sleep(0.01)
        assert len(network.flows) == 21
        assert len(streams) == 20
    await listener.aclose()
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) == before
    assert len(network.flows) == 0
    assert network.stack.connections == {}
