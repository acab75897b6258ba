"""The scoreboard of selective acknowledgments: what the peer holds, what is lost, what to send again (RFC 6675)."""

from __future__ import annotations

from typing import Final

from sulla_trio.netstack.ranges import RangeSet
from sulla_trio.netstack.seqnum import diff

DUPLICATES: Final = 3
"""DupThresh of RFC 6675 section 2."""
MAX_RANGES: Final = 256
"""Ranges remembered; what would be one more is not heard. A peer that acknowledges every second octet must not make each
further ACK cost half a million of them."""


class Scoreboard:
    """What was sent and not acknowledged. It exists from the first SACK block until nothing of it is left.

    Positions are octets since it was made, which never wrap: `una` is the position of SND.UNA. `high_rxt` is where
    retransmission in this recovery has come to, `lost` the position before which all that was not SACKed is lost.
    """

    __slots__ = ("_sacked", "duplicates", "high_rxt", "lost", "rescued", "una")

    def __init__(self) -> None:
        self._sacked = RangeSet()
        self.una = self.high_rxt = self.lost = 0
        self.duplicates = 0
        """ACKs that brought news of this kind only."""
        self.rescued = False

    def __bool__(self) -> bool:
        """Whether anything is SACKed."""
        return bool(self._sacked)

    # What arrives

    def update(self, blocks: tuple[tuple[int, int], ...], una: int, outstanding: int, mss: int) -> int:
        """Take SACK blocks (RFC 2018); returns how many octets of them are news.

        A block that does not lie between SND.UNA and SND.MAX says what has come twice (RFC 2883) or is nonsense.
        """
        news = 0
        sacked = self._sacked
        for start, stop in blocks:
            first, last = diff(start, una), diff(stop, una)
            if not 0 < first < last <= outstanding or len(sacked) >= MAX_RANGES:
                continue
            first, last = first + self.una, last + self.una
            news += sum(end - begin for begin, end in sacked.gaps(first, last))
            sacked.add(first, last)
        if news:
            self.lost = self._lost_before(mss)
        return news

    def _lost_before(self, mss: int) -> int:
        """IsLost: three ranges or more than two segments of octets are SACKed above it."""
        octets = 0
        for count, (start, stop) in enumerate(reversed(list(self._sacked)), 1):
            octets += stop - start
            if count >= DUPLICATES or octets > (DUPLICATES - 1) * mss:
                return start
        return 0

    def advance(self, count: int) -> None:
        """`count` octets more are acknowledged for good."""
        before = self.una
        self.una += count
        self._sacked.subtract(before, self.una)
        self.high_rxt = max(self.high_rxt, self.una)
        self.duplicates = 0

    @property
    def is_lost(self) -> bool:
        """Whether the octet at SND.UNA is lost."""
        return self.lost > self.una

    def enter_recovery(self) -> None:
        """Nothing has been sent again yet."""
        self.high_rxt = self.una
        self.rescued = False

    # What is due

    def gone(self, flight: int, *, recovering: bool) -> int:
        """`flight` octets less those that are thought to be in the network (SetPipe): SACKed ones, in recovery also lost
        ones, but twice those that were sent again."""
        sacked = self._sacked.count(self.una, self.una + flight)
        if not recovering:
            return sacked
        return sacked + self._missing(max(self.lost, self.una)) - self._missing(self.high_rxt)

    def _missing(self, before: int) -> int:
        return before - self.una - self._sacked.count(self.una, before)

    def next_lost(self, limit: int) -> tuple[int, int] | None:
        """NextSeg rule 1: (offset from SND.UNA, octets) of the next lost segment, which is counted as sent again."""
        return self._next(self.lost, limit)

    def next_hole(self, limit: int) -> tuple[int, int] | None:
        """NextSeg rule 3: as `next_lost`, of what lies below something SACKed and need not be lost."""
        top = 0
        for start, _ in self._sacked:
            top = start
        return self._next(top, limit)

    def _next(self, before: int, limit: int) -> tuple[int, int] | None:
        at = self._sacked.first_gap(max(self.high_rxt, self.una))
        if at >= before:
            return None
        _, stop = self._sacked.gaps(at, before)[0]
        size = min(stop - at, limit)
        self.high_rxt = at + size
        return at - self.una, size

    def rescue(self, outstanding: int, limit: int, *, fin: bool) -> tuple[int, int] | None:
        """NextSeg rule 4: once in a recovery, a segment with the last octet that is not SACKed. With `fin` the last of all is
        a FIN, which takes no room."""
        gaps = self._sacked.gaps(self.una, self.una + outstanding)
        if self.rescued or not gaps:
            return None
        self.rescued = True
        start, stop = gaps[-1]
        if fin and stop == self.una + outstanding:
            limit += 1
        start = max(start, stop - limit)
        return start - self.una, stop - start

    def skip(self, flight: int) -> tuple[int, int | None]:
        """For what is sent again after a time-out: SACKed octets that begin `flight` octets after SND.UNA, and how many
        not SACKed ones follow them (None: all)."""
        at = self.una + flight
        clear = self._sacked.first_gap(at)
        following = next((start for start, _ in self._sacked if start > clear), None)
        return clear - at, None if following is None else following - clear
