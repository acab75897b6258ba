"""A throw-away machine for network-setup: its own network namespace, its own /run and /var/log, and a scripted Go-like host."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.support.runs import PATIENCE, Watched, wait_until

BIN = Path(sys.executable).parent
NETWORK_SETUP = BIN / "network-setup"
VM_SWITCH = BIN / "vm-switch"
PHRASE = b"github.com/rancher-sandbox/rancher-desktop/src/go/networking"

_MACHINE = "mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/log && echo ready && exec cat"

# PID 1 of the guest: says where it is, and lives.
_INIT = """#!/bin/sh
echo $$ $(readlink /proc/self/ns/net) $(readlink /proc/self/ns/pid) $(readlink /proc/self/ns/mnt) >{record}.part
mv {record}.part {record}
exec sleep 1000
"""

# A vm-switch as quiet as the Go one: deaf to SIGTERM, without a word on any descriptor, alive when its link is lost.
_QUIET = """#!{python}
import json, os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
helper = os.fork()
if not helper:
    signal.pause()
# Without listdir's own, which is closed by then.
descriptors = [number for number in sorted(map(int, os.listdir("/proc/self/fd"))) if os.path.exists(f"/proc/self/fd/{{number}}")]
with open({record!r} + ".part", "w") as file:
    json.dump({{"argv": sys.argv, "blocking": os.get_blocking(3), "environment": dict(os.environ), "pid": os.getpid(),
                "descriptors": descriptors, "helper": helper}}, file)
os.rename({record!r} + ".part", {record!r})
while True:
    signal.pause()
