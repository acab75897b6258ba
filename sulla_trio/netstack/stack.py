"""The stack: ARP, IPv4, ICMP, UDP and the table of TCP connections behind one contract (DESIGN section 2).

`receive` takes one Ethernet frame, `frames_to_send` gives what is due, `poll_at` and `handle_timer` are the clock's, and
`next_event` tells the owner what happened. Nothing waits, nothing raises for what the network sends.
"""

from __future__ import annotations

import heapq
import struct
from collections import OrderedDict
from hashlib import blake2b
from math import inf
from typing import Any, Final

from sulla_trio.config import NetworkConfig
from sulla_trio.errors import BadPacket, LocalError
from sulla_trio.netstack import events, tcp_arrival
from sulla_trio.netstack.admission import AdmissionLayer
from sulla_trio.netstack.counters import Counters
from sulla_trio.netstack.credit import CreditBudget
from sulla_trio.netstack.held import HeldPorts
from sulla_trio.netstack.ip import BROADCAST_PORT, Frame, RandomSource
from sulla_trio.netstack.neighbor import Neighbor
from sulla_trio.netstack.path_mtu import PathMtus, next_mtu, quoted_segment
from sulla_trio.netstack.statistics import statistics
from sulla_trio.netstack.tcp import TcpConnection
from sulla_trio.netstack.tcp_options import TcpOptions
from sulla_trio.netstack.tcp_state import State
from sulla_trio.wire import ethernet, icmp, inet, ipv4, tcp

__all__ = ["BROADCAST_PORT", "Frame", "RandomSource", "Stack"]

EPHEMERAL_PORTS: Final = (16_000, 65_536)
"""Local ports of connections to guests (gvproxy's range)."""
BATCH_BYTES: Final = 512 << 10
"""Frames of TCP made at once, about: with the 1 MiB that a connection adds at most they stay below a link's out-queue, so
that the queue is seen to be full (`hold`) before it drops anything of TCP."""
_FRAME_COST: Final = 70
"""Bytes of a frame beside its payload."""
_TCP_OFFSET: Final = 34
"""Of TCP in a frame whose IP header has no options."""
_FRAME_MIN: Final = 54
_unpack_frame: Final = struct.Struct("!12xHBxH2xHBB2x12s").unpack_from
"""EtherType, version and IHL, total length, flags and fragment offset, TTL, protocol, key of the connection."""
_FRAGMENT: Final = ipv4.MORE_FRAGMENTS | ipv4.OFFSET_MASK


