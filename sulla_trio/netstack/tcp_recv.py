"""The receiving half of a connection: RCV.*, the receive queue, reassembly, and the window as credit.

Positions of out-of-order bytes are stream offsets (0 is the first byte after the SYN), which never wrap.
"""

from __future__ import annotations

from typing import Final

from sulla_trio.netstack.credit import CreditBudget
from sulla_trio.netstack.ranges import RangeSet
from sulla_trio.netstack.seqnum import MASK
from sulla_trio.netstack.tcp_options import TcpOptions

WINDOW_SHIFT: Final = 7
"""The scale we offer: 65535 << 7 is twice the largest window, and 128 bytes of granularity cost nothing."""
WINDOW_SLACK: Final = 4096
"""Bytes that may be queued beyond the window's size. A scaled window rounds up so that the right edge never moves left
(RFC 7323 section 2.4); a peer that sends single bytes could creep on it for ever, and beyond this it is not heard."""
MIN_PIECES: Final = 32
BYTES_PER_PIECE: Final = 256
"""Out-of-order pieces a window may hold: one per so many bytes, since each costs about 100 bytes beside its own."""


class Receiver:
    """Sequence space of what the peer sends. `capacity` (bytes) is charged to the budget until `release`."""

    __slots__ = (
        "_credit",
        "_max_window",
        "_pieces",
        "_ranges",
        "ack_now",
        "ack_threshold",
        "capacity",
        "delivered",
        "duplicate",
        "edge",
        "fin_at",
        "fin_received",
        "irs",
        "last_ack",
        "last_piece",
        "mss",
        "nxt",
        "out_of_order",
        "position",
        "queue",
        "queued",
        "shift",
        "ts_recent",
        "ts_recent_at",
        "unacked",
    )

    def __init__(self, options: TcpOptions, credit: CreditBudget, mss: int) -> None:
        self._credit = credit
        self._max_window = options.max_window
        self.capacity = credit.open(options.initial_window)
        self.mss = mss
        self.shift = 0
        self.irs = self.nxt = self.edge = self.last_ack = 0
        self.position = 0
        """Stream offset of RCV.NXT."""
        self.queue: bytearray | None = None
        self.queued = 0
        self.delivered = 0
        """Bytes the owner has taken since the window last grew."""
        self._ranges: RangeSet | None = None
        self._pieces: dict[int, bytes] = {}
        self.last_piece = 0
        self.out_of_order = 0
        """Segments stored since the last ACK went out."""
        self.duplicate: tuple[int, int] | None = None
        """Sequence numbers (first, one past the last) that came twice, until they are reported (RFC 2883)."""
        self.fin_at: int | None = None
        """Stream offset of a FIN that came out of order."""
        self.fin_received = False
        self.ack_now = False
        self.unacked = 0
        """Bytes received since the last ACK went out."""
        self.ack_threshold = self._threshold()
        self.ts_recent = 0
        self.ts_recent_at = 0.0

    def synchronize(self, irs: int, *, scaled: bool) -> None:
        """The peer's SYN has come: its sequence number, and whether both sides scale windows."""
        self.irs = irs
        self.nxt = self.last_ack = (irs + 1) & MASK
        if scaled:
            self.shift = WINDOW_SHIFT
        else:
            self._max_window = min(self._max_window, 0xFFFF)
        self.edge = (self.nxt + self.syn_window()) & MASK

    def syn_window(self) -> int:
        """The window field of a SYN, which is never scaled (RFC 7323 section 2.2)."""
        return min(self.capacity, 0xFFFF)

    def _threshold(self) -> int:
        """Every second full segment is acknowledged at once (RFC 9293 section 3.8.6.3), sooner in a small window."""
        return min(2 * (self.mss - 12), self.capacity // 4)

    # The window

    def _available(self) -> int:
        """How far the window may reach beyond RCV.NXT; grows it when the owner has drained a full one."""
        capacity = self.capacity
        if self.delivered >= capacity and capacity < self._max_window:
            more = min(capacity, self._max_window - capacity)
            if self._credit.grow(more):
                self.capacity = capacity = capacity + more
                self.delivered = 0
                self.ack_threshold = self._threshold()
        return min(capacity, 0xFFFF << self.shift) - self.queued

    def advertise(self) -> int:
        """The window field for a segment about to be sent; remembers what it grants.

        The edge moves right by at least a segment or half the buffer (RFC 9293 section 3.8.6.2.2) and never left.
        """
        nxt, shift = self.nxt, self.shift
        window = (self.edge - nxt) & MASK
        available = self._available()
        if available - window >= self.mss or available - window >= self.capacity >> 1:
            field = available >> shift
            if field << shift < window:
                field = (window + (1 << shift) - 1) >> shift
        else:
            field = (window + (1 << shift) - 1) >> shift
        if field > 0xFFFF:
            field = 0xFFFF
        self.edge = (nxt + (field << shift)) & MASK
        self.last_ack = nxt
        self.unacked = 0
        self.ack_now = False
        return field

    def window_opened(self) -> bool:
        """Whether the peer should be told of room at once: two segments or half the buffer more than it knows of."""
        gain = self._available() - ((self.edge - self.nxt) & MASK)
        return gain >= 2 * self.mss or gain >= self.capacity >> 1

    def release(self) -> None:
        """Give the credit back; the connection is over."""
        if self.capacity:
            self._credit.close(self.capacity)
            self.capacity = 0
        self.queue, self.queued = None, 0
        self._ranges, self._pieces = None, {}

    # The queue

    def enqueue(self, view: memoryview) -> None:
        """Copy in-order bytes that the owner has not taken."""
        if self.queue is None:
            self.queue = bytearray(view)
        else:
            self.queue += view
        self.queued += len(view)

    def take(self, limit: int) -> bytes:
        """Remove up to `limit` bytes from the front of the queue."""
        queue = self.queue
        if queue is None or limit <= 0:
            return b""
        data = bytes(queue[:limit]) if limit < len(queue) else bytes(queue)
        self.discard(len(data))
        return data

    def discard(self, count: int) -> None:
        """`count` bytes of the front of the queue have been delivered."""
        queue = self.queue
        assert queue is not None
        if count >= len(queue):
            self.queue = None
        else:
            del queue[:count]
        self.queued -= count
        self.delivered += count

    @property
    def is_full(self) -> bool:
        """Whether so much is queued that nothing more is accepted, see `WINDOW_SLACK`."""
        return self.queued > self.capacity + WINDOW_SLACK

    # Reassembly

    @property
    def is_reassembling(self) -> bool:
        return self._ranges is not None

    def store(self, offset: int, view: memoryview) -> None:
        """Keep what is new of out-of-order bytes; `offset` is the stream offset of the first. What came first stays."""
        if self._ranges is None:
            self._ranges = RangeSet()
        if len(self._pieces) >= max(MIN_PIECES, self.capacity // BYTES_PER_PIECE):
            return
        stop = offset + len(view)
        gaps = self._ranges.gaps(offset, stop)
        for start, end in gaps:
            self._pieces[start] = bytes(view[start - offset : end - offset])
        if not gaps:
            base = self.nxt - self.position
            self.duplicate = ((base + offset) & MASK, (base + stop) & MASK)
        self._ranges.add(offset, stop)
        self.last_piece = offset
        self.out_of_order += 1

    def missing(self, offset: int, stop: int) -> int:
        """How many bytes of [offset, stop), which begins at RCV.NXT, come before the first stored one."""
        if self._ranges is None:
            return stop - offset
        gaps = self._ranges.gaps(offset, stop)
        return gaps[0][1] - offset if gaps and gaps[0][0] == offset else 0

    def next_piece(self) -> bytes | None:
        """Remove and return the stored bytes that begin at RCV.NXT."""
        piece = self._pieces.pop(self.position, None)
        if piece is not None and self._ranges is not None:
            self._ranges.subtract(self.position, self.position + len(piece))
            if not self._ranges:
                self._ranges = None
        return piece

    def advance(self, count: int) -> None:
        """`count` octets were accepted or queued."""
        self.position += count
        self.nxt = (self.nxt + count) & MASK

    @property
    def has_sack_blocks(self) -> bool:
        return self._ranges is not None or self.duplicate is not None

    def sack_blocks(self) -> tuple[tuple[int, int], ...]:
        """Up to four SACK blocks: what has come twice (RFC 2883 section 4, said once), then that with the latest arrival
        (RFC 2018 section 4)."""
        twice = () if self.duplicate is None else (self.duplicate,)
        self.duplicate = None
        if self._ranges is None:
            return twice
        blocks = []
        latest = self._ranges.range_of(self.last_piece)
        if latest is not None:
            blocks.append(latest)
        for block in self._ranges:
            if len(blocks) == 3:
                break
            if block != latest:
                blocks.append(block)
        base = self.nxt - self.position
        return twice + tuple(((base + start) & MASK, (base + stop) & MASK) for start, stop in blocks)
