"""Entry points of the daemons: their Go flags, checked into a frozen configuration, run with trio.

Each daemon's flags are in the module of its name beside this one; ``flags(program)`` declares them and ``config(values)``
checks what was parsed. Each is also ``python -m sulla_trio.cli.daemons NAME ARGS...``. Nothing heavy is imported before the
flags have been read, and no daemon imports what only another one needs.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from sulla_trio.cli import logrus
from sulla_trio.cli.goflags import run_flags
from sulla_trio.errors import ConfigError

log = logging.getLogger(__name__)

NAMES: Final = ("host-switch", "network-setup", "vm-switch", "wsl-proxy")
STANDARD_STREAMS: Final = {"/dev/stdout": 1, "/dev/stderr": 2}
"""Log file names that mean the descriptor: as paths they cannot be opened where the stream is a socket (systemd)."""


def host_switch(argv: Sequence[str] | None = None) -> int:
    """Entry point of host-switch; the exit status."""
    return _daemon("host-switch", argv)


def network_setup(argv: Sequence[str] | None = None) -> int:
    """Entry point of network-setup; the exit status."""
    return _daemon("network-setup", argv)


def vm_switch(argv: Sequence[str] | None = None) -> int:
    """Entry point of vm-switch; the exit status."""
    return _daemon("vm-switch", argv)


def wsl_proxy(argv: Sequence[str] | None = None) -> int:
    """Entry point of wsl-proxy; the exit status."""
    return _daemon("wsl-proxy", argv)


def _daemon(name: str, argv: Sequence[str] | None) -> int:
    program, arguments = (sys.argv[0], sys.argv[1:]) if argv is None else (name, argv)
    module = name.replace("-", "_")
    command_line = importlib.import_module(f"sulla_trio.cli.{module}")
    values, status = run_flags(command_line.flags(program), arguments, _to_stderr)
    if values is None:
        return status

    def prepare() -> Callable[[], Awaitable[int]]:
        config = command_line.config(values)
        daemon = getattr(importlib.import_module(f"sulla_trio.daemons.{module}"), module)
        return lambda: daemon(config)

    return _run(name, values, prepare)


def _to_stderr(text: str) -> None:
    try:
        os.write(2, text.encode("utf-8", "surrogateescape"))
    except OSError:
        pass


def _run(name: str, values: dict[str, Any], prepare: Callable[[], Callable[[], Awaitable[int]]]) -> int:
    """Set up the log, then run what `prepare` returns. What cannot be used is one FATAL line and status 1."""
    logrus.set_up_logging(debug=values["debug"])
    try:
        path = values["logfile"]
        if path:
            append = values.get("logfile-append", False)
            descriptor = STANDARD_STREAMS.get(path) or logrus.open_log(path, append=append)
            logrus.set_up_logging(debug=values["debug"], descriptor=descriptor)
        from sulla_trio.link.process import set_process_name

        set_process_name(name)
        main = prepare()
        import trio

        return trio.run(main)
    except BaseExceptionGroup as group:
        causes, bugs = group.split((ConfigError, OSError, KeyboardInterrupt))
        if bugs is not None or causes is None:
            log.critical("internal error", exc_info=True)
            raise
        return _fatal(_first(causes))
    except (ConfigError, OSError, KeyboardInterrupt) as error:
        return _fatal(error)


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _fatal(error: BaseException) -> int:
    text = "signal caught: interrupt" if isinstance(error, KeyboardInterrupt) else str(error)
    log.critical("%s", text)
    log.debug("traceback of the error above", exc_info=error)
    return 1


def main() -> int:
    """``python -m sulla_trio.cli.daemons NAME ARGS...``"""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in NAMES:
        _to_stderr(f"usage: python -m sulla_trio.cli.daemons {'|'.join(NAMES)} ARGS...\n")
        return 2
    return _daemon(name, sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
