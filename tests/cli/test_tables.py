"""Tables and lines for people."""

from __future__ import annotations

import pytest

from sulla_trio.cli import tables


def test_table_does_not_wrap_in_a_pipe_and_markup_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    tables.print_table(("NAME", "N"), [["[bold]x[/bold]" + "y" * 100, 1], ["\x1b[31m", 22]], empty="none")
    first, second, third = (line.rstrip() for line in capsys.readouterr().out.splitlines())
    assert first.split() == ["NAME", "N"]
    assert second.split() == ["[bold]x[/bold]" + "y" * 100, "1"]
    assert "\x1b" not in third


def test_empty_table_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    tables.print_table(("NAME",), [], empty="no names")
    assert capsys.readouterr().out == "no names\n"


def test_rows() -> None:
    flow = {"id": 1, "kind": "tcp", "direction": "out", "guest": "g", "remote": "r", "state": "closed",
            "bytes_in": 1500, "bytes_out": 0, "seconds": 1.25, "reason": "eof"}  # fmt: skip
    assert tables.flow_rows([flow]) == [[1, "tcp", "g", "->", "r", "closed (eof)", "0 B", "1.5 kB", "1.2 s"]]
    assert tables.forward_rows([{"local": "a", "remote": "b", "protocol": "tcp"}]) == [["a", "b", "tcp"]]
    assert tables.lease_rows({"a": "m"}) == [["a", "m"]]
    assert tables.stat_rows({"A": {"B": {"C": 1}, "D": 0}, "E": 2}) == [["A.B.C", 1], ["E", 2]]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_234_567, "1.2 MB"), (5e12, "5000.0 GB")]
)
def test_size(count: float, text: str) -> None:
    assert tables.size(count) == text


def test_event_lines() -> None:
    line = tables.event_line({"seq": 1, "time": 0.5, "type": "flow.opened", "guest": "g\n", "reason": None})
    assert line.endswith(".500 flow.opened guest=g\N{REPLACEMENT CHARACTER} reason=-")
    assert tables.event_line({"type": "events.lost", "count": 3}).strip() == "events.lost count=3"
