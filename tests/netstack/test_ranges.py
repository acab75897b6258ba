"""RangeSet against a set of ints."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from sulla_trio.netstack.ranges import RangeSet

EDGES = st.tuples(st.integers(0, 40), st.integers(0, 40))
STEPS = st.lists(st.tuples(st.sampled_from(["add", "subtract"]), EDGES), max_size=30)


def build(steps: list[tuple[str, tuple[int, int]]]) -> tuple[RangeSet, set[int]]:
    ranges, model = RangeSet(), set[int]()
    for verb, (start, stop) in steps:
        getattr(ranges, verb)(start, stop)
        model = model | set(range(start, stop)) if verb == "add" else model - set(range(start, stop))
    return ranges, model


@given(STEPS)
def test_holds_what_the_model_holds(steps: list[tuple[str, tuple[int, int]]]) -> None:
    ranges, model = build(steps)
    assert [n for start, stop in ranges for n in range(start, stop)] == sorted(model)
    assert ranges.size == len(model)
    assert bool(ranges) == bool(model)
    assert all((n in ranges) == (n in model) for n in range(-1, 42))


@given(STEPS)
def test_ranges_are_sorted_disjoint_and_apart(steps: list[tuple[str, tuple[int, int]]]) -> None:
    ranges, _ = build(steps)
    found = list(ranges)
    assert len(ranges) == len(found)
    assert all(start < stop for start, stop in found)
    assert all(left[1] < right[0] for left, right in pairwise(found))


@given(STEPS, EDGES)
def test_gaps_and_covers(steps: list[tuple[str, tuple[int, int]]], edges: tuple[int, int]) -> None:
    ranges, model = build(steps)
    start, stop = edges
    gaps = ranges.gaps(start, stop)
    assert [n for a, b in gaps for n in range(a, b)] == [n for n in range(start, stop) if n not in model]
    assert ranges.covers(start, stop) == (set(range(start, stop)) <= model)
    assert ranges.count(start, stop) == len(model & set(range(start, stop)))
    assert ranges.first_gap(start) == next(n for n in range(start, 50) if n not in model)
    found = ranges.range_of(start)
    assert (found is not None) == (start in model)
    if found is not None:
        assert found[0] <= start < found[1]
        assert found in list(ranges)


def test_adjacent_ranges_become_one() -> None:
    ranges = RangeSet()
    ranges.add(0, 5)
    ranges.add(10, 15)
    ranges.add(5, 10)
    assert list(ranges) == [(0, 15)]
    assert repr(ranges) == "RangeSet([(0, 15)])"
