"""What the kernel says about a set of processes: CPU time, memory, wake-ups. From /proc."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK")


class Usage(NamedTuple):
    """Sums over a set of processes."""

    cpu: float
    """User and system seconds since each started."""
    rss: int
    """Resident bytes."""
    switches: dict[int, int]
    """Voluntary context switches of each thread: how often it slept and was woken."""

    def wakeups_since(self, before: Usage) -> int:
        """Wake-ups of the threads that live now (one that has ended took its count along)."""
        return sum(count - before.switches.get(thread, 0) for thread, count in self.switches.items())


def _fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third (state) on; the second may hold spaces."""
    return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()


def descendants(root: int) -> list[int]:
    """`root` and every process below it, parents first."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            try:
                children.setdefault(int(_fields(int(entry.name))[1]), []).append(int(entry.name))
            except OSError:
                pass  # it ended meanwhile
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def command_line(pid: int) -> str:
    """The arguments of a process, empty when it is gone."""
    try:
        return (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _status(path: Path, key: str) -> int:
    for line in path.read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    return 0


def usage(pids: list[int]) -> Usage:
    """Of those that live; they are expected to."""
    cpu, rss, switches = 0.0, 0, {}
    for pid in pids:
        fields = _fields(pid)
        cpu += (int(fields[11]) + int(fields[12])) / TICKS
        rss += _status(PROC / str(pid) / "status", "VmRSS") * 1024
        for task in (PROC / str(pid) / "task").iterdir():
            switches[int(task.name)] = _status(task / "status", "voluntary_ctxt_switches")
    return Usage(cpu, rss, switches)
