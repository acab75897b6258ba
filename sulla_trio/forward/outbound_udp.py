"""UDP from the guest to the outside: one host socket per guest source endpoint (endpoint-independent mapping, RFC 4787).

Replies are accepted only from address:port pairs that the guest has sent to, unless the network's `udp_filter` says otherwise.
A mapping ends 90 s after its last datagram, 10 s after the answer of a DNS server if it has served nothing else. The guest's
TTL and DF bit go along, and ICMP errors of the outside come back to it. Source: DESIGN section 4.
"""

from __future__ import annotations

import errno
import os
import socket
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple

import trio

from sulla_trio.config import UDP_FILTERS, format_ip, parse_ip
from sulla_trio.forward.context import Driver
from sulla_trio.forward.datagram_socket import HostSocket, refusal_of, tell_denied, tell_guest
from sulla_trio.netstack.events import DatagramReceived
from sulla_trio.services.flows import Flow
from sulla_trio.services.policy import LOOPBACK, Verdict
from sulla_trio.wire import ipv4

IDLE: Final = 90.0
IDLE_AFTER_DNS: Final = 10.0
MAX_FLOWS: Final = 4096
"""Host sockets for UDP; beyond it the longest idle goes (a DNS storm must not take the descriptors of TCP)."""
MAX_PEERS: Final = 1024
"""Remote endpoints remembered per mapping for the filter; the oldest goes."""
MAX_DATAGRAM: Final = 65_535
BATCH: Final = 64
"""Datagrams read from one socket before other tasks run."""
DNS_PORT: Final = 53
Peer = tuple[bytes, int]


class SentTo(NamedTuple):
    """Where the guest sent to (NAT may have made it another peer), and how its last datagram there began."""

    ip: bytes
    port: int
    header: bytes
    """IP header and 8 bytes: what an ICMP error quotes."""


class UdpFlow:
    """One mapping: guest (address, port) to a host socket."""

    __slots__ = ("deadline", "event", "flow", "host", "only_dns", "peers", "scope")

    def __init__(self, host: HostSocket, event: DatagramReceived, flow: Flow, deadline: float) -> None:
        self.host = host
        self.event = event
        self.flow = flow
        self.peers: OrderedDict[Peer, SentTo] = OrderedDict()
        """What the host's answers come from, to what the guest sent to."""
        self.only_dns = True
        """Whether the guest has spoken with name servers only."""
        self.scope: trio.CancelScope | None = None
        self.deadline = deadline


