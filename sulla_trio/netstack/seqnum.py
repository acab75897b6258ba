"""Arithmetic on TCP sequence numbers, modulo 2**32 (RFC 9293 section 3.4).

Comparisons hold while the two numbers are less than 2**31 apart. The hot paths write these expressions out.
"""

from __future__ import annotations

from typing import Final

MODULUS: Final = 1 << 32
MASK: Final = MODULUS - 1
_HALF: Final = 1 << 31


def lt(a: int, b: int) -> bool:
    """Whether `a` comes before `b`."""
    return (a - b) & _HALF != 0


def le(a: int, b: int) -> bool:
    """Whether `a` is `b` or comes before it."""
    return (b - a) & _HALF == 0


def gt(a: int, b: int) -> bool:
    """Whether `a` comes after `b`."""
    return (b - a) & _HALF != 0


def ge(a: int, b: int) -> bool:
    """Whether `a` is `b` or comes after it."""
    return (a - b) & _HALF == 0


def add(a: int, n: int) -> int:
    """The number `n` (negative: before) octets after `a`."""
    return (a + n) & MASK


def diff(a: int, b: int) -> int:
    """How many octets `a` is after `b` (negative: before), -2**31 .. 2**31 - 1."""
    return ((a - b + _HALF) & MASK) - _HALF
