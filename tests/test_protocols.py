"""docs/protocols.md says what is supported, and each such row names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "protocols.md"
NAME = re.compile(r"`([\w/]+)::(\w+)`")


def rows() -> list[list[str]]:
    """Cells of every row of the tables by RFC."""
    text = PAGE.read_text()
    section = text[text.index("## Supported and not, by RFC") :].split("\n## ")[0]
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return [row for row in found if row[0] != "RFC, section" and set(row[0]) != {"-"}]


def functions(path: Path) -> set[str]:
    return {
        node.name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_rows_are_whole() -> None:
    assert len(rows()) > 60
    assert [row for row in rows() if len(row) != 3] == []


def test_each_supported_row_names_a_test() -> None:
    assert [row for row in rows() if row[0] != "**not**" and not NAME.fullmatch(row[2].split(",")[0])] == []
    assert [row for row in rows() if row[0] == "**not**" and row[2]] == []


def test_each_test_that_is_named_exists() -> None:
    named = NAME.findall(PAGE.read_text())
    known = {file: functions(TESTS / f"{file}.py") for file, _ in named}
    assert [f"{file}::{name}" for file, name in named if name not in known[file]] == []