class OutboundUdp:
    """Carries datagrams that no handler is bound for. One per virtual network."""

    def __init__(self, driver: Driver, may_dial: Callable[[bytes, int], Verdict]) -> None:
        self._driver = driver
        self._may_dial = may_dial
        self._open_filter = driver.network.udp_filter == UDP_FILTERS[1]
        self._flows: OrderedDict[tuple[bytes, int], UdpFlow] = OrderedDict()

    def received(self, event: DatagramReceived) -> None:
        """Send one datagram on to the outside; never waits."""
        driver = self._driver
        verdict = self._may_dial(event.destination_ip, event.destination_port)
        if not verdict.allowed:
            driver.stack.counters.drop("udp_denied")
            tell_denied(driver, verdict, event.header, event.mac, event.port)
            return
        key = (event.source_ip, event.source_port)
        flow = self._flows.get(key)
        if flow is None or flow.event.port != event.port:
            flow = self._open(key, event)
            if flow is None:
                return
        target = (verdict.target_ip, event.destination_port)
        flow.peers[target] = SentTo(event.destination_ip, event.destination_port, event.header)
        flow.peers.move_to_end(target)
        if len(flow.peers) > MAX_PEERS:
            flow.peers.popitem(last=False)
        self._flows.move_to_end(key)
        flow.deadline = driver.now() + IDLE
        flow.event = event  # the newest MAC and port: a guest that moves keeps its mapping
        flow.only_dns &= event.destination_port == DNS_PORT
        flow.flow.bytes_out += len(event.payload)
        try:
            flow.host.send(
                event.payload,
                (format_ip(target[0]), target[1]),
                event.ttl,
                dont_fragment=bool(event.header[6] & ipv4.DONT_FRAGMENT >> 8),
            )
        except OSError as error:
            self._send_failed(event, target, error)

    def _send_failed(self, event: DatagramReceived, target: Peer, error: OSError) -> None:
        # A dead upstream or no network at all is a normal state: counted, not logged, and told to the guest.
        self._driver.stack.counters.drop("udp_" + errno.errorcode.get(error.errno or 0, "error").lower())
        refusal = refusal_of(error, target)
        if refusal is not None:
            tell_guest(self._driver, refusal, event.header, event.mac, event.port)

    def _open(self, key: tuple[bytes, int], event: DatagramReceived) -> UdpFlow | None:
        driver = self._driver
        old = self._flows.pop(key, None)
        if old is None and len(self._flows) >= MAX_FLOWS:
            old = self._flows.popitem(last=False)[1]
        if old is not None and old.scope is not None:
            old.scope.cancel()
        try:
            host = _bound_socket()
        except OSError as error:
            driver.stack.counters.drop("udp_no_socket")
            driver.events.emit("flow.failed", protocol="udp", reason=os.strerror(error.errno or 0))
            return None
        entry = driver.flows.opened(
            "udp",
            f"{format_ip(event.source_ip)}:{event.source_port}",
            f"{format_ip(event.destination_ip)}:{event.destination_port}",
            driver.now(),
        )
        entry.state = "open"
        flow = UdpFlow(host, event, entry, driver.now() + IDLE)
        if not driver.spawn(event.port, self._run, key, flow):
            host.close()
            driver.flows.closed(entry, "port_gone", driver.now())
            return None
        self._flows[key] = flow
        return flow

    async def _run(self, key: tuple[bytes, int], flow: UdpFlow) -> None:
        driver = self._driver
        reason = "shutdown"
        try:
            with trio.CancelScope() as flow.scope:
                while True:
                    self._read_batch(flow)
                    driver.pump()
                    with trio.move_on_at(flow.deadline):
                        await trio.lowlevel.wait_readable(flow.host.sock)
                    if driver.now() >= flow.deadline:
                        reason = "idle"
                        break
            if reason != "idle":
                reason = "replaced"
        finally:
            if self._flows.get(key) is flow:
                del self._flows[key]
            flow.host.close()
            driver.flows.closed(flow.flow, reason, driver.now())

    def _read_batch(self, flow: UdpFlow) -> None:
        driver, event = self._driver, flow.event
        receive = flow.host.sock.recvfrom
        for count in range(BATCH):
            try:
                payload, (host, port) = receive(MAX_DATAGRAM)
            except BlockingIOError:
                if not count:  # woken, and no datagram: the queue of errors has something
                    self._read_errors(flow)
                return
            except OSError:
                self._read_errors(flow)
                continue
            peer = flow.peers.get((parse_ip(host), port)) or self._stranger(parse_ip(host), port)
            if peer is None:
                driver.stack.counters.drop("udp_unsolicited")
                continue
            flow.flow.bytes_in += len(payload)
            dns = port == DNS_PORT and flow.only_dns
            flow.deadline = driver.now() + (IDLE_AFTER_DNS if dns else IDLE)
            driver.stack.send_datagram(
                peer.ip,
                peer.port,
                event.source_ip,
                event.source_port,
                payload,
                driver.now(),
                mac=event.mac,
                port=event.port,
            )

    def _stranger(self, ip: bytes, port: int) -> SentTo | None:
        """How the guest may see somebody it has not sent to; None: not at all. Whom it may not reach may not reach it."""
        if not self._open_filter:
            return None
        seen = self._driver.network.host_ip if ip == LOOPBACK else ip
        return SentTo(seen, port, b"") if self._may_dial(seen, port).allowed else None

    def _read_errors(self, flow: UdpFlow) -> None:
        driver, event = self._driver, flow.event
        for error in flow.host.errors():
            sent_to = flow.peers.get(error.target)
            if sent_to is not None:
                tell_guest(driver, error, sent_to.header, event.mac, event.port)


def _bound_socket() -> HostSocket:
    """Raises OSError: no socket can be had."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.bind(("0.0.0.0", 0))
        return HostSocket(sock)
    except OSError:
        sock.close()
        raise
