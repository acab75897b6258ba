"""One virtual network: the driven stack with its gateway services, flows to the outside and forwards from it."""

from __future__ import annotations

import os
import time
from typing import Any

import trio

from sulla_trio.config import NetworkConfig, PortForward, format_ip
from sulla_trio.errors import LocalError
from sulla_trio.forward.inbound import ForwardTable
from sulla_trio.forward.outbound_icmp import OutboundIcmp
from sulla_trio.forward.outbound_tcp import OutboundTcp
from sulla_trio.forward.outbound_udp import OutboundUdp
from sulla_trio.forward.owned import OwnedForwards
from sulla_trio.link.endpoint import Endpoint
from sulla_trio.netstack.events import ConnectionRequest, DatagramReceived
from sulla_trio.netstack.statistics import statistics
from sulla_trio.services.dhcp import DhcpServer
from sulla_trio.services.dns import Zones
from sulla_trio.services.events import EventLog
from sulla_trio.services.flows import FlowTable
from sulla_trio.services.leases import LeaseTable
from sulla_trio.services.policy import Verdict, may_dial
from sulla_trio.vnet.driver import Driver
from sulla_trio.vnet.resolver import Resolver
from sulla_trio.vnet.responders import DHCP_SERVER_PORT, DNS_PORT, DhcpResponder, DnsResponder
from sulla_trio.vnet.sockets import TcpListener, TcpStream, connect_tcp


class VirtualNetwork:
    """Everything host-switch has besides its handshake and its API. Links and forwards come and go; it stays.

    `run` owns all its tasks; cancelling it ends every flow, listener and port.
    """

    def __init__(
        self,
        network: NetworkConfig,
        *,
        resolver: Resolver | None = None,
        poison: bool | None = None,
        strict: bool = False,
    ) -> None:
        self.network = network
        self.events = EventLog(time.time)
        self.flows = FlowTable(self.events)
        if poison is None:
            poison = bool(os.environ.get("SULLA_POISON"))
        self.driver = Driver(network, self.events, self.flows, poison=poison, strict=strict)
        self.leases = LeaseTable(network)
        self.forwards = ForwardTable(self.driver)
        self.owned = OwnedForwards(self.forwards)
        self.resolver = resolver or Resolver()
        self.own_listeners: set[tuple[str, int]] = set()
        """(address, port) of host-switch's own TCP listeners on the host: never dialled for a guest."""
        self._outbound_tcp = OutboundTcp(self.driver, self.may_dial)
        self._outbound_udp = OutboundUdp(self.driver, self.may_dial)
        self._outbound_icmp = OutboundIcmp(self.driver, self.may_dial)
        self._dhcp = DhcpResponder(
            self.driver, DhcpServer(network, self.leases, self.events, search_domains=self._search_domains)
        )
        self._dns = DnsResponder(self.driver, Zones.built_in(network), self.resolver)
        self._listeners: dict[tuple[bytes, int], TcpListener] = {}
        self.driver.on_request = self._requested
        self.driver.on_cancelled = self._outbound_tcp.cancelled
        self.driver.on_datagram = self._datagram
        self.driver.on_echo = self._outbound_icmp.requested
        self.driver.bind_datagrams((network.gateway_ip, DNS_PORT), self._dns.datagram)

    def _search_domains(self) -> tuple[str, ...]:
        """The configured ones, else the host's."""
        return self.network.search_domains or self.resolver.search

    @property
    def stack(self) -> Any:
        return self.driver.stack

    @property
    def switch(self) -> Any:
        return self.driver.switch

    def may_dial(self, address: bytes, port: int) -> Verdict:
        """Whether a guest may reach (address, port) outside, and where that is after NAT."""
        return may_dial(self.network, address, port, self.own_listeners)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the network until cancelled. Started when links can be served and forwards added."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.driver.run)
            await nursery.start(self.forwards.run)
            nursery.start_soon(self.owned.run)
            listener = self.listen_tcp(self.network.gateway_ip, DNS_PORT)
            nursery.start_soon(trio.serve_listeners, self._dns.stream, [listener])
            task_status.started()

    async def serve_link(self, endpoint: Endpoint) -> OSError | None:
        """Carry one guest's link; see `Driver.serve_link`."""
        return await self.driver.serve_link(endpoint)

    async def add_static_forwards(self, forwards: tuple[PortForward, ...]) -> None:
        """Add the command line's forwards. Raises ForwardError on the first that cannot be had."""
        for forward in forwards:
            await self.forwards.expose(forward.local, forward.remote, forward.protocol, source="static")

    def listen_tcp(self, local_ip: bytes, port: int) -> TcpListener:
        """Accept the guests' connections to an address of the gateway.

        Raises:
            LocalError: somebody listens there already.
        """
        held = self._listeners.get((local_ip, port))
        if held is not None and not held.is_closed:
            raise LocalError(f"{format_ip(local_ip)}:{port} is already listened on")
        listener = self._listeners[local_ip, port] = TcpListener(self.driver, local_ip, port)
        return listener

    async def connect_tcp(self, remote_ip: bytes, port: int) -> TcpStream:
        """Connect from the gateway to a guest; see `vnet.sockets.connect_tcp`."""
        return await connect_tcp(self.driver, remote_ip, port)

    def statistics(self) -> dict[str, Any]:
        """The counters in the shape of gvproxy's ``/stats``."""
        return statistics(self.driver.counters)

    def cam(self) -> dict[str, int]:
        """MAC text to port id."""
        return self.driver.cam()

    # Events of the stack

    def _requested(self, request: ConnectionRequest) -> None:
        listener = self._listeners.get((request.local_ip, request.local_port))
        if listener is not None and not listener.is_closed:
            listener.requested(request)
        else:
            self._outbound_tcp.requested(request)

    def _datagram(self, event: DatagramReceived) -> None:
        if event.destination_port == DHCP_SERVER_PORT:
            self._dhcp(event)
        else:
            self._outbound_udp.received(event)
