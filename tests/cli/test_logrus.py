"""Log lines of the logrus text format, and logs that cannot be written."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sulla_trio.cli.logrus import DescriptorHandler, LogrusFormatter, open_log, quote_value, rfc3339, set_up_logging
from sulla_trio.errors import ConfigError


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    yield monkeypatch
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield root
    root.handlers[:], root.level = handlers, level


def record(message: str, level: int = logging.INFO, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("x", level, "f", 1, message, (), None)
    made.created = 1720524199.9
    made.__dict__.update(extra)
    return made


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("UTC0", "2024-07-09T11:23:19Z"),
        ("CEST-2", "2024-07-09T13:23:19+02:00"),
        ("XYZ+3:30", "2024-07-09T07:53:19-03:30"),
    ],
)
def test_time_is_local_with_offset(zone: pytest.MonkeyPatch, name: str, text: str) -> None:
    zone.setenv("TZ", name)
    time.tzset()
    assert rfc3339(1720524199.9) == text


@pytest.mark.parametrize(
    ("level", "name"),
    [
        (5, "trace"),
        (logging.DEBUG, "debug"),
        (logging.INFO, "info"),
        (logging.WARNING, "warning"),
        (logging.ERROR, "error"),
        (logging.CRITICAL, "fatal"),
    ],
)
def test_levels(level: int, name: str) -> None:
    assert f" level={name} msg=x" in LogrusFormatter().format(record("x", level))


@pytest.mark.parametrize(
    ("message", "rest"),
    [
        ("starting handshake", 'level=info msg="starting handshake"'),
        ("bare-._/@^+9", "level=info msg=bare-._/@^+9"),
        ("a:b", 'level=info msg="a:b"'),
        ("", "level=info"),
        ('two\nlines\t"q"\\', 'level=info msg="two\\nlines\\t\\"q\\"\\\\"'),
        ("\x1b[31m", 'level=info msg="\\x1b[31m"'),
    ],
)
def test_messages(message: str, rest: str) -> None:
    line = LogrusFormatter().format(record(message))
    assert re.fullmatch(r'time="[^"]{20,25}" ' + re.escape(rest), line)


def test_fields_and_traceback_stay_on_the_line() -> None:
    made = record("m", fields={"z": 1, "a": "b c"})
    try:
        raise ValueError("boom")
    except ValueError as error:
        made.exc_info = (ValueError, error, error.__traceback__)
    line = LogrusFormatter().format(made)
    assert re.search(r' msg=m a="b c" traceback="Traceback .*\\nValueError: boom" z=1$', line)
    assert "\n" not in line


def test_terminal() -> None:
    formatter = LogrusFormatter(terminal=True)
    formatter._started = 1720524190.0
    line = formatter.format(record("text", logging.WARNING, fields={"k": "v"}))
    assert line == "\x1b[33mWARN\x1b[0m[0009] " + "text".ljust(44) + " \x1b[33mk\x1b[0m=v"
    assert quote_value("") == '""'


def test_full_disk_and_closed_pipe_cost_the_line_only(capfd: pytest.CaptureFixture[str]) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    read, write = os.pipe()
    os.close(read)
    for descriptor in (full, write):
        handler = DescriptorHandler(descriptor)
        handler.handle(record("lost"))
        handler.handle(record("bad arguments %d", args=("x",)))
        assert handler.lost == 2
        os.close(descriptor)
    assert capfd.readouterr() == ("", "")


def test_set_up_replaces_and_filters(tmp_path: Path, root_logger: logging.Logger) -> None:
    path = tmp_path / "log"
    for debug in (False, True):
        descriptor = open_log(str(path), append=debug)
        set_up_logging(debug=debug, descriptor=descriptor)
        logging.getLogger("a.b").debug("fine")
        logging.getLogger("a.b").info("coarse")
        os.close(descriptor)
    assert re.findall(r"msg=(\w+)", path.read_text()) == ["coarse", "fine", "coarse"]
    os.close(open_log(str(path)))
    assert path.read_text() == ""


def test_log_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"opening log file {tmp_path}/no/log: no such file or directory"):
        open_log(f"{tmp_path}/no/log")
    with pytest.raises(ConfigError, match="opening log file"):
        open_log("a\0b")
