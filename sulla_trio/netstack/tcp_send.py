"""The sending half of a connection: SND.*, the queued chunks, and the congestion window (RFC 5681).

Bytes given to `enqueue` are kept by reference until acknowledged; segments, first or again, are slices of them.
"""

from __future__ import annotations

from collections import deque
from typing import Final, TypeAlias

from sulla_trio.netstack import tcp_recovery
from sulla_trio.netstack.seqnum import MASK
from sulla_trio.netstack.tcp_options import NEVER, TcpOptions
from sulla_trio.netstack.tcp_recovery import DUPLICATE_ACKS
from sulla_trio.netstack.tcp_rtt import RttEstimator
from sulla_trio.netstack.tcp_sack import Scoreboard

Payload: TypeAlias = bytes | memoryview

COALESCE: Final = 4096
"""Small writes are joined (a copy) up to this size, so that neither chunks nor segments are tiny."""
INITIAL_WINDOW_BYTES: Final = 14_600


class Sender:
    """Sequence space of what we send, from the octet after the SYN.

    Invariant: UNA <= NXT <= MAX. NXT goes back to UNA after a time-out (go-back-N); MAX is the highest that was ever
    sent.
    """

    __slots__ = (
        "_cursor",
        "_head",
        "_index",
        "_send_bound",
        "board",
        "chunks",
        "cwnd",
        "dup_acks",
        "fin_acked",
        "fin_queued",
        "fin_sent",
        "gone",
        "iss",
        "max",
        "max_wnd",
        "mss",
        "nxt",
        "persisting",
        "queued",
        "recover",
        "recovering",
        "resend_first",
        "retransmit_at",
        "retransmits",
        "rtt",
        "rtt_at",
        "rtt_seq",
        "shift",
        "ssthresh",
        "una",
        "unsent",
        "wl1",
        "wl2",
        "wnd",
    )

    def __init__(self, options: TcpOptions, iss: int, mss: int) -> None:
        self._send_bound = options.send_bound
        self.iss = iss
        self.una = iss
        self.nxt = self.max = (iss + 1) & MASK
        self.wnd = self.max_wnd = self.wl1 = self.wl2 = self.shift = 0
        self.mss = mss
        """Payload bytes of a full segment (RFC 6691, less the timestamps option)."""
        self.chunks: deque[bytes] = deque()
        self._head = 0
        """Acknowledged bytes of the first chunk."""
        self._index = self._cursor = 0
        """Chunk and offset in it of SND.NXT."""
        self.queued = 0
        """Bytes not yet acknowledged, sent or not."""
        self.unsent = 0
        """Bytes from SND.NXT on."""
        self.fin_queued = self.fin_sent = self.fin_acked = False
        self.cwnd = self.initial_window
        self.ssthresh = 1 << 30
        self.dup_acks = 0
        self.board: Scoreboard | None = None
        self.gone = 0
        """Octets between SND.UNA and SND.NXT that are not in the network: RFC 6675's pipe is the flight without them."""
        self.recovering = False
        self.recover = iss
        """The last octet that had been sent when recovery or a time-out began (RFC 6582)."""
        self.resend_first = False
        """The first unacknowledged segment is due again."""
        self.rtt = RttEstimator(options)
        self.rtt_seq: int | None = None
        """The octet whose acknowledgment is timed; None: nothing is."""
        self.rtt_at = 0.0
        self.retransmits = 0
        """Time-outs or probes since the peer last acknowledged anything new."""
        self.retransmit_at = NEVER
        self.persisting = False
        """`retransmit_at` is the persist timer (RFC 9293 section 3.8.6.1)."""

    def established(self) -> None:
        """Our SYN was acknowledged; `mss` is what both sides allow by now."""
        self.una = self.nxt
        self.cwnd = self.initial_window
        self.rtt_seq = None
        self.retransmit_at = NEVER
        self.retransmits = 0

    @property
    def initial_window(self) -> int:
        """RFC 6928 section 2."""
        return min(10 * self.mss, max(2 * self.mss, INITIAL_WINDOW_BYTES))

    @property
    def flight(self) -> int:
        """Octets between SND.UNA and SND.NXT."""
        return (self.nxt - self.una) & MASK

    def in_flight(self, seq: int) -> bool:
        """Whether the octet `seq` was sent and is not acknowledged."""
        return (seq - self.una) & MASK < (self.max - self.una) & MASK

    # The queue

    def bound(self, share: int) -> int:
        """Bytes that may be held: the peer's window, at least 64 KiB and three segments, at most the share and 1
        MiB."""
        return min(max(self.wnd, 65_536, 3 * self.mss), self._send_bound, share)

    def enqueue(self, data: bytes) -> None:
        size = len(data)
        self.queued += size
        self.unsent += size
        chunks = self.chunks
        if size < COALESCE and chunks and len(chunks[-1]) + size <= COALESCE:
            if self._index == len(chunks):
                self._index -= 1
                self._cursor = len(chunks[-1])
            chunks[-1] += data
        else:
            chunks.append(data)

    def take(self, mss: int) -> Payload | None:
        """The payload of the next segment, at most `mss` bytes, moving SND.NXT past it; None: nothing may be sent now.

        Full segments, or all there is (no Nagle), or half the largest window seen (RFC 9293 section 3.8.6.2.1).
        """
        unsent = self.unsent
        size = unsent if unsent < mss else mss
        flight = (self.nxt - self.una) & MASK
        cwnd = self.cwnd
        if 0 < self.dup_acks < DUPLICATE_ACKS:
            cwnd += self.dup_acks * mss  # limited transmit, RFC 3042
        if size > cwnd - flight + self.gone or not size:
            return None
        usable = self.wnd - flight
        if size > usable:
            if usable <= 0 or usable * 2 < self.max_wnd:
                return None
            size = usable
        chunk = self.chunks[self._index]
        start = self._cursor
        left = len(chunk) - start
        payload: Payload
        if left > size:
            payload = memoryview(chunk)[start : start + size]
            self._cursor = start + size
        elif left == size or left >= COALESCE or self._index + 1 == len(self.chunks):
            payload = chunk if not start else memoryview(chunk)[start:]
            size = left
            self._index += 1
            self._cursor = 0
        else:
            payload = self._join(size)
        self.unsent = unsent - size
        self.nxt = (self.nxt + size) & MASK
        return payload

    def _join(self, size: int) -> bytes:
        """Small chunks from the cursor on, as one segment of `size` bytes."""
        parts: list[Payload] = []
        while size:
            chunk = self.chunks[self._index]
            part = memoryview(chunk)[self._cursor : self._cursor + size]
            size -= len(part)
            self._cursor += len(part)
            parts.append(part)
            if self._cursor == len(chunk):
                self._index += 1
                self._cursor = 0
        return b"".join(parts)

    def take_unsacked(self) -> Payload | None:
        """`take` of what is sent again after a time-out: what was SACKed since then is passed over."""
        if self.board is None:
            return self.take(self.mss)
        skip, clear = self.board.skip(self.flight)
        skip = min(skip, self.unsent)
        self.unsent -= skip
        self.nxt = (self.nxt + skip) & MASK
        self.gone += skip
        while skip:
            step = min(skip, len(self.chunks[self._index]) - self._cursor)
            skip -= step
            self._cursor += step
            if self._cursor == len(self.chunks[self._index]):
                self._index += 1
                self._cursor = 0
        return self.take(self.mss if clear is None else min(self.mss, clear))

    def first(self, limit: int) -> Payload:
        """The first unacknowledged bytes that were sent, at most `limit` (for a retransmission or a probe)."""
        return self.sent_again(0, limit)

    def sent_again(self, offset: int, limit: int) -> Payload:
        """Bytes that were sent, `offset` bytes after SND.UNA: `limit`, or as many as there are."""
        size = min(min((self.max - self.una) & MASK, self.queued) - offset, limit)
        offset += self._head
        parts: list[Payload] = []
        for chunk in self.chunks:
            if size <= 0:
                break
            if offset >= len(chunk):
                offset -= len(chunk)
                continue
            part = memoryview(chunk)[offset : offset + size]
            if not parts and len(part) == size:
                return part
            parts.append(part)
            size -= len(part)
            offset = 0
        return b"".join(parts)

    def rewind(self) -> None:
        """Send everything from SND.UNA on again."""
        self.nxt = self.una
        self._index, self._cursor = 0, self._head
        self.unsent = self.queued
        self.fin_sent = False
        self.rtt_seq = None  # Karn's algorithm, RFC 6298 section 3
        self.board = None  # RFC 2018 section 8: after a time-out what was SACKed may be gone
        self.gone = 0

    # What arrives

    def update_window(self, seq: int, ack: int, window: int) -> None:
        """SND.WND from a segment that is new enough (the caller has checked WL1 and WL2); `window` is not yet
        scaled."""
        wnd = window << self.shift
        self.wl1, self.wl2 = seq, ack
        self.wnd = wnd
        if wnd > self.max_wnd:
            self.max_wnd = wnd
        if self.persisting and wnd:
            self.persisting = False
            self.retransmit_at = NEVER
            self.retransmits = 0
            self.rewind()  # the probe's byte was refused while the window was shut

    def acknowledged(self, count: int, now: float) -> None:
        """`count` new octets were acknowledged (1 .. MAX - UNA)."""
        una = self.una = (self.una + count) & MASK
        if self.rtt_seq is not None and (una - self.rtt_seq) & 0x80000000 == 0:
            self.rtt_seq = None
            self.rtt.sample(now - self.rtt_at)
        self.retransmits = 0
        size = count
        if size > self.queued:  # the FIN is one octet behind the last byte
            size = self.queued
            self.fin_acked = True
        self._release(size)
        if (self.nxt - una) & 0x80000000:  # it acknowledges more than was sent again since a time-out
            self.nxt = una
            self._index, self._cursor = 0, self._head
            self.unsent = self.queued
            self.fin_sent = self.fin_acked
        if self.board is not None:
            self.board.advance(count)
        if self.recovering:
            tcp_recovery.acknowledged(self, count)
        else:
            self.dup_acks = 0
            self._open_congestion_window(count)
        if self.board is not None:
            tcp_recovery.recount(self, self.board)
        if self.nxt == una:
            self.retransmit_at = NEVER
            self.persisting = False
        else:
            self.retransmit_at = now + self.rtt.rto  # RFC 6298 section 5.3

    def _release(self, size: int) -> None:
        self.queued -= size
        head = self._head + size
        chunks = self.chunks
        while chunks and head >= len(chunks[0]):
            head -= len(chunks.popleft())
            self._index -= 1
        self._head = head
        if self._index < 0:  # past the cursor; `acknowledged` puts it right
            self._index = 0
        if not chunks:
            self._index = self._cursor = 0

    def _open_congestion_window(self, count: int) -> None:
        """RFC 5681 section 3.1, counting bytes (RFC 3465): one ACK here stands for a batch of segments."""
        cwnd = self.cwnd
        if cwnd < self.ssthresh:
            cwnd += count
        else:
            cwnd += max(1, self.mss * min(count, cwnd) // cwnd)
        self.cwnd = min(cwnd, 2 * self._send_bound + self.mss)

    def discard(self) -> None:
        """Forget what is queued; the connection is over."""
        self.chunks.clear()
        self.queued = self.unsent = self._head = self._index = self._cursor = 0
        self.resend_first = self.persisting = False
        self.board = None
        self.gone = 0
        self.retransmit_at = NEVER
