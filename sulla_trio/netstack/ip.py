"""Below TCP: ARP, IPv4 with fragments, ICMP and UDP for the gateway's addresses (DESIGN section 4).

`IpLayer` is the lower half of `Stack`; it knows nothing of connections.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Final, Protocol

from sulla_trio.config import BROADCAST_MAC, NetworkConfig
from sulla_trio.errors import BadPacket, LocalError
from sulla_trio.netstack import events
from sulla_trio.netstack.counters import Counters
from sulla_trio.netstack.icmp_errors import ErrorLimiter, may_answer
from sulla_trio.netstack.neighbor import Neighbor, NeighborCache
from sulla_trio.netstack.reassembly import Reassembler
from sulla_trio.wire import arp, ethernet, icmp, inet, ipv4, udp
from sulla_trio.wire.inet import Buffer

BROADCAST_PORT: Final = -1
"""As a port id in a frame to send: every port."""
BROADCAST_IP: Final = b"\xff" * 4
ANY_IP: Final = b"\0" * 4
MAX_DATAGRAM: Final = 65_507
"""Payload bytes of the largest UDP datagram."""
_DHCP_SERVER_PORT: Final = 67
_ETHERTYPE: Final = struct.Struct("!12xH")

Frame = tuple[int, bytes, bytes | memoryview]
"""(egress port or `BROADCAST_PORT`, headers, payload)."""


class RandomSource(Protocol):
    """What is needed of a `random.Random`."""

    def getrandbits(self, k: int, /) -> int: ...

    def randrange(self, start: int, stop: int, /) -> int: ...


class IpLayer:
    """Receives Ethernet frames and sends datagrams; what its user must know is queued in `_events`.

    A subclass takes TCP in `_receive_tcp` and what routers say about it in `_receive_unreachable`.
    """

    def __init__(self, network: NetworkConfig, random: RandomSource, counters: Counters) -> None:
        self.network = network
        self.gateway_mac = network.gateway_mac
        self.counters = counters
        self._random = random
        self._own_ips = frozenset(network.virtual_ips)
        subnet = network.subnet
        self._nobody = self._own_ips | {subnet.network_address.packed, subnet.broadcast_address.packed}
        """Unicast to look at, but no guest may send from them."""
        self._neighbors = NeighborCache(self._ask, counters)
        self._reassembler = Reassembler(counters)
        self._limiter = ErrorLimiter()
        self._events: deque[events.Event] = deque()
        self._frames: list[Frame] = []
        self._identification = random.getrandbits(16)
        self._now = 0.0

    def receive(self, frame: memoryview, port: int, now: float) -> None:
        """Take one frame (at least 14 bytes) from the switch. Its bytes are not used after the return. Never raises: what does
        not parse is counted."""
        self._now = now
        try:
            (ethertype,) = _ETHERTYPE.unpack_from(frame)
            if ethertype == ethernet.ETHERTYPE_IPV4:
                self._receive_ipv4(frame, port, now)
            elif ethertype == ethernet.ETHERTYPE_ARP:
                self._receive_arp(arp.parse(frame[ethernet.HEADER_LENGTH :]), port)
            else:
                self.counters.drop("ethertype_ipv6" if ethertype == ethernet.ETHERTYPE_IPV6 else "ethertype_unknown")
        except BadPacket as error:
            self._count_bad(error)

    def _count_bad(self, error: BadPacket) -> None:
        self.counters.drop(error.reason)
        if error.reason == "tcp_checksum":
            self.counters.tcp_checksum_errors += 1

    # ARP

    def _receive_arp(self, packet: arp.Arp, port: int) -> None:
        counters = self.counters
        # RFC 5227: a probe asks from 0.0.0.0, teaches nothing and must be answered. RFC 1812 section 3.3.2: a group MAC is
        # never believed.
        probe = packet.sender_ip == ANY_IP and packet.operation == arp.REQUEST
        if packet.sender_mac[0] & 1 or not (probe or self._is_guest_source(packet.sender_ip)):
            counters.drop("arp_sender")
            return
        if packet.operation == arp.REQUEST:
            counters.arp_requests_received += 1
            if not probe:
                self._neighbors.learn(packet.sender_ip, packet.sender_mac, port)
            if packet.target_ip in self._own_ips:
                counters.arp_replies_sent += 1
                reply = arp.Arp(arp.REPLY, self.gateway_mac, packet.target_ip, packet.sender_mac, packet.sender_ip)
                self._send_ethernet(port, packet.sender_mac, ethernet.ETHERTYPE_ARP, arp.emit(reply))
        elif packet.operation == arp.REPLY:
            counters.arp_replies_received += 1
            self._neighbors.learn(packet.sender_ip, packet.sender_mac, port)
        else:
            counters.drop("arp_operation")

    def _ask(self, address: bytes) -> None:
        self.counters.arp_requests_sent += 1
        request = arp.Arp(arp.REQUEST, self.gateway_mac, self.network.gateway_ip, b"\0" * 6, address)
        self._send_ethernet(BROADCAST_PORT, BROADCAST_MAC, ethernet.ETHERTYPE_ARP, arp.emit(request))

    # IPv4

    def _receive_ipv4(self, frame: memoryview, port: int, now: float) -> None:
        counters = self.counters
        counters.ip_datagrams_received += 1
        header = ipv4.parse(frame, 14)
        source, destination = header.source, header.destination
        start, end = 14 + header.header_length, 14 + header.total_length
        # From 0.0.0.0 comes only DHCP; the port is looked at with the rest of UDP.
        if not self._is_guest_source(source) and (source != ANY_IP or header.protocol != inet.IPPROTO_UDP):
            counters.drop("ipv4_source")
            return
        if destination[0] == 127 or destination[0] == 0:
            counters.drop("ipv4_martian")
            return
        if header.ttl <= 1 and destination not in self._own_ips and destination[0] < 224:
            counters.drop("ipv4_ttl")
            self._icmp_error(icmp.TIME_EXCEEDED, 0, 0, frame[14:end], frame, port, now)
            return
        if header.flags_fragment & (ipv4.MORE_FRAGMENTS | ipv4.OFFSET_MASK):
            counters.ip_fragments_received += 1
            raw = bytes(frame[14:start])
            whole = self._reassembler.add(header, port, raw, frame[start:end], now)
            if whole is None:
                return
            counters.ip_reassembled += 1
            raw, payload = whole
            frame = memoryview(bytes(frame[:14]) + raw + payload)
            start, end = 14 + len(raw), len(frame)
        if header.protocol == inet.IPPROTO_TCP:
            self._receive_tcp(frame, header, start, end, port, now)
        elif header.protocol == inet.IPPROTO_UDP:
            self._receive_udp(frame, header, start, end, port)
        elif header.protocol == inet.IPPROTO_ICMP:
            self._receive_icmp(frame, header, start, end, port)
        else:
            counters.drop("ipv4_protocol")
            self._icmp_error(icmp.UNREACHABLE, icmp.UNREACHABLE_PROTOCOL, 0, frame[14:end], frame, port, now)

    def _icmp_error(
        self, kind: int, code: int, rest: int, quoted: Buffer, frame: memoryview, port: int, now: float
    ) -> None:
        """Answer the packet in `frame` with an error from the gateway, if one is allowed."""
        if frame[0] & 1:
            return  # RFC 1122 section 3.2.2: never about a link-layer broadcast
        self.send_icmp_error(kind, code, rest, bytes(quoted[:128]), bytes(frame[26:30]), bytes(frame[6:12]), port, now)

    def send_icmp_error(
        self,
        type: int,
        code: int,
        rest: int,
        quoted_header: bytes,
        source_ip: bytes,
        mac: bytes,
        port: int,
        now: float,
        *,
        sender: bytes | None = None,
        ttl: int = 64,
    ) -> None:
        """Send an ICMP error to the guest at `source_ip` about the packet that begins with `quoted_header`.

        It comes from the gateway, or from `sender`: a router of the outside. Silently not sent where RFC 1122 section 3.2.2
        forbids it or the rate is exceeded.
        """
        if not may_answer(quoted_header):
            return
        if not self._limiter.take(now):
            self.counters.drop("icmp_rate_limited")
            return
        self.counters.icmp_errors_sent += 1
        message = icmp.emit_error(type, code, rest, quoted_header)
        self._send_ipv4(sender or self.network.gateway_ip, source_ip, inet.IPPROTO_ICMP, message, mac, port, ttl)

    def _send_ipv4(
        self,
        source: bytes,
        destination: bytes,
        protocol: int,
        payload: Buffer,
        mac: bytes,
        port: int,
        ttl: int = 64,
        tos: int = 0,
    ) -> None:
        """Send one datagram, in fragments where the MTU wants it (RFC 791 section 3.2)."""
        room = self.network.mtu - ipv4.HEADER_LENGTH
        self.counters.ip_datagrams_sent += 1
        self._identification = identification = (self._identification + 1) & 0xFFFF
        if len(payload) <= room:
            header = ipv4.emit(
                source,
                destination,
                protocol,
                len(payload),
                ttl=ttl,
                tos=tos,
                identification=identification,
                flags_fragment=0,
            )
            self._send_ethernet(port, mac, ethernet.ETHERTYPE_IPV4, header + bytes(payload))
            return
        step = room & ~7
        for at in range(0, len(payload), step):
            piece = bytes(payload[at : at + step])
            more = ipv4.MORE_FRAGMENTS if at + step < len(payload) else 0
            header = ipv4.emit(
                source,
                destination,
                protocol,
                len(piece),
                ttl=ttl,
                tos=tos,
                identification=identification,
                flags_fragment=more | at // 8,
            )
            self.counters.ip_fragments_sent += 1
            self._send_ethernet(port, mac, ethernet.ETHERTYPE_IPV4, header + piece)

    def _send_ethernet(self, port: int, mac: bytes, ethertype: int, payload: bytes) -> None:
        self._frames.append((port, ethernet.emit(mac, self.gateway_mac, ethertype) + payload, b""))

    # ICMP

    def _receive_icmp(self, frame: memoryview, header: ipv4.Ipv4, start: int, end: int, port: int) -> None:
        counters = self.counters
        counters.icmp_received += 1
        message = icmp.parse(frame, start, end)
        if message.type == icmp.UNREACHABLE:
            self._receive_unreachable(message.code, message.rest & 0xFFFF, frame[message.payload_offset : end], port)
            return
        if message.type != icmp.ECHO_REQUEST or message.code:
            counters.drop("icmp_type")
            return
        counters.icmp_echo_requests_received += 1
        payload, mac = bytes(frame[message.payload_offset : end]), bytes(frame[6:12])
        request = events.EchoRequested(
            header.source,
            header.destination,
            message.rest >> 16,
            message.rest & 0xFFFF,
            payload,
            mac,
            port,
            header.ttl,
            bytes(frame[14 : start + icmp.QUOTED_PAYLOAD]),
        )
        if header.destination in self._own_ips:
            self.send_echo_reply(request, payload, self._now)
        elif header.destination[0] >= 224:
            counters.drop("icmp_group")
        else:
            self._events.append(request)

    def send_echo_reply(self, request: events.EchoRequested, payload: bytes, now: float, *, ttl: int = 64) -> None:
        """Answer `request`; the source is the address that was pinged."""
        self.counters.icmp_echo_replies_sent += 1
        rest = request.identifier << 16 | request.sequence
        message = icmp.emit(icmp.ECHO_REPLY, 0, rest, payload)
        self._send_ipv4(
            request.destination_ip, request.source_ip, inet.IPPROTO_ICMP, message, request.mac, request.port, ttl
        )

    # UDP

    def _receive_udp(self, frame: memoryview, header: ipv4.Ipv4, start: int, end: int, port: int) -> None:
        self.counters.udp_datagrams_received += 1
        segment = udp.parse(frame, start, end, header.source, header.destination)
        if header.source == ANY_IP and segment.destination_port != _DHCP_SERVER_PORT:
            self.counters.drop("ipv4_source")
            return
        self._events.append(
            events.DatagramReceived(
                header.source,
                segment.source_port,
                header.destination,
                segment.destination_port,
                bytes(frame[segment.payload_offset : segment.payload_end]),
                bytes(frame[6:12]),
                port,
                header.ttl,
                bytes(frame[14 : start + icmp.QUOTED_PAYLOAD]),
            )
        )

    def send_datagram(
        self,
        source_ip: bytes,
        source_port: int,
        destination_ip: bytes,
        destination_port: int,
        payload: bytes,
        now: float,
        *,
        ttl: int = 64,
        tos: int = 0,
        mac: bytes | None = None,
        port: int | None = None,
    ) -> None:
        """Send one UDP datagram (at most 65,507 bytes) to a guest; without `mac` and `port`, to where ARP says it is.

        Raises:
            LocalError: `payload` is longer than a datagram can be.
        """
        if len(payload) > MAX_DATAGRAM:
            raise LocalError(f"a UDP datagram of {len(payload)} bytes")
        header = udp.emit(source_ip, source_port, destination_ip, destination_port, payload)
        self.counters.udp_datagrams_sent += 1
        datagram = header + payload
        if destination_ip == BROADCAST_IP and mac is None:
            mac, port = BROADCAST_MAC, BROADCAST_PORT
        if mac is not None and port is not None:
            self._send_ipv4(source_ip, destination_ip, inet.IPPROTO_UDP, datagram, mac, port, ttl, tos)
            return

        def send(neighbor: Neighbor | None) -> None:
            if neighbor is not None:
                self._send_ipv4(source_ip, destination_ip, inet.IPPROTO_UDP, datagram, *neighbor, ttl, tos)

        self._neighbors.resolve(destination_ip, send, now, len(datagram))

    # TCP

    def _receive_tcp(self, frame: memoryview, header: ipv4.Ipv4, start: int, end: int, port: int, now: float) -> None:
        raise NotImplementedError

    def _receive_unreachable(self, code: int, mtu: int, quoted: memoryview, port: int) -> None:
        raise NotImplementedError

    def _is_guest_source(self, address: bytes) -> bool:
        """Whether a guest may have `address`: unicast, not loopback, not 0/8, not ours (RFC 1122 section 3.2.1.3)."""
        first = address[0]
        return 0 < first < 224 and first != 127 and address not in self._nobody
