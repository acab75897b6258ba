"""The union names every event, so that a dispatcher can be checked for completeness."""

from __future__ import annotations

import inspect
from typing import get_args

from sulla_trio.netstack import events


def test_the_union_has_every_event() -> None:
    defined = {
        value
        for value in vars(events).values()
        if inspect.isclass(value) and issubclass(value, tuple) and value.__module__ == events.__name__
    }
    assert set(get_args(events.Event)) == defined


def test_an_event_about_a_connection_carries_it() -> None:
    for kind in (
        events.Connected,
        events.Readable,
        events.PeerClosed,
        events.Writable,
        events.SinkClosed,
        events.Closed,
    ):
        assert kind._fields[0] == "connection"
