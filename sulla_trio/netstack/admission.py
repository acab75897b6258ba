"""What becomes of a segment that belongs to no connection: a request, a RST, or nothing (RFC 9293 section 3.10.7.1 and .2).

`AdmissionLayer` lies between `IpLayer` and `Stack`: it knows requests, and no connection.
"""

from __future__ import annotations

from sulla_trio.config import NetworkConfig
from sulla_trio.errors import LocalError
from sulla_trio.netstack import events
from sulla_trio.netstack.counters import Counters
from sulla_trio.netstack.ip import IpLayer, RandomSource
from sulla_trio.netstack.pending import HalfOpenConnections, PendingRequests
from sulla_trio.wire import icmp, inet, ipv4, tcp


class AdmissionLayer(IpLayer):
    """SYNs of guests wait here as `ConnectionRequest`s until somebody answers them."""

    def __init__(self, network: NetworkConfig, random: RandomSource, counters: Counters) -> None:
        super().__init__(network, random, counters)
        self._pending = PendingRequests()
        self._half_open = HalfOpenConnections(counters)

    @property
    def pending(self) -> int:
        """Connection requests that nobody has answered yet."""
        return len(self._pending)

    def _receive_unknown(
        self, key: bytes, segment: tcp.Segment, frame: memoryview, header: ipv4.Ipv4, start: int, port: int, now: float
    ) -> None:
        """A segment of no connection: a SYN asks for one, all else but a RST is reset (RFC 9293 section 3.10.7.1 and .2)."""
        pending = self._pending.get(key)
        flags = segment.flags
        if flags & tcp.RST:
            self.counters.tcp_resets_received += 1
            if pending is not None:
                self._cancel(key)
            return
        if header.destination[0] >= 224 or frame[0] & 1:  # RFC 1122 section 4.2.3.10
            self.counters.drop("tcp_group")
            return
        if not flags & tcp.SYN or flags & tcp.ACK:
            self._reset(header, segment, frame, port)
            return
        if pending is not None:
            if pending.segment.seq == segment.seq:
                return  # the guest's retransmission: the answer is on its way
            self._cancel(key)
        request = events.ConnectionRequest(
            key,
            header.source,
            segment.source_port,
            header.destination,
            segment.destination_port,
            bytes(frame[6:12]),
            port,
            segment,
            bytes(frame[14 : start + icmp.QUOTED_PAYLOAD]),
            now,
        )
        refused = self._pending.add(request)
        if refused is not None:
            self.counters.drop(refused)
            return
        self._neighbors.learn(header.source, request.mac, port)
        self._events.append(request)

    def _cancel(self, key: bytes) -> None:
        self._pending.pop(key)
        self._events.append(events.RequestCancelled(key))

    def _reset(self, header: ipv4.Ipv4, segment: tcp.Segment, frame: memoryview, port: int) -> None:
        """RFC 9293 section 3.10.7.1: the RST's numbers make it acceptable to whoever sent `segment`."""
        length = segment.payload_end - segment.payload_offset
        length += bool(segment.flags & tcp.SYN) + bool(segment.flags & tcp.FIN)
        if segment.flags & tcp.ACK:
            seq, ack, flags = segment.ack, 0, tcp.RST
        else:
            seq, ack, flags = 0, (segment.seq + length) & 0xFFFFFFFF, tcp.RST | tcp.ACK
        self.counters.tcp_resets_sent += 1
        reset = tcp.emit(
            header.destination, segment.destination_port, header.source, segment.source_port, seq, ack, flags, 0
        )
        self._send_ipv4(header.destination, header.source, inet.IPPROTO_TCP, reset, bytes(frame[6:12]), port)

    def reject(self, request: events.ConnectionRequest, now: float) -> None:
        """Answer `request` with a RST. LocalError as `accept`."""
        self._take(request)
        ack = (request.segment.seq + 1) & 0xFFFFFFFF
        self.counters.tcp_resets_sent += 1
        reset = tcp.emit(
            request.local_ip, request.local_port, request.remote_ip, request.remote_port, 0, ack, tcp.RST | tcp.ACK, 0
        )
        self._send_ipv4(request.local_ip, request.remote_ip, inet.IPPROTO_TCP, reset, request.mac, request.port)

    def unreachable(self, request: events.ConnectionRequest, code: int, now: float) -> None:
        """Answer `request` with an ICMP unreachable (`code`) quoting it, and a RST behind it. LocalError as `accept`."""
        self.send_icmp_error(
            icmp.UNREACHABLE, code, 0, request.header, request.remote_ip, request.mac, request.port, now
        )
        self.reject(request, now)

    def drop(self, request: events.ConnectionRequest) -> None:
        """Answer nothing; a retransmitted SYN is a new request. Harmless when it is no longer pending."""
        self._pending.pop(request.key)

    def _take(self, request: events.ConnectionRequest) -> None:
        if self._pending.get(request.key) is not request:
            raise LocalError("the connection request is no longer pending")
        self._pending.pop(request.key)
