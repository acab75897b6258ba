"""Sequence number arithmetic across the wrap."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sulla_trio.netstack import seqnum

NUMBERS = st.integers(0, seqnum.MASK)
STEPS = st.integers(1, (1 << 31) - 1)


@given(NUMBERS, STEPS)
def test_order_holds_below_half_the_space(a: int, n: int) -> None:
    b = seqnum.add(a, n)
    assert seqnum.lt(a, b)
    assert seqnum.le(a, b)
    assert seqnum.gt(b, a)
    assert seqnum.ge(b, a)
    assert not seqnum.lt(b, a)
    assert not seqnum.ge(a, b)
    assert seqnum.diff(b, a) == n
    assert seqnum.diff(a, b) == -n


@given(NUMBERS)
def test_equal(a: int) -> None:
    assert seqnum.le(a, a)
    assert seqnum.ge(a, a)
    assert not seqnum.lt(a, a)
    assert not seqnum.gt(a, a)
    assert seqnum.diff(a, a) == 0


@pytest.mark.parametrize(("a", "n", "sum_"), [(0, -1, 0xFFFFFFFF), (0xFFFFFFFF, 1, 0), (0xFFFFFF00, 0x200, 0x100)])
def test_add_wraps(a: int, n: int, sum_: int) -> None:
    assert seqnum.add(a, n) == sum_
