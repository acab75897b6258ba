"""IPv4 reassembly: every order gives the datagram, overlaps never do, and nothing grows."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sulla_trio.netstack import reassembly
from sulla_trio.netstack.counters import Counters
from sulla_trio.netstack.reassembly import Reassembler
from sulla_trio.wire.ipv4 import MORE_FRAGMENTS, Ipv4

SOURCE, DESTINATION = bytes((10, 0, 0, 2)), bytes((10, 0, 0, 1))
RAW = b"\x45" + bytes(19)


class Fragments:
    def __init__(self) -> None:
        self.counters = Counters()
        self.reassembler = Reassembler(self.counters)

    def add(
        self, start: int, payload: bytes, *, more: bool = True, ident: int = 1, port: int = 0, now: float = 0.0
    ) -> tuple[bytes, bytes] | None:
        flags = (MORE_FRAGMENTS if more else 0) | start // 8
        header = Ipv4(20, 0, 20 + len(payload), ident, flags, 64, 17, SOURCE, DESTINATION)
        view = bytearray(payload)
        raw = RAW if start == 0 else b"not the first"
        try:
            return self.reassembler.add(header, port, raw, memoryview(view), now)
        finally:
            view[:] = b"\xdb" * len(view)

    @property
    def drops(self) -> dict[str, int]:
        return self.counters.drops


@pytest.fixture
def fragments() -> Fragments:
    return Fragments()


@given(st.binary(min_size=1, max_size=400), st.integers(1, 8), st.randoms(use_true_random=False))
def test_any_order_gives_the_datagram(data: bytes, words: int, order: random.Random) -> None:
    fragments, step = Fragments(), words * 8
    starts = list(range(0, len(data), step))
    order.shuffle(starts)
    results = [fragments.add(at, data[at : at + step], more=at + step < len(data)) for at in starts]
    assert results[-1] == (RAW, data)
    assert results[:-1] == [None] * (len(starts) - 1)
    assert fragments.reassembler.held == 0
    assert fragments.reassembler.poll_at() is None


@pytest.mark.parametrize(
    "pieces",
    [
        [(0, 16), (8, 16)],  # begins inside the one before
        [(8, 16), (0, 16)],  # ends inside the one behind
        [(8, 8), (0, 24)],  # covers it
        [(0, 24), (8, 8)],  # is covered
        [(0, 8), (0, 8)],  # the same again
    ],
)
def test_an_overlap_ends_the_datagram(fragments: Fragments, pieces: list[tuple[int, int]]) -> None:
    for start, size in pieces:
        assert fragments.add(start, b"x" * size) is None
    assert fragments.drops == {"ipv4_fragment_overlap": 1}
    assert fragments.reassembler.held == 0


@pytest.mark.parametrize(
    "pieces",
    [
        [(8, 8, False), (16, 8, True)],  # goes on behind the end
        [(16, 8, True), (8, 8, False)],  # the end lies before what came
        [(8, 8, False), (16, 8, False)],  # two ends
    ],
)
def test_a_contradicting_end_ends_the_datagram(fragments: Fragments, pieces: list[tuple[int, int, bool]]) -> None:
    for start, size, more in pieces:
        assert fragments.add(start, b"x" * size, more=more) is None
    assert fragments.drops == {"ipv4_fragment_overlap": 1}
    assert fragments.reassembler.held == 0


@pytest.mark.parametrize(
    ("start", "payload", "more"),
    [(0, b"", True), (8, b"", False), (0, b"x" * 9, True), (65_528, b"x" * 8, False), (65_528, b"x" * 1400, False)],
)
def test_bad_fragments(fragments: Fragments, start: int, payload: bytes, more: bool) -> None:
    assert fragments.add(start, payload, more=more) is None
    assert fragments.drops == {"ipv4_fragment_bad": 1}
    assert fragments.reassembler.held == 0


@pytest.mark.parametrize("other", [{"ident": 2}, {"port": 1}])
def test_datagrams_are_told_apart(fragments: Fragments, other: dict[str, Any]) -> None:
    assert fragments.add(0, b"a" * 8) is None
    assert fragments.add(8, b"b", more=False, **other) is None
    assert fragments.add(8, b"c", more=False) == (RAW, b"a" * 8 + b"c")
    assert fragments.add(0, b"d" * 8, **other) == (RAW, b"d" * 8 + b"b")


def test_thirty_seconds_from_the_first_fragment(fragments: Fragments) -> None:
    fragments.add(0, b"a" * 8, now=100.0)
    fragments.add(8, b"a" * 8, now=120.0)
    assert fragments.reassembler.poll_at() == 130.0
    fragments.reassembler.handle_timer(129.9)
    assert fragments.reassembler.held == 16
    fragments.reassembler.handle_timer(130.0)
    assert fragments.drops == {"ipv4_reassembly_timeout": 2}
    assert fragments.reassembler.held == 0
    assert fragments.reassembler.poll_at() is None


def test_an_expired_datagram_is_not_completed_by_a_late_fragment(fragments: Fragments) -> None:
    fragments.add(0, b"a" * 8, now=100.0)
    assert fragments.add(8, b"b", more=False, now=131.0) is None


def test_datagrams_are_bounded_and_the_oldest_goes(fragments: Fragments) -> None:
    for ident in range(reassembly.MAX_DATAGRAMS + 1):
        fragments.add(0, b"a" * 8, ident=ident)
    assert fragments.drops == {"ipv4_reassembly_full": 1}
    assert fragments.reassembler.held == 8 * reassembly.MAX_DATAGRAMS
    assert fragments.add(8, b"b", more=False, ident=0) is None
    assert fragments.add(8, b"b", more=False, ident=reassembly.MAX_DATAGRAMS) is not None


def test_bytes_are_bounded(fragments: Fragments, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reassembly, "MAX_BYTES", 1000)
    for ident in range(20):
        fragments.add(0, b"a" * 96, ident=ident)
        assert fragments.reassembler.held <= 1000
    assert fragments.drops == {"ipv4_reassembly_full": 10}


def test_fragments_of_one_datagram_are_bounded(fragments: Fragments) -> None:
    for number in range(reassembly.MAX_FRAGMENTS + 1):
        fragments.add(number * 16, b"a" * 8)
    assert fragments.drops == {"ipv4_fragment_many": reassembly.MAX_FRAGMENTS + 1}
    assert fragments.reassembler.held == 0


def test_the_largest_datagram(fragments: Fragments) -> None:
    data = random.Random(1).randbytes(reassembly.MAX_DATAGRAM)
    whole = None
    for at in range(0, len(data), 1480):
        whole = fragments.add(at, data[at : at + 1480], more=at + 1480 < len(data))
    assert whole == (RAW, data)
