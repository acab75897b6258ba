"""The contestants: how each is started on an unconfigured namespace, and where it shows the host's 127.0.0.1."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench_lib.processes import command_line, descendants

AGENT = Path(__file__).with_name("agent.py")
SULLA = str(Path(sys.executable).with_name("sulla"))


class Guest:
    """A started guest: an agent inside, and the processes that carry its frames outside."""

    def __init__(self, agent: subprocess.Popen[str], others: list[subprocess.Popen[bytes]], daemons: list[int]) -> None:
        self._agent = agent
        self._others = others
        self._fixed = daemons

    @property
    def daemons(self) -> list[int]:
        """Pids of everything that is the network and not the guest."""
        if self._fixed:
            return self._fixed
        below = descendants(self._agent.pid)
        inside = {each for pid in below if pid != self._agent.pid and _is_agent(pid) for each in descendants(pid)}
        return [pid for pid in below if pid not in inside]

    def wait_ready(self) -> None:
        """Until the agent runs.

        Raises:
            RuntimeError: it ended instead.
        """
        self._answer()

    def ask(self, do: str, **arguments: Any) -> Any:
        """Have the agent do one of its verbs.

        Raises:
            RuntimeError: it could not.
        """
        assert self._agent.stdin is not None
        self._agent.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._agent.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._agent.stdout is not None
        line = self._agent.stdout.readline()
        answer = json.loads(line) if line else {"error": f"the guest ended with status {self._agent.wait()}"}
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def close(self) -> None:
        """End the guest and everything that was started for it."""
        assert self._agent.stdin is not None
        assert self._agent.stdout is not None
        self._agent.stdin.close()
        self._agent.wait(20)
        self._agent.stdout.close()
        for process in reversed(self._others):
            process.terminate()
            process.wait(20)


def _is_agent(pid: int) -> bool:
    words = command_line(pid).split()
    # The launcher and init name it among their arguments too; the agent itself is an interpreter and its file.
    return len(words) == 2 and words[1] == str(AGENT)


@dataclass(frozen=True)
class Peer:
    """One contestant with one MTU."""

    name: str
    mtu: int
    host: str
    """The guest's address of the host's 127.0.0.1."""
    gateway: str
    start: Callable[[int], Guest]
    version: Callable[[], str]

    @property
    def label(self) -> str:
        return f"{self.name}, MTU {self.mtu}"


def _first_line(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).splitlines()[0].strip()


def _start_ours(mtu: int) -> Guest:
    command = [SULLA, "run", "--mtu", str(mtu), "--", sys.executable, str(AGENT)]
    agent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    return Guest(agent, [], [])


def _start_slirp4netns(mtu: int) -> Guest:
    holder = subprocess.Popen(["unshare", "--user", "--map-root-user", "--net", "sleep", "infinity"])
    log = tempfile.TemporaryFile()  # noqa: SIM115 (the process keeps it)
    own = os.readlink("/proc/self/ns/net")
    while os.readlink(f"/proc/{holder.pid}/ns/net") == own or not command_line(holder.pid).startswith("sleep"):
        if holder.poll() is not None:
            raise RuntimeError("unshare --user --net failed")
    ready, ready_write = os.pipe()
    slirp = subprocess.Popen(
        [
            "slirp4netns", "--configure", f"--mtu={mtu}", "--disable-dns", f"--ready-fd={ready_write}",
            str(holder.pid), "tap0",
        ],
        pass_fds=[ready_write], stdout=log, stderr=log,
    )  # fmt: skip
    os.close(ready_write)
    os.read(ready, 1)
    os.close(ready)
    enter = ["nsenter", "--preserve-credentials", "--user", "--net", "--target", str(holder.pid)]
    agent = subprocess.Popen(
        [*enter, sys.executable, str(AGENT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    log.close()
    return Guest(agent, [holder, slirp], [slirp.pid])


def _our_version() -> str:
    from sulla_trio import __version__

    return f"sulla {__version__}"


def ours(mtu: int) -> Peer:
    return Peer("sulla run", mtu, "192.168.127.254", "192.168.127.1", _start_ours, _our_version)


def slirp4netns(mtu: int) -> Peer:
    def version() -> str:
        return _first_line("slirp4netns", "--version")

    return Peer("slirp4netns", mtu, "10.0.2.2", "10.0.2.2", _start_slirp4netns, version)
