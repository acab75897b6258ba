"""The least stack that TCP connections need: one IP each side, no ARP, every SYN accepted. It has the stack's five verbs."""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field
from math import inf

from sulla_trio.errors import BadPacket
from sulla_trio.netstack.counters import Counters
from sulla_trio.netstack.credit import CreditBudget
from sulla_trio.netstack.events import Event
from sulla_trio.netstack.tcp import TcpConnection, TcpOptions
from sulla_trio.wire import ipv4, tcp

GATEWAY_IP, GUEST_IP = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])
GATEWAY_MAC, GUEST_MAC = b"\x02\0\0\0\0\1", b"\x02\0\0\0\0\2"


@dataclass
class BareStack:
    """A `TcpHost`. `isn` is the initial sequence number of its next connection."""

    options: TcpOptions = field(default_factory=TcpOptions)
    ip: bytes = GATEWAY_IP
    gateway_mac: bytes = GATEWAY_MAC
    peer_mac: bytes = GUEST_MAC
    mss: int = 1460
    isn: int = 1000

    def __post_init__(self) -> None:
        self.counters = Counters()
        self.credit = CreditBudget(self.options.budget)
        self.connections: dict[bytes, TcpConnection] = {}
        self.accepted: list[TcpConnection] = []
        self.time_wait: list[TcpConnection] = []
        self.events: deque[Event] = deque()
        self.dirty: list[TcpConnection] = []
        self.heap: list[tuple[float, int, TcpConnection]] = []
        self._pushed = 0
        self.batch = 0

    # TcpHost

    def mark_dirty(self, connection: TcpConnection) -> None:
        self.dirty.append(connection)

    def arm(self, connection: TcpConnection, deadline: float) -> None:
        self._pushed += 1
        heapq.heappush(self.heap, (deadline, self._pushed, connection))

    def raise_event(self, event: Event) -> None:
        self.events.append(event)

    def forget(self, connection: TcpConnection) -> None:
        self.connections.pop(connection.key, None)

    def path_mss(self, remote_ip: bytes) -> int:
        return self.mss

    def is_queued(self, connection: TcpConnection) -> bool:
        return False

    def entered_time_wait(self, connection: TcpConnection) -> None:
        self.time_wait.append(connection)

    # The stack's verbs

    def connect(self, remote_ip: bytes, remote_port: int, now: float, *, local_port: int = 40_000) -> TcpConnection:
        connection = TcpConnection.active(
            self, remote_ip, remote_port, self.ip, local_port, self.peer_mac, 0, isn=self.isn, mss=self.mss, now=now
        )
        self.connections[connection.key] = connection
        return connection

    def receive(self, frame: memoryview, port: int, now: float) -> None:
        try:
            header = ipv4.parse(frame, 14)
            start = 14 + header.header_length
            segment = tcp.parse(frame, start, 14 + header.total_length, header.source, header.destination)
        except BadPacket as error:
            self.counters.drop(error.reason)
            return
        key = header.source + header.destination + bytes(frame[start : start + 4])
        connection = self.connections.get(key)
        if connection is not None:
            connection.segment_received(segment, frame, now)
        elif segment.flags & (tcp.SYN | tcp.ACK) == tcp.SYN:
            connection = TcpConnection.passive(
                self,
                segment,
                header.source,
                header.destination,
                self.peer_mac,
                port,
                isn=self.isn,
                mss=self.mss,
                now=now,
            )
            self.connections[key] = connection
            self.accepted.append(connection)

    def frames_to_send(self, now: float) -> list[tuple[int, bytes, bytes | memoryview]]:
        self.batch += 1
        out: list[tuple[int, bytes, bytes | memoryview]] = []
        dirty, self.dirty = self.dirty, []
        for connection in dirty:
            connection.frames(now, out)
        return out

    def poll_at(self) -> float | None:
        while self.heap and self.heap[0][0] != self.heap[0][2].armed_at:
            heapq.heappop(self.heap)
        return self.heap[0][0] if self.heap else None

    def handle_timer(self, now: float) -> None:
        while self.heap and self.heap[0][0] <= now:
            deadline, _, connection = heapq.heappop(self.heap)
            if deadline == connection.armed_at:
                connection.handle_timer(now)

    def next_event(self) -> Event | None:
        return self.events.popleft() if self.events else None


def next_deadline(*stacks: BareStack) -> float:
    """The earliest timer of several stacks; inf when none runs."""
    return min((at for stack in stacks if (at := stack.poll_at()) is not None), default=inf)
