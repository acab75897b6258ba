"""Command lines of the daemons: flags to configurations, statuses and what is on stderr, and what is imported."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sulla_trio.cli import daemons


def run(*arguments: str, code: str = "from sulla_trio.cli.daemons import main; raise SystemExit(main())", **options):
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "TZ": "UTC", **options},
    )


def test_usage_errors_exit_2_and_help_0() -> None:
    for name in daemons.NAMES:
        done = run(name, "-nonsense")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"flag provided but not defined: -nonsense\nUsage of {name}:\n  -")
        done = run(name, "--help")
        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr.startswith(f"Usage of {name}:\n")
    assert run("no-such-daemon").returncode == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("host-switch", "-subnet", "garbage"),
        ("host-switch", "--logfile", "/nowhere/log"),
        ("host-switch", "--listen", "gopher://x"),
        ("host-switch", "--listen", "none", "--data", "fd://99"),
        ("vm-switch", "-logfile", "/nowhere/log"),
        ("vm-switch", "-logfile", "/dev/stderr", "-tap-mac-address", "zz"),
        ("vm-switch", "-logfile", "/dev/stderr", "-vsock-fd", "99"),
        ("wsl-proxy", "-logfile", "/nowhere/log"),
        ("wsl-proxy", "-logfile", "/dev/stderr", "-socketFile", "/nowhere/s"),
        ("wsl-proxy", "-logfile", "/dev/stderr", "-upstreamAddress", "nowhere"),
    ],
)
def test_bad_values_are_one_fatal_line_and_status_1(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    lines = [line for line in done.stderr.splitlines() if "level=info" not in line]
    assert len(lines) == 1, done.stderr
    assert re.fullmatch(r'time="\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ" level=fatal msg=".*"', lines[0])
    assert arguments[-1].removeprefix("fd://") in lines[0]


def test_log_on_a_full_disk_changes_nothing(tmp_path: Path) -> None:
    done = run("host-switch", "--logfile", "/dev/full", "--listen", "gopher://x")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


IMPORTED = """
import sys
from sulla_trio.cli import daemons, {module} as command_line
values = command_line.flags("x").parse([])
command_line.config(values)
from sulla_trio.daemons import {module}
print(*sorted({{name.partition(".")[0] for name in sys.modules}}))
"""


def test_vm_switch_loads_nothing_of_the_api() -> None:
    code = IMPORTED.format(module="vm_switch")
    done = run(code=code)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "trio" in loaded
    assert not loaded & {
        "quart",
        "quart_trio",
        "hypercorn",
        "click",
        "rich",
        "h11",
        "werkzeug",
        "jinja2",
        "platformdirs",
    }


def test_host_switch_loads_quart_later() -> None:
    code = IMPORTED.format(module="host_switch")
    done = run(code=code)
    assert done.returncode == 0, done.stderr
    assert not set(done.stdout.split()) & {"quart", "quart_trio", "hypercorn", "click", "rich", "h11", "scapy"}


def test_wsl_proxy_loads_neither_the_api_nor_the_stack() -> None:
    code = (
        IMPORTED.format(module="wsl_proxy")
        + """
print(*sorted(name for name in sys.modules if name.startswith("sulla_trio.")))
"""
    )
    done = run(code=code)
    assert done.returncode == 0, done.stderr
    packages, ours = (set(line.split()) for line in done.stdout.splitlines())
    assert not packages & {"quart", "quart_trio", "hypercorn", "click", "rich", "h11", "werkzeug", "pyroute2"}
    assert not [name for name in ours if name.split(".")[1] in ("netstack", "vnet", "api")]
