"""A set of integers as disjoint half-open ranges: what reassembly and SACK (RFC 2018) are written in."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator


class RangeSet:
    """Sorted, disjoint, non-adjacent ranges ``start <= n < stop``. Adding merges what touches.

    All operations are O(log n) to find plus O(ranges touched).
    """

    __slots__ = ("_starts", "_stops")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []

    def __len__(self) -> int:
        """How many ranges."""
        return len(self._starts)

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """(start, stop) pairs in ascending order."""
        return zip(self._starts, self._stops, strict=True)

    def __contains__(self, number: int) -> bool:
        return self.covers(number, number + 1)

    def __repr__(self) -> str:
        return f"RangeSet({list(self)})"

    @property
    def size(self) -> int:
        """How many integers."""
        return sum(self._stops) - sum(self._starts)

    def count(self, start: int, stop: int) -> int:
        """How many integers of [start, stop)."""
        if start >= stop:
            return 0
        counted = 0
        for at in range(bisect_right(self._stops, start), bisect_left(self._starts, stop)):
            counted += min(self._stops[at], stop) - max(self._starts[at], start)
        return counted

    def add(self, start: int, stop: int) -> None:
        """Include every number of [start, stop); an empty range changes nothing."""
        if start >= stop:
            return
        first = bisect_left(
            self._stops, start
        )  # the first range that ends at or after start: it touches or lies behind
        last = bisect_right(self._starts, stop)  # one past the last range that begins at or before stop
        if first < last:
            start = min(start, self._starts[first])
            stop = max(stop, self._stops[last - 1])
        self._starts[first:last] = [start]
        self._stops[first:last] = [stop]

    def subtract(self, start: int, stop: int) -> None:
        """Exclude every number of [start, stop)."""
        if start >= stop:
            return
        first = bisect_right(self._stops, start)  # the first range that ends after start
        last = bisect_left(self._starts, stop)  # one past the last range that begins before stop
        if first >= last:
            return
        starts, stops = [], []
        if self._starts[first] < start:
            starts.append(self._starts[first])
            stops.append(start)
        if self._stops[last - 1] > stop:
            starts.append(stop)
            stops.append(self._stops[last - 1])
        self._starts[first:last] = starts
        self._stops[first:last] = stops

    def covers(self, start: int, stop: int) -> bool:
        """Whether every number of [start, stop) is included (true for an empty range)."""
        if start >= stop:
            return True
        at = bisect_right(self._starts, start) - 1
        return at >= 0 and stop <= self._stops[at]

    def range_of(self, number: int) -> tuple[int, int] | None:
        """The range that contains `number`."""
        at = bisect_right(self._starts, number) - 1
        if at >= 0 and number < self._stops[at]:
            return self._starts[at], self._stops[at]
        return None

    def gaps(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The parts of [start, stop) that are not included, ascending."""
        found = []
        at = bisect_right(self._stops, start)
        while start < stop:
            if at == len(self._starts) or self._starts[at] >= stop:
                found.append((start, stop))
                break
            if self._starts[at] > start:
                found.append((start, self._starts[at]))
            start = self._stops[at]
            at += 1
        return found

    def first_gap(self, start: int) -> int:
        """The smallest number >= `start` that is not included."""
        found = self.range_of(start)
        return start if found is None else found[1]
