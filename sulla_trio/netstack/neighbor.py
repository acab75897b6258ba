"""Who has which address: the neighbor cache and the packets that wait for it (RFC 826; RFC 1122 section 2.3.2)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple

from sulla_trio.netstack.counters import Counters

CACHE_LIMIT: Final = 512
"""Addresses remembered; the longest unused goes (gvproxy's number)."""
UNRESOLVED_LIMIT: Final = 256
"""Addresses asked for at one time."""
PENDING_LIMIT: Final = 256
"""Packets that wait for one address; the newest are dropped (gvproxy's number: as many connections may open at once)."""
PENDING_TOTAL: Final = 1024
"""Packets that wait for any address."""
PENDING_BYTES: Final = 1 << 20
"""Bytes of all packets that wait: 16 of the largest datagrams."""
RETRY: Final = 1.0
TRIES: Final = 3


class Neighbor(NamedTuple):
    """Where an address is: its MAC and switch port."""

    mac: bytes
    port: int


class _Unresolved:
    __slots__ = ("deadline", "pending", "tries")

    def __init__(self, deadline: float) -> None:
        self.tries = 1
        self.deadline = deadline
        self.pending: list[tuple[Callable[[Neighbor | None], None], int]] = []
        """What to call, and the bytes it holds."""


class NeighborCache:
    """Address to `Neighbor`. `ask` broadcasts an ARP request for an address."""

    def __init__(self, ask: Callable[[bytes], None], counters: Counters) -> None:
        self._ask = ask
        self._counters = counters
        self._known: OrderedDict[bytes, Neighbor] = OrderedDict()
        self._unresolved: dict[bytes, _Unresolved] = {}
        self._waiting = self._waiting_bytes = 0

    def __len__(self) -> int:
        return len(self._known)

    @property
    def waiting(self) -> tuple[int, int]:
        """Packets that wait, and their bytes."""
        return self._waiting, self._waiting_bytes

    def get(self, address: bytes) -> Neighbor | None:
        """What is known now."""
        return self._known.get(address)

    def learn(self, address: bytes, mac: bytes, port: int) -> None:
        """`address` is at (`mac`, `port`); what waited for it goes."""
        known = self._known
        neighbor = known.get(address)
        if neighbor is None or neighbor != (mac, port):
            neighbor = known[address] = Neighbor(mac, port)
            if len(known) > CACHE_LIMIT:
                known.popitem(last=False)
        waiting = self._unresolved.pop(address, None)
        if waiting is not None:
            self._answer(waiting, neighbor)

    def resolve(self, address: bytes, then: Callable[[Neighbor | None], None], now: float, size: int = 0) -> None:
        """Call `then` with the neighbor: at once, when ARP answers, or with None after three requests without an answer.

        `then` owns what it sends (`size` bytes), which is bounded: beyond it is called with None at once.
        """
        neighbor = self._known.get(address)
        if neighbor is not None:
            self._known.move_to_end(address)
            then(neighbor)
            return
        waiting = self._unresolved.get(address)
        if waiting is None:
            if len(self._unresolved) >= UNRESOLVED_LIMIT:
                self._counters.drop("neighbor_table_full")
                then(None)
                return
            waiting = self._unresolved[address] = _Unresolved(now + RETRY)
            self._ask(address)
        if (
            len(waiting.pending) >= PENDING_LIMIT
            or self._waiting >= PENDING_TOTAL
            or self._waiting_bytes + size > PENDING_BYTES
        ):
            self._counters.drop("neighbor_queue_full")
            then(None)
            return
        waiting.pending.append((then, size))
        self._waiting += 1
        self._waiting_bytes += size

    def _answer(self, waiting: _Unresolved, neighbor: Neighbor | None) -> None:
        """Everything that waited goes, or hears that nobody is there."""
        self._waiting -= len(waiting.pending)
        self._waiting_bytes -= sum(size for _, size in waiting.pending)
        for then, _ in waiting.pending:
            then(neighbor)

    def port_removed(self, port: int) -> None:
        """Forget every address that was there."""
        for address in [address for address, neighbor in self._known.items() if neighbor.port == port]:
            del self._known[address]

    def poll_at(self) -> float | None:
        """When `handle_timer` wants to be called."""
        return min((waiting.deadline for waiting in self._unresolved.values()), default=None)

    def handle_timer(self, now: float) -> None:
        """Ask again, or give up."""
        for address, waiting in list(self._unresolved.items()):
            if waiting.deadline > now or address not in self._unresolved:
                continue
            if waiting.tries < TRIES:
                waiting.tries += 1
                waiting.deadline = now + RETRY
                self._ask(address)
                continue
            del self._unresolved[address]
            self._counters.drop("neighbor_unresolved", len(waiting.pending))
            self._answer(waiting, None)
