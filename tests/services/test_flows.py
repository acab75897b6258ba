"""The flow table keeps the books: live, lately closed, one reason each."""

from __future__ import annotations

import pytest

from sulla_trio.errors import LocalError
from sulla_trio.services.events import EventLog
from sulla_trio.services.flows import REASONS, FlowTable


def test_a_flow_from_opening_to_closing() -> None:
    table = FlowTable()
    flow = table.opened("tcp", "192.168.127.2:40000", "1.1.1.1:443", 10.0)
    flow.state, flow.bytes_out = "established", 7
    assert (len(table), table.live(), flow.direction) == (1, [flow], "out")
    table.closed(flow, "eof", 12.5)
    assert (len(table), table.lately_closed()) == (0, [flow])
    assert table.all(99.0) == [
        {
            "id": 1,
            "kind": "tcp",
            "direction": "out",
            "guest": "192.168.127.2:40000",
            "remote": "1.1.1.1:443",
            "state": "closed",
            "bytes_in": 0,
            "bytes_out": 7,
            "seconds": 2.5,
            "reason": "eof",
        }
    ]


def test_a_forward_comes_in() -> None:
    assert FlowTable().opened("forward", "192.168.127.2:80", "127.0.0.1:5", 0.0).direction == "in"


def test_the_first_reason_stays() -> None:
    events = EventLog(lambda: 0.0)
    table = FlowTable(events)
    flow = table.opened("udp", "a", "b", 0.0)
    table.closed(flow, "idle", 1.0)
    table.closed(flow, "shutdown", 2.0)
    assert (flow.reason, flow.closed_at, len(table.lately_closed())) == ("idle", 1.0, 1)
    assert [event["type"] for event in events.since(0)] == ["flow.opened", "flow.closed"]


def test_closed_flows_are_bounded_and_newest_first() -> None:
    table = FlowTable(keep=2)
    for number in range(4):
        table.closed(table.opened("tcp", str(number), "x", 0.0), "eof", 0.0)
    assert [flow.guest for flow in table.lately_closed()] == ["3", "2"]


def test_an_unknown_reason_is_a_bug_that_leaves_no_flow_behind() -> None:
    table = FlowTable()
    flow = table.opened("tcp", "a", "b", 0.0)
    with pytest.raises(LocalError):
        table.closed(flow, "because", 0.0)
    assert (len(table), flow.reason) == (0, "internal_error")


def test_the_reasons_the_relays_use_are_known() -> None:
    used = "eof guest_reset host_reset refused unreachable timeout denied idle replaced port_gone host_error shutdown"
    assert set(used.split()) <= REASONS
