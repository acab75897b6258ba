"""The event log: order, the ring's bound, what a late reader is told."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sulla_trio.errors import LocalError
from sulla_trio.services.events import MAX_SUBSCRIBERS, EventLog


def test_an_event_has_seq_time_and_type_first() -> None:
    log = EventLog(lambda: 12.5)
    log.emit("link.up", port=0)
    assert list(log.since(0)[0].items()) == [("seq", 1), ("time", 12.5), ("type", "link.up"), ("port", 0)]


@given(st.integers(0, 40), st.integers(1, 10), st.integers(-3, 50))
def test_since_and_lost_since_add_up(count: int, size: int, seq: int) -> None:
    log = EventLog(lambda: 0.0, size)
    for number in range(count):
        log.emit("x", number=number)
    seqs = [event["seq"] for event in log.since(seq)]
    after = 0 if seq > count else max(seq, 0)
    assert seqs == list(range(max(after, count - size) + 1, count + 1))
    if seq <= count:
        assert log.lost_since(seq) + len(seqs) == count - after
    assert log.lost == max(0, count - size)


def test_subscribers_hear_in_order_until_they_unsubscribe() -> None:
    log, heard = EventLog(lambda: 0.0), []

    def second(event: dict[str, Any]) -> None:
        heard.append(("second", event["type"]))

    def first(event: dict[str, Any]) -> None:
        heard.append(("first", event["type"]))
        if event["type"] == "b":
            log.unsubscribe(token)

    log.subscribe(first)
    token = log.subscribe(second)
    for type in "abc":
        log.emit(type)
    assert heard == [("first", "a"), ("second", "a"), ("first", "b"), ("first", "c")]


@pytest.mark.parametrize("name", ["seq", "time"])
def test_the_logs_own_fields_are_refused(name: str) -> None:
    log = EventLog(lambda: 0.0)
    with pytest.raises(LocalError):
        log.emit("x", **{name: 1})
    assert (log.last_seq, log.since(0)) == (0, [])


def test_forgotten_subscriptions_are_found_out() -> None:
    log = EventLog(lambda: 0.0)
    for _ in range(MAX_SUBSCRIBERS):
        log.subscribe(lambda event: None)
    with pytest.raises(LocalError):
        log.subscribe(lambda event: None)
