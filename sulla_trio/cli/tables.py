"""What `sulla` prints for people: rich tables and one-line events. Imports rich only when it draws."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """A table with a heading, or the line `empty` when there are no rows. Numbers are aligned right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    listed = [list(row) for row in rows]
    console = Console(soft_wrap=False, highlight=False)
    if not listed:
        console.print(Text(empty))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(columns):
        numeric = all(isinstance(row[index], (int, float)) for row in listed)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in listed:
        # Text: a name from the network is not markup.
        table.add_row(*(Text(_cell(value)) for value in row))
    if not console.is_terminal:
        console.width = max(console.width, 200)  # a pipe has no edge to wrap at
    console.print(table)


def _cell(value: object) -> str:
    text = "-" if value is None else str(value)
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def forward_rows(forwards: list[dict[str, Any]]) -> list[list[object]]:
    """local, remote, protocol."""
    return [[one["local"], one["remote"], one["protocol"]] for one in forwards]


def lease_rows(leases: dict[str, str]) -> list[list[object]]:
    """address, MAC."""
    return [[address, mac] for address, mac in leases.items()]


def flow_rows(flows: list[dict[str, Any]]) -> list[list[object]]:
    """id, kind, guest, remote, state or reason, bytes, age."""
    return [
        [
            flow["id"],
            flow["kind"],
            flow["guest"],
            "<-" if flow.get("direction") == "in" else "->",
            flow["remote"],
            flow["state"] if flow["reason"] is None else f"{flow['state']} ({flow['reason']})",
            size(flow["bytes_out"]),
            size(flow["bytes_in"]),
            f"{flow['seconds']:.1f} s",
        ]
        for flow in flows
    ]


def stat_rows(stats: dict[str, Any], prefix: str = "") -> list[list[object]]:
    """Every counter that is not zero, by its dotted name."""
    rows: list[list[object]] = []
    for name, value in stats.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict):
            rows += stat_rows(value, path + ".")
        elif value:
            rows.append([path, value])
    return rows


def size(count: float) -> str:
    """`count` bytes with a unit: ``1.2 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def event_line(event: dict[str, Any]) -> str:
    """``12:00:00.123 flow.opened key=value …``; `events.lost` has neither time nor number."""
    fields = " ".join(f"{name}={_cell(value)}" for name, value in event.items() if name not in ("seq", "time", "type"))
    clock = " " * 12
    if isinstance(event.get("time"), (int, float)):
        moment = float(event["time"])
        clock = time.strftime("%H:%M:%S", time.localtime(moment)) + f".{int(moment % 1 * 1000):03d}"
    return f"{clock} {_cell(event.get('type'))} {fields}".rstrip()
