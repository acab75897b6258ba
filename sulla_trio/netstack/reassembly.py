"""IPv4 reassembly, bounded in datagrams, bytes and time; any overlap ends the datagram (RFC 791; RFC 5722's rule for IPv4 too)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from sulla_trio.netstack.counters import Counters
from sulla_trio.wire.inet import Buffer
from sulla_trio.wire.ipv4 import Ipv4

TIMEOUT: Final = 30.0
MAX_DATAGRAMS: Final = 64
MAX_BYTES: Final = 4 << 20
"""All fragments held together: 64 datagrams of the largest size."""
MAX_FRAGMENTS: Final = 128
"""Of one datagram: 64 KiB in pieces of 576 bytes."""
MAX_DATAGRAM: Final = 65_535 - 20

Key = tuple[bytes, bytes, int, int, int]


class _Partial:
    __slots__ = ("deadline", "header", "parts", "size", "total")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.parts: list[tuple[int, bytes]] = []
        """(offset, bytes), sorted, disjoint."""
        self.size = 0
        self.total: int | None = None
        self.header = b""


class Reassembler:
    """Holds fragments until a datagram is whole. Owns copies of their bytes."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._partials: OrderedDict[Key, _Partial] = OrderedDict()
        self._bytes = 0

    @property
    def held(self) -> int:
        """Bytes held."""
        return self._bytes

    def add(
        self, header: Ipv4, port: int, raw_header: bytes, payload: Buffer, now: float
    ) -> tuple[bytes, bytes] | None:
        """Take one fragment: (IP header of the first fragment, whole payload) once complete, else None. Drops are counted."""
        self.handle_timer(now)
        key = (header.source, header.destination, header.protocol, header.identification, port)
        partial = self._partials.get(key)
        if partial is None:
            if len(self._partials) >= MAX_DATAGRAMS:
                self._forget(next(iter(self._partials)), "ipv4_reassembly_full")
            partial = self._partials[key] = _Partial(now + TIMEOUT)
        start, size = header.fragment_offset, len(payload)
        end = start + size
        if not size or end > MAX_DATAGRAM or (header.more_fragments and size % 8):
            self._forget(key, "ipv4_fragment_bad")
            return None
        if not self._insert(partial, start, end, payload, last=not header.more_fragments):
            self._forget(key, "ipv4_fragment_overlap")
            return None
        if start == 0:
            partial.header = raw_header
        if partial.total == partial.size:
            del self._partials[key]
            self._bytes -= partial.size
            return partial.header, b"".join(part for _, part in partial.parts)
        if len(partial.parts) > MAX_FRAGMENTS:
            self._forget(key, "ipv4_fragment_many")
        while self._bytes > MAX_BYTES:
            self._forget(next(iter(self._partials)), "ipv4_reassembly_full")
        return None

    def _insert(self, partial: _Partial, start: int, end: int, payload: Buffer, *, last: bool) -> bool:
        """False: it overlaps, or contradicts where the datagram ends."""
        if last:
            if partial.total is not None and partial.total != end:
                return False
            partial.total = end
        if partial.total is not None and (end > partial.total or any(at >= partial.total for at, _ in partial.parts)):
            return False
        parts = partial.parts
        index = len(parts)
        while index and parts[index - 1][0] > start:
            index -= 1
        if index and parts[index - 1][0] + len(parts[index - 1][1]) > start:
            return False
        if index < len(parts) and end > parts[index][0]:
            return False
        parts.insert(index, (start, bytes(payload)))
        partial.size += end - start
        self._bytes += end - start
        return True

    def _forget(self, key: Key, reason: str) -> None:
        partial = self._partials.pop(key)
        self._bytes -= partial.size
        self._counters.drop(reason, max(1, len(partial.parts)))

    def poll_at(self) -> float | None:
        """When the oldest datagram times out."""
        return next(iter(self._partials.values())).deadline if self._partials else None

    def handle_timer(self, now: float) -> None:
        """Drop what was not completed in time."""
        while self._partials and next(iter(self._partials.values())).deadline <= now:
            self._forget(next(iter(self._partials)), "ipv4_reassembly_timeout")
