"""Two driven stacks joined by a socketpair: ours as the gateway, another that plays the guest."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import trio
import trio.testing

from sulla_trio.config import GUEST_MAC, NetworkConfig, network_config, parse_ip
from sulla_trio.link.endpoint import Endpoint
from sulla_trio.services.events import EventLog
from sulla_trio.services.flows import FlowTable
from sulla_trio.vnet.driver import Driver
from sulla_trio.vnet.network import VirtualNetwork
from sulla_trio.vnet.resolver import Resolver

GATEWAY = parse_ip("192.168.127.1")
GUEST = parse_ip("192.168.127.2")
HOST_ALIAS = parse_ip("192.168.127.254")


def guest_config(mtu: int = 1500) -> NetworkConfig:
    """The guest's view: its own address and MAC where the gateway's would be."""
    return replace(
        network_config(mtu=mtu), gateway_ip=GUEST, host_ip=parse_ip("192.168.127.253"), gateway_mac=GUEST_MAC
    )


@asynccontextmanager
async def gateway_and_guest(
    mtu: int = 1500, servers: tuple[str, ...] = ()
) -> AsyncIterator[tuple[VirtualNetwork, Driver]]:
    """A running `VirtualNetwork` and the guest's `Driver`, linked in the legacy framing with poisoned buffers."""
    network = VirtualNetwork(network_config(mtu=mtu), resolver=Resolver(servers=servers), poison=True, strict=True)
    guest = Driver(guest_config(mtu), EventLog(lambda: 0.0), FlowTable(), poison=True, strict=True)
    left, right = socket.socketpair()
    async with trio.open_nursery() as nursery:
        await nursery.start(network.run)
        await nursery.start(guest.run)
        nursery.start_soon(network.serve_link, Endpoint(left, "test://gateway"))
        nursery.start_soon(guest.serve_link, Endpoint(right, "test://guest"))
        await trio.testing.wait_all_tasks_blocked()
        # The driven stack answers ARP for what it owns; the guest must be known before the gateway can address it.
        yield network, guest
        nursery.cancel_scope.cancel()
