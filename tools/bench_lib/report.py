"""The results as docs/benchmarks.md and docs/benchmarks.json."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench_lib.measure import Idle, Throughput
    from bench_lib.peers import Peer


@dataclass
class Results:
    """Everything of one run."""

    pairs: list[tuple[Peer, Peer]]
    """Ours and the contestant it is compared with."""
    throughput: dict[tuple[str, str], Throughput]
    """By (label, direction)."""
    start_s: dict[str, list[float]]
    idle: dict[str, Idle]
    seconds: float
    repeats: int
    idle_seconds: float
    load: float
    """The machine's load average before the run."""


def _read(path: str, key: str) -> str:
    try:
        for line in Path(path).read_text().splitlines():
            name, _, value = line.partition(":" if ":" in line else "=")
            if name.strip() == key:
                return value.strip().strip('"')
    except OSError:
        pass
    return "unknown"


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def circumstances(peers: list[Peer]) -> dict[str, str]:
    """Machine, versions, date: without them no figure means anything."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    build = "PGO" if "--enable-optimizations" in (_config("CONFIG_ARGS")) else "not PGO"
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "machine": f"{_read('/proc/cpuinfo', 'model name')}, {os.cpu_count()} CPUs, {memory:.0f} GiB",
        "system": f"{_read('/etc/os-release', 'PRETTY_NAME')}, Linux {platform.release()}",
        "interpreter": f"{platform.python_implementation()} {platform.python_version()} ({build})",
        "versions": ", ".join(sorted({peer.version() for peer in peers} | {_iperf3()})),
    }


def _config(name: str) -> str:
    import sysconfig

    return str(sysconfig.get_config_var(name) or "")


def _iperf3() -> str:
    done = subprocess.run(["iperf3", "--version"], capture_output=True, text=True, check=False)
    return " ".join(done.stdout.split()[:2])


def _throughput_table(results: Results) -> list[str]:
    lines = [
        "| one TCP stream | direction | Gbit/s | CPU s per GB | beside | Gbit/s | CPU s per GB | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for ours, other in results.pairs:
        for direction in ("up", "down"):
            mine, theirs = (results.throughput[peer.label, direction] for peer in (ours, other))
            lines.append(
                f"| {ours.label} | {direction} | {mine.rate_text} | {mine.cpu:.2f} "
                f"| {other.label} | {theirs.rate_text} | {theirs.cpu:.2f} | **{mine.rate / theirs.rate:.2f}** |"
            )
    return lines


def _start_table(results: Results) -> list[str]:
    lines = ["| | start to first ping, s (median, worst) |", "|---|---|"]
    for label, values in results.start_s.items():
        lines.append(f"| {label} | {sorted(values)[len(values) // 2]:.2f}, {max(values):.2f} |")
    return lines


def _idle_table(results: Results) -> list[str]:
    lines = [
        "| | RSS, MB | CPU, % | wake-ups per s | KB per idle connection | CPU with 1,000, % | wake-ups with 1,000 |",
        "|---|---|---|---|---|---|---|",
    ]
    for label, row in results.idle.items():
        lines.append(
            f"| {label} | {row.rss_mb:.0f} | {row.cpu_percent:.2f} | {row.wakeups_per_s:.2f} "
            f"| {row.kb_per_connection:.1f} | {row.connections_cpu_percent:.2f} | {row.connections_wakeups_per_s:.2f} |"
        )
    return lines


def markdown(results: Results, facts: dict[str, str]) -> str:
    """The page; `tools/bench` writes all of it."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `tools/bench`; do not edit. Everything is measured in one run on one machine, the contestants in",
        "turn, so the ratios mean more than the figures. *Up* is guest to host, *down* host to guest; the other end is",
        "iperf3 on the host's 127.0.0.1. CPU is user and system time of the processes that are the network, without",
        "iperf3's own.",
        "",
        *(f"- {name}: {value}" for name, value in facts.items()),
        f"- {results.repeats} repeats of {results.seconds:g} s, medians and ranges; idle measured over {results.idle_seconds:g} s",
        f"- load average before the run: {results.load:.2f} (the figures want a machine with nothing else to do)",
        "",
        "## Throughput",
        "",
        *_throughput_table(results),
        "",
        "## Start-up",
        "",
        *_start_table(results),
        "",
        "## Idle",
        "",
        "RSS is the sum over processes, so libraries that they share count more than once. A wake-up is a voluntary",
        "context switch.",
        "",
        *_idle_table(results),
        "",
    ]
    return "\n".join(lines)


def write(results: Results, directory: Path) -> None:
    """Both files, each replaced whole."""
    facts = circumstances([peer for pair in results.pairs for peer in pair])
    document: dict[str, Any] = {
        **facts,
        "command": sys.argv[1:],
        "seconds": results.seconds,
        "repeats": results.repeats,
        "load": results.load,
        "throughput": [
            {"label": label, "direction": direction, **asdict(row)}
            for (label, direction), row in results.throughput.items()
        ],
        "start_s": results.start_s,
        "idle": {label: asdict(row) for label, row in results.idle.items()},
    }
    (directory / "benchmarks.json").write_text(json.dumps(document, indent=1) + "\n")
    (directory / "benchmarks.md").write_text(markdown(results, facts))
