"""SYNs that nobody has answered yet, bounded: in all, per guest and per destination (DESIGN law 6); and connections whose
handshake the guest does not complete."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, TypeVar

from sulla_trio.netstack.counters import Counters
from sulla_trio.netstack.events import ConnectionRequest
from sulla_trio.netstack.tcp_state import State

if TYPE_CHECKING:
    from sulla_trio.netstack.tcp import TcpConnection

_Key = TypeVar("_Key")

MAX_PENDING: Final = 1024
MAX_PER_GUEST: Final = 256
MAX_PER_DESTINATION: Final = 64
MAX_HALF_OPEN: Final = 4096
"""Connections whose SYN-ACK nobody has acknowledged. A busy guest that opens 2,000 at once has 1,500 of them for a moment;
4,096 are about 40 MB with their host sockets."""


class PendingRequests:
    """Unanswered `ConnectionRequest`s by key. A destination that swallows SYNs cannot starve the others."""

    __slots__ = ("_destinations", "_guests", "_requests")

    def __init__(self) -> None:
        self._requests: dict[bytes, ConnectionRequest] = {}
        self._guests: dict[bytes, int] = {}
        self._destinations: dict[tuple[bytes, int], int] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def get(self, key: bytes) -> ConnectionRequest | None:
        """The request with that key."""
        return self._requests.get(key)

    def add(self, request: ConnectionRequest) -> str | None:
        """Keep `request`; or the reason why a bound forbids it."""
        destination = (request.local_ip, request.local_port)
        if len(self._requests) >= MAX_PENDING:
            return "syn_pending_full"
        if self._guests.get(request.remote_ip, 0) >= MAX_PER_GUEST:
            return "syn_pending_guest_full"
        if self._destinations.get(destination, 0) >= MAX_PER_DESTINATION:
            return "syn_pending_destination_full"
        self._requests[request.key] = request
        self._guests[request.remote_ip] = self._guests.get(request.remote_ip, 0) + 1
        self._destinations[destination] = self._destinations.get(destination, 0) + 1
        return None

    def pop(self, key: bytes) -> ConnectionRequest | None:
        """Take the request with that key out."""
        request = self._requests.pop(key, None)
        if request is None:
            return None
        _less(self._guests, request.remote_ip)
        _less(self._destinations, (request.local_ip, request.local_port))
        return request

    def of_port(self, port: int) -> list[bytes]:
        """Keys of the requests that came in by `port`."""
        return [key for key, request in self._requests.items() if request.port == port]


class HalfOpenConnections:
    """Connections in SYN-RECEIVED. When there are too many the oldest go (RFC 4987 section 3.4): whoever means it completes
    the handshake in one round trip."""

    __slots__ = ("_accepted", "_counters")

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._accepted: deque[TcpConnection] = deque()
        """Oldest first; those that are no longer half-open are found out when it is full."""

    def add(self, connection: TcpConnection, now: float) -> None:
        """`connection` has just been accepted."""
        if len(self._accepted) >= MAX_HALF_OPEN:
            self._accepted = deque(each for each in self._accepted if each.state is State.SYN_RECEIVED)
            while len(self._accepted) > MAX_HALF_OPEN * 3 // 4:  # a quarter at once, so that looking is rare
                self._counters.drop("syn_half_open_full")
                self._accepted.popleft().fail("timeout", now)
        self._accepted.append(connection)


def _less(counts: dict[_Key, int], key: _Key) -> None:
    left = counts[key] - 1
    if left:
        counts[key] = left
    else:
        del counts[key]
