"""Log lines in the text format of logrus, which the Go daemons write and their operators grep.

Source: specs/daemons.md section 3.7. Lines go out by plain `write` calls on a descriptor: a full disk or a closed pipe costs
the line and nothing else.
"""

from __future__ import annotations

import logging
import os
import re
import time
from typing import Any, Final

from sulla_trio.cli.goflags import go_quote
from sulla_trio.errors import ConfigError

_BARE: Final = re.compile(r"[A-Za-z0-9\-._/@^+]+")
TRACE: Final = 5
_LEVELS: Final = (
    (logging.CRITICAL, "fatal", 31),
    (logging.ERROR, "error", 31),
    (logging.WARNING, "warning", 33),
    (logging.INFO, "info", 36),
    (logging.DEBUG, "debug", 37),
    (0, "trace", 37),
)


def quote_value(text: str) -> str:
    """`text` bare where logrus would leave it so, else quoted as by Go's ``%q``."""
    return text if _BARE.fullmatch(text) else go_quote(text)


def rfc3339(seconds: float) -> str:
    """Local time with its offset, ``Z`` for UTC; whole seconds."""
    moment = time.localtime(seconds)
    offset = moment.tm_gmtoff
    text = time.strftime("%Y-%m-%dT%H:%M:%S", moment)
    if not offset:
        return text + "Z"
    hours, minutes = divmod(abs(offset) // 60, 60)
    return f"{text}{'-' if offset < 0 else '+'}{hours:02d}:{minutes:02d}"


class LogrusFormatter(logging.Formatter):
    """``time=… level=… msg=… key=value``; on a terminal ``INFO[0000] text``, coloured.

    Fields come from ``extra={"fields": {...}}``, sorted by name. A traceback is the field ``traceback``, on the same line.
    """

    def __init__(self, *, terminal: bool = False) -> None:
        super().__init__()
        self._terminal = terminal
        self._started = time.time()

    def format(self, record: logging.LogRecord) -> str:
        name, color = next((name, color) for level, name, color in _LEVELS if record.levelno >= level)
        message = record.getMessage()
        fields: dict[str, Any] = dict(getattr(record, "fields", None) or {})
        if record.exc_info and record.exc_info[0] is not None:
            fields["traceback"] = self.formatException(record.exc_info)
        if self._terminal:
            seconds = int(max(0, record.created - self._started))
            line = f"\x1b[{color}m{name.upper()[:4]}\x1b[0m[{seconds:04d}] {message:<44}"
            pairs = [f"\x1b[{color}m{key}\x1b[0m={quote_value(str(fields[key]))}" for key in sorted(fields)]
            return " ".join([line, *pairs])
        pairs = [f'time="{rfc3339(record.created)}"', f"level={name}"]
        if message:
            pairs.append(f"msg={quote_value(message)}")
        pairs += [f"{key}={quote_value(str(fields[key]))}" for key in sorted(fields)]
        return " ".join(pairs)


class DescriptorHandler(logging.Handler):
    """Writes each line with one `write` on a descriptor; a failed write is counted in `lost`, never raised or printed."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self.lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            os.write(self._descriptor, (self.format(record) + "\n").encode("utf-8", "backslashreplace"))
        except Exception:
            self.lost += 1


def open_log(path: str, *, append: bool = False) -> int:
    """Descriptor of a log file, truncated unless `append`.

    Raises:
        ConfigError: it cannot be opened; the text names it.
    """
    mode = os.O_APPEND if append else os.O_TRUNC
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | mode | os.O_CLOEXEC, 0o666)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"opening log file {path}: {reason.lower()}") from None


def set_up_logging(*, debug: bool = False, descriptor: int = 2) -> DescriptorHandler:
    """Send every logger of this process to `descriptor`, at DEBUG or INFO. Replaces what was set up before."""
    handler = DescriptorHandler(descriptor)
    handler.setFormatter(LogrusFormatter(terminal=os.isatty(descriptor)))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if debug else logging.INFO)
    for chatty in ("asyncio", "pyroute2"):  # their DEBUG is about themselves
        logging.getLogger(chatty).setLevel(logging.WARNING)
    return handler