class Stack(AdmissionLayer):
    """The gateway's TCP/IP. `now` is in seconds of any clock that never goes back.

    It is the `TcpHost` of its connections: they mark themselves dirty and arm timers here, so the work of a batch is
    proportional to the segments in it and the timers that expired, never to the number of connections.
    """

    def __init__(
        self,
        network: NetworkConfig,
        random: RandomSource,
        *,
        options: TcpOptions | None = None,
        counters: Counters | None = None,
    ) -> None:
        super().__init__(network, random, counters or Counters())
        self.options = options or TcpOptions()
        self.credit = CreditBudget(self.options.budget)
        self.connections: dict[bytes, TcpConnection] = {}
        self._secret = random.getrandbits(128).to_bytes(16, "big")
        self._dirty: list[TcpConnection] = []
        self._held = HeldPorts()
        self._paths = PathMtus()
        self.batch = 0
        self._timers: list[tuple[float, int, TcpConnection]] = []
        self._timer_count = 0
        self._time_wait: OrderedDict[bytes, TcpConnection] = OrderedDict()

    # The verbs

    def receive(self, frame: memoryview, port: int, now: float) -> None:
        """Take one frame (at least 14 bytes) from the switch. Its bytes are not used after the return. Never raises: what does
        not parse is counted.

        What most frames are is checked here in line: TCP of a known connection, IPv4 without options, whole. A key in the
        table says that the addresses were found good when its connection began. All else is the `IpLayer`'s.
        """
        if len(frame) >= _FRAME_MIN:
            ethertype, first, total, flags_fragment, ttl, protocol, key = _unpack_frame(frame)
            connection = self.connections.get(key)
            if (
                connection is not None
                and protocol == inet.IPPROTO_TCP
                and first == 0x45
                and ethertype == ethernet.ETHERTYPE_IPV4
                and not flags_fragment & _FRAGMENT
                and ttl > 1
                and 40 <= total <= len(frame) - 14
                and not int.from_bytes(frame[14:_TCP_OFFSET], "big") % 65_535
            ):
                counters = self.counters
                counters.ip_datagrams_received += 1
                try:
                    segment = tcp.parse(frame, _TCP_OFFSET, 14 + total, key[:4], key[4:8])
                except BadPacket as error:
                    self._count_bad(error)
                    return
                counters.tcp_segments_received += 1
                self._now = now
                if not segment.flags & tcp.SYN:
                    connection.segment_received(segment, frame, now)
                else:
                    self._segment(key, segment, frame, ipv4.parse(frame, 14), _TCP_OFFSET, port, now)
                return
        super().receive(frame, port, now)

    def frames_to_send(self, now: float) -> list[Frame]:
        """What is due: (egress port or `BROADCAST_PORT`, headers, payload). Frame and list are the caller's.

        Call it until it returns nothing; after each batch say with `hold` which ports could not take all of theirs.
        """
        self._now = now
        self.batch += 1
        frames = self._frames
        if self._dirty:
            self._connections_frames(now, frames)
        self._frames = []
        return frames

    def _connections_frames(self, now: float, frames: list[Frame]) -> None:
        dirty, held = self._dirty, self._held
        self._dirty = []
        size = 0
        for at, connection in enumerate(dirty, 1):
            if held and connection.port in held and connection.state is not State.CLOSED:
                held.add(connection)
                continue
            unsent = connection.snd.unsent
            connection.frames(now, frames)
            size += unsent - connection.snd.unsent
            if size + _FRAME_COST * len(frames) >= BATCH_BYTES:
                self._dirty = dirty[at:] + self._dirty
                return

    def hold(self, port: int) -> None:
        """The link of `port` did not take all of the last batch: TCP sends nothing there until `release`. Idempotent."""
        self._held.hold(port, self.batch)

    def release(self, port: int) -> None:
        """The out-queue of `port` is empty again; what waited is due (`frames_to_send`)."""
        self._dirty = self._held.release(port) + self._dirty

    def poll_at(self) -> float | None:
        """When `handle_timer` wants to be called; None: never."""
        timers = self._timers
        while timers and timers[0][0] != timers[0][2].armed_at:
            heapq.heappop(timers)
        deadlines = (
            timers[0][0] if timers else None,
            self._neighbors.poll_at(),
            self._reassembler.poll_at(),
        )
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def handle_timer(self, now: float) -> None:
        """Act on what is due. Harmless when nothing is."""
        self._now = now
        timers = self._timers
        while timers and timers[0][0] <= now:
            deadline, _, connection = heapq.heappop(timers)
            if deadline == connection.armed_at:
                connection.handle_timer(now)
        self._neighbors.handle_timer(now)
        self._reassembler.handle_timer(now)

    def next_event(self) -> events.Event | None:
        """The oldest event nobody has taken; None: all are."""
        return self._events.popleft() if self._events else None

    def statistics(self) -> dict[str, Any]:
        """The counters as gvproxy's ``/stats`` has them (specs/gvproxy.md section 2.1)."""
        return statistics(self.counters)

    # The host of connections

    def mark_dirty(self, connection: TcpConnection) -> None:
        self._dirty.append(connection)

    def arm(self, connection: TcpConnection, deadline: float) -> None:
        self._timer_count += 1
        heapq.heappush(self._timers, (deadline, self._timer_count, connection))
        if len(self._timers) > 64 and len(self._timers) > 2 * len(self.connections):
            self._rebuild_timers()

    def _rebuild_timers(self) -> None:
        """Drop stale entries, which lazy deletion leaves behind."""
        self._timers = [
            (connection.armed_at, number, connection)
            for number, connection in enumerate(self.connections.values())
            if connection.armed_at != inf
        ]
        self._timer_count = max(self._timer_count, len(self.connections))
        heapq.heapify(self._timers)

    def raise_event(self, event: events.Event) -> None:
        self._events.append(event)

    def forget(self, connection: TcpConnection) -> None:
        if self.connections.get(connection.key) is connection:
            del self.connections[connection.key]
        self._time_wait.pop(connection.key, None)
        if self._held.discard(connection):
            self._dirty.append(connection)  # a RST is due, whatever the queue

    def is_queued(self, connection: TcpConnection) -> bool:
        return self._held.is_queued(connection)

    def entered_time_wait(self, connection: TcpConnection) -> None:
        self._time_wait[connection.key] = connection
        while len(self._time_wait) > self.options.time_wait_limit:
            _, oldest = self._time_wait.popitem(last=False)
            oldest.expire()

    # TCP

    def _receive_tcp(self, frame: memoryview, header: ipv4.Ipv4, start: int, end: int, port: int, now: float) -> None:
        segment = tcp.parse(frame, start, end, header.source, header.destination)
        self.counters.tcp_segments_received += 1
        key = bytes(frame[26:34]) + bytes(frame[start : start + 4])
        self._segment(key, segment, frame, header, start, port, now)

    def _segment(
        self, key: bytes, segment: tcp.Segment, frame: memoryview, header: ipv4.Ipv4, start: int, port: int, now: float
    ) -> None:
        connection = self.connections.get(key)
        if connection is not None:
            if segment.flags & tcp.SYN and connection.reopens(segment):
                connection.expire()
            else:
                connection.segment_received(segment, frame, now)
                return
        self._receive_unknown(key, segment, frame, header, start, port, now)

    def _receive_unreachable(self, code: int, mtu: int, quoted: memoryview, port: int) -> None:
        """An ICMP error about a segment of ours. It is believed only of what is in flight, from where the connection is
        (RFC 5927 section 4.1); about anything else it is counted."""
        about = quoted_segment(quoted)
        connection = None if about is None else self.connections.get(about.key)
        if about is None or connection is None or connection.port != port or not connection.snd.in_flight(about.seq):
            self.counters.drop("icmp_unreachable")
            return
        if code != icmp.UNREACHABLE_FRAG_NEEDED:
            tcp_arrival.unreachable(connection, code)
            return
        lower = next_mtu(mtu, about.length)
        if lower is None:
            self.counters.drop("icmp_unreachable")
            return
        self._paths.lower(about.remote_ip, lower, self._now)
        tcp_arrival.path_narrowed(connection, lower - 40)

    def path_mss(self, remote_ip: bytes) -> int:
        return self._paths.get(remote_ip, self.network.mtu, self._now) - 40

    def accept(self, request: events.ConnectionRequest, now: float) -> TcpConnection:
        """Answer `request` with a SYN-ACK. The connection is in SYN-RECEIVED; `Connected` follows.

        Raises:
            LocalError: the request is no longer pending (it was answered or cancelled).
        """
        self._take(request)
        connection = TcpConnection.passive(
            self,
            request.segment,
            request.remote_ip,
            request.local_ip,
            request.mac,
            request.port,
            isn=self._isn(request.key, now),
            mss=self.network.mtu - 40,
            now=now,
        )
        self.connections[request.key] = connection
        self._half_open.add(connection, now)
        return connection

    def connect(
        self,
        remote_ip: bytes,
        remote_port: int,
        now: float,
        *,
        local_ip: bytes | None = None,
        local_port: int | None = None,
    ) -> TcpConnection:
        """Open a connection to a guest, from the gateway unless told otherwise. `Connected` or `Closed` follows.

        Raises:
            LocalError: every local port to that guest is taken.
        """
        source = local_ip or self.network.gateway_ip
        key, port = self._free_key(remote_ip, remote_port, source, local_port)
        neighbor = self._neighbors.get(remote_ip)
        connection = TcpConnection.active(
            self,
            remote_ip,
            remote_port,
            source,
            port,
            neighbor.mac if neighbor else None,
            neighbor.port if neighbor else -1,
            isn=self._isn(key, now),
            mss=self.network.mtu - 40,
            now=now,
        )
        self.connections[key] = connection
        if neighbor is None:

            def found(answer: Neighbor | None) -> None:
                if answer is None:
                    connection.fail("timeout", self._now)
                else:
                    connection.resolved(*answer)

            self._neighbors.resolve(remote_ip, found, now)
        return connection

    def _free_key(
        self, remote_ip: bytes, remote_port: int, local_ip: bytes, local_port: int | None
    ) -> tuple[bytes, int]:
        first, last = EPHEMERAL_PORTS
        at = self._random.randrange(first, last) if local_port is None else local_port
        for _ in range(last - first if local_port is None else 1):
            key = remote_ip + local_ip + struct.pack("!HH", remote_port, at)
            taken = self.connections.get(key)
            if taken is None:
                return key, at
            at = at + 1 if at + 1 < last else first
        raise LocalError(f"no free port to connect to port {remote_port} of the guest from")

    def _isn(self, key: bytes, now: float) -> int:
        """RFC 6528: a clock of 4 us plus a keyed hash of the four-tuple."""
        digest = blake2b(key, key=self._secret, digest_size=4).digest()
        return (int(now * 250_000) + int.from_bytes(digest, "big")) & 0xFFFFFFFF

    def port_removed(self, port: int, now: float) -> None:
        """The switch port is gone: its neighbors, requests and connections with it; owners hear `Closed` with ``reset``."""
        self._now = now
        self._neighbors.port_removed(port)
        for key in self._pending.of_port(port):
            self._cancel(key)
        for connection in [connection for connection in self.connections.values() if connection.port == port]:
            connection.fail("reset", now)
        self._held.release(port)
