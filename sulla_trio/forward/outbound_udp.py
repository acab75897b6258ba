"""UDP from the guest to the outside: one host socket per guest source endpoint (endpoint-independent mapping, RFC 4787).

Replies are accepted only from address:port pairs that the guest has sent to. A mapping ends 90 s after its last datagram, 10 s
after the answer of a DNS server. Source: DESIGN section 4.
"""

from __future__ import annotations

import errno
import os
import socket
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import trio

from sulla_trio.config import format_ip, parse_ip
from sulla_trio.forward.context import Driver
from sulla_trio.netstack.events import DatagramReceived
from sulla_trio.services.flows import Flow
from sulla_trio.services.policy import Verdict

IDLE: Final = 90.0
IDLE_AFTER_DNS: Final = 10.0
MAX_FLOWS: Final = 4096
"""Host sockets for UDP; beyond it the longest idle goes (a DNS storm must not take the descriptors of TCP)."""
MAX_PEERS: Final = 1024
"""Remote endpoints remembered per mapping for the filter; the oldest goes."""
MAX_DATAGRAM: Final = 65_535
BATCH: Final = 64
"""Datagrams read from one socket before other tasks run."""
Peer = tuple[bytes, int]


class UdpFlow:
    """One mapping: guest (address, port) to a host socket."""

    __slots__ = ("deadline", "event", "flow", "peers", "scope", "sock")

    def __init__(self, sock: socket.socket, event: DatagramReceived, flow: Flow) -> None:
        self.sock = sock
        self.event = event
        self.flow = flow
        self.peers: OrderedDict[Peer, Peer] = OrderedDict()
        """What the host's answers come from, to what the guest sent to (they differ by NAT)."""
        self.scope: trio.CancelScope | None = None
        self.deadline = 0.0


class OutboundUdp:
    """Carries datagrams that no handler is bound for. One per virtual network."""

    def __init__(self, driver: Driver, may_dial: Callable[[bytes, int], Verdict]) -> None:
        self._driver = driver
        self._may_dial = may_dial
        self._flows: OrderedDict[tuple[bytes, int], UdpFlow] = OrderedDict()

    def received(self, event: DatagramReceived) -> None:
        """Send one datagram on to the outside; never waits."""
        driver = self._driver
        verdict = self._may_dial(event.destination_ip, event.destination_port)
        if not verdict.allowed:
            driver.stack.counters.drop("udp_denied")
            return
        key = (event.source_ip, event.source_port)
        flow = self._flows.get(key)
        if flow is None or flow.event.port != event.port:
            flow = self._open(key, event)
            if flow is None:
                return
        target, guest_sent_to = (
            (verdict.target_ip, event.destination_port),
            (event.destination_ip, event.destination_port),
        )
        flow.peers[target] = guest_sent_to
        flow.peers.move_to_end(target)
        if len(flow.peers) > MAX_PEERS:
            flow.peers.popitem(last=False)
        self._flows.move_to_end(key)
        flow.deadline = driver.now() + IDLE
        flow.event = event  # the newest MAC and port: a guest that moves keeps its mapping
        flow.flow.bytes_out += len(event.payload)
        try:
            flow.sock.sendto(event.payload, (format_ip(target[0]), target[1]))
        except OSError as error:
            self._send_failed(event, error)

    def _send_failed(self, event: DatagramReceived, error: OSError) -> None:
        # A dead upstream or no network at all is a normal state: counted, not logged.
        self._driver.stack.counters.drop("udp_" + errno.errorcode.get(error.errno or 0, "error").lower())

    def _open(self, key: tuple[bytes, int], event: DatagramReceived) -> UdpFlow | None:
        driver = self._driver
        old = self._flows.pop(key, None)
        if old is None and len(self._flows) >= MAX_FLOWS:
            old = self._flows.popitem(last=False)[1]
        if old is not None and old.scope is not None:
            old.scope.cancel()
        try:
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.setblocking(False)
            sock.bind(("0.0.0.0", 0))
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
        flow = UdpFlow(sock, event, entry)
        flow.deadline = driver.now() + IDLE
        if not driver.spawn(event.port, self._run, key, flow):
            sock.close()
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
                        await trio.lowlevel.wait_readable(flow.sock)
                    if driver.now() >= flow.deadline:
                        reason = "idle"
                        break
            if reason != "idle":
                reason = "replaced"
        finally:
            if self._flows.get(key) is flow:
                del self._flows[key]
            trio.lowlevel.notify_closing(flow.sock)
            flow.sock.close()
            driver.flows.closed(flow.flow, reason, driver.now())

    def _read_batch(self, flow: UdpFlow) -> None:
        driver, event = self._driver, flow.event
        for _ in range(BATCH):
            try:
                payload, (host, port) = flow.sock.recvfrom(MAX_DATAGRAM)
            except BlockingIOError:
                return
            except OSError:
                continue  # an ICMP error of an earlier datagram: reported once, the socket lives on
            peer = flow.peers.get((parse_ip(host), port))
            if peer is None:
                driver.stack.counters.drop("udp_unsolicited")
                continue
            flow.flow.bytes_in += len(payload)
            flow.deadline = driver.now() + (IDLE_AFTER_DNS if port == 53 else IDLE)
            driver.stack.send_datagram(
                peer[0],
                peer[1],
                event.source_ip,
                event.source_port,
                payload,
                driver.now(),
                mac=event.mac,
                port=event.port,
            )