"""


class World:
    """One machine, at most one network-setup on it. `close` ends all that is left."""

    def __init__(self) -> None:
        self.watched = Watched()
        self.directory = Path(tempfile.mkdtemp(prefix="sulla-"))  # a socket's path has 107 bytes
        self.handshake, self.data = self.directory / "handshake", self.directory / "data"
        self.init_record, self.quiet_record = self.directory / "init.txt", self.directory / "quiet.json"
        self.init = self.script("wsl-init", _INIT.format(record=self.init_record))
        self.quiet = self.script("quiet", _QUIET.format(python=sys.executable, record=str(self.quiet_record)))
        self.log = self.directory / "network-setup.log"
        self.vm_log = self.directory / "vm-switch.log"
        self.daemon: subprocess.Popen[bytes] | None = None
        self._machine = subprocess.Popen(
            ["unshare", "-n", "-m", "sh", "-c", _MACHINE], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._machine.stdout is not None
        assert self._machine.stdout.readline() == b"ready\n"

    def close(self) -> None:
        for pid in self.watched.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.daemon is not None:
            self.daemon.wait(PATIENCE)
        self._machine.communicate()
        self.watched.close()
        shutil.rmtree(self.directory)

    def script(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def inside(self, *command: str) -> list[str]:
        """`command` on this machine; the process is the command's own."""
        return ["nsenter", f"--target={self._machine.pid}", "--net", "--mount", "--", *command]

    def run(self, *command: str) -> str:
        """Output of `command` on this machine."""
        done = subprocess.run(self.inside(*command), capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def file(self, path: str) -> Path:
        """A file of this machine, as seen from outside."""
        return Path(f"/proc/{self._machine.pid}/root{path}")

    def start(self, *arguments: str, vm_switch: Path | None = VM_SWITCH, init: bool = True, **environment: str) -> None:
        """Start network-setup; later arguments overrule ours."""
        line = [str(NETWORK_SETUP), "-debug", "-logfile", str(self.log), "-vm-switch-logfile", str(self.vm_log)]
        line += ["--handshake", f"unix://{self.handshake}", "--data", f"unix://{self.data}"]
        line += ["-vm-switch-path", str(vm_switch)] if vm_switch else []
        line += ["--unshare-arg", str(self.init)] if init else []
        self.daemon = subprocess.Popen(
            self.inside(*line, *arguments),
            env=self.watched.environment | environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    @property
    def pid(self) -> int:
        assert self.daemon is not None
        return self.daemon.pid

    def wait(self) -> int:
        """Exit status of network-setup."""
        assert self.daemon is not None
        return self.daemon.wait(PATIENCE)

    def stop(self, number: int = signal.SIGTERM) -> int:
        os.kill(self.pid, number)
        return self.wait()

    def links(self) -> set[str]:
        return {link["ifname"] for link in json.loads(self.run("ip", "-j", "link"))}

    def address(self, name: str, process: int | None = None) -> dict[str, Any] | None:
        """The one IPv4 address of interface `name` here, or where `process` is; None: it has none."""
        there = ["nsenter", f"--target={process}", "--net", "--"] if process else []
        for link in json.loads(self.run(*there, "ip", "-j", "-4", "addr")):
            if link["ifname"] == name and link.get("addr_info"):
                (found,) = link["addr_info"]
                assert isinstance(found, dict)
                return found
        return None

    def index(self, name: str, process: int | None = None) -> int:
        """The number of interface `name`: a new one of the same name has another."""
        there = ["nsenter", f"--target={process}", "--net", "--"] if process else []
        (link,) = json.loads(self.run(*there, "ip", "-j", "link", "show", name))
        return int(link["ifindex"])

    def children(self, pid: int) -> list[int]:
        found = []
        for entry in filter(str.isdecimal, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1]) == pid:
                    found.append(int(entry))
        return found

    def vm_switch_pid(self) -> int:
        """network-setup's child that is vm-switch, once it is running."""
        found: list[int] = []

        def look() -> bool:
            found[:] = [
                pid
                for pid in self.children(self.pid)
                if Path(f"/proc/{pid}/comm").read_text().strip() in ("vm-switch", "quiet")
            ]
            return bool(found)

        wait_until(look, self.story)
        return found[0]

    def wait_log(self, text: str, times: int = 1) -> None:
        wait_until(lambda: self.log.exists() and self.log.read_text().count(text) >= times, self.story)

    def wait_file(self, path: Path) -> str:
        wait_until(path.exists, self.story)
        return path.read_text()

    def story(self) -> str:
        logs = [path.read_text() for path in (self.log, self.vm_log) if path.exists()]
        return "\n".join(logs)

    def fatal(self) -> str:
        """The message of the only FATAL line, the log's last but for what -debug adds."""
        lines = [line for line in self.log.read_text().splitlines() if "level=debug" not in line]
        assert [line for line in lines if "level=fatal" in line] == lines[-1:], self.story()
        return json.loads(lines[-1].partition(" msg=")[2])  # type: ignore[no-any-return]

    def assert_nothing_left(self) -> None:
        """No process, so no namespace, tap or descriptor; no veth, no pid file, no socket of ours."""
        self.watched.wait_gone()
        assert self.links() == {"lo"}
        assert not self.file("/run/wsl-init.pid").exists()
        assert not self.handshake.exists(), "the socket of the handshake is left"


class ScriptedHost:
    """The host's side of the handshake, as the Go one acts it: byte for byte, with blocking sockets."""

    def __init__(self, world: World) -> None:
        self._world = world

    def dial(self) -> socket.socket:
        """A connection to the guest's handshake endpoint, once it listens."""
        found = []

        def connect() -> bool:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.settimeout(PATIENCE)
            try:
                sock.connect(str(self._world.handshake))
            except (FileNotFoundError, ConnectionRefusedError):
                sock.close()
                return False
            found.append(sock)
            return True

        wait_until(connect, self._world.story)
        return found[0]

    def probe(self) -> bytes:
        """What the guest says unasked; the connection is closed without a word."""
        with self.dial() as sock:
            return sock.recv(len(PHRASE), socket.MSG_WAITALL)

    def ready(self) -> None:
        """READY on a connection of its own, whose signature is not read."""
        with self.dial() as sock:
            sock.sendall(b"READY")

    def attach(self) -> socket.socket:
        """The whole handshake; the data connection."""
        assert self.probe() == PHRASE
        self._world.data.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.settimeout(PATIENCE)
            listener.bind(str(self._world.data))
            listener.listen()
            self.ready()
            connection, _ = listener.accept()
        connection.settimeout(PATIENCE)
        return connection
