"""`sulla run` as a program under test: started, watched through a mark in its environment, at a terminal, as another user."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SULLA = (sys.executable, "-m", "sulla_trio.cli.sulla")
TYPING = 0.3
"""Seconds."""
PATIENCE = 20.0
"""Seconds until a test gives up; nothing here is expected to take more than a few."""
NOBODY = 65534
MARK = "SULLA_TEST_MARK"

# A private mount namespace in which another user reaches the interpreter and may open the tun device, whatever the modes
# are outside (a developer's interpreter in /root, a machine with /dev/net/tun 0600). $1: directories to keep, $2: the first
# closed directory above them or nothing.
_OPEN_UP = """
mount -t tmpfs tmpfs /mnt && mknod /mnt/tun c 10 200 && chmod 0666 /mnt/tun && mount --bind /mnt/tun /dev/net/tun || exit 99
if [ -n "$2" ]; then
    n=0
    for d in $1; do n=$((n+1)); mkdir /mnt/$n && mount --rbind "$d" /mnt/$n || exit 99; done
    mount -t tmpfs -o mode=755 tmpfs "$2" || exit 99
    n=0
    for d in $1; do n=$((n+1)); mkdir -p "$d" && mount --rbind /mnt/$n "$d" || exit 99; done
fi
umount -l /mnt
shift 2
exec "$@"
"""


def as_nobody(command: Sequence[str], runtime: Path) -> list[str]:
    """`command` as an ordinary user without privileges, from root; `runtime` becomes that user's runtime directory."""
    os.chown(runtime, NOBODY, NOBODY)
    needed = {os.path.realpath(path) for path in (sys.base_prefix, sys.prefix, str(ROOT))}
    closed = ""
    for path in needed:
        for parent in [*reversed(Path(path).parents), Path(path)]:
            if not parent.stat().st_mode & 0o001:
                closed = str(parent)
                break
    inside = [path for path in needed if closed and path.startswith(closed)]
    drop = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--bounding-set=-all"]
    drop += ["env", f"XDG_RUNTIME_DIR={runtime}"]
    return ["unshare", "-m", "sh", "-c", _OPEN_UP, "sh", " ".join(inside), closed, *drop, *command]


def sulla_run(*command: str, options: Sequence[str] = ()) -> list[str]:
    return [*SULLA, "run", *options, "--", *command]


class Watched:
    """Everything that descends from a command started with `environment`, found by the mark in it."""

    def __init__(self) -> None:
        self._mark = f"{MARK}={uuid.uuid4()}"
        # Not pytest's directory: a socket's path has 107 bytes.
        self.runtime, self.runtime_of_nobody = (Path(tempfile.mkdtemp(prefix="sulla-")) for _ in range(2))
        """XDG_RUNTIME_DIR of root and of the other user: where socket files would be left."""

    def line(self, user: str, *command: str, options: Sequence[str] = ()) -> list[str]:
        """`sulla run` of `command` as ``root`` or ``nobody``."""
        line = sulla_run(*command, options=options)
        return as_nobody(line, self.runtime_of_nobody) if user == "nobody" else line

    def close(self) -> None:
        for directory in (self.runtime, self.runtime_of_nobody):
            shutil.rmtree(directory)

    @property
    def environment(self) -> dict[str, str]:
        name, _, value = self._mark.partition("=")
        return {**os.environ, name: value, "XDG_RUNTIME_DIR": str(self.runtime), "PYTHONDONTWRITEBYTECODE": "1"}

    def processes(self) -> dict[int, str]:
        """pid -> command line of those alive."""
        found = {}
        for entry in os.listdir("/proc"):
            if entry.isdecimal():
                with contextlib.suppress(OSError):
                    if self._mark.encode() in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                        found[int(entry)] = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def find(self, word: str) -> list[int]:
        return [pid for pid, line in self.processes().items() if word in line]

    def network_namespaces(self) -> set[str]:
        """Those that the processes alive are in, but the caller's."""
        found = set()
        for pid in self.processes():
            with contextlib.suppress(OSError):
                found.add(os.readlink(f"/proc/{pid}/ns/net"))
        return found - {os.readlink("/proc/self/ns/net")}

    def files(self) -> list[str]:
        both = (self.runtime, self.runtime_of_nobody)
        return [str(path) for directory in both for path in directory.rglob("*") if not path.is_dir()]

    def wait_gone(self) -> None:
        """Nothing is left: no process, no socket file. (A namespace and its tap live no longer than the last process.)"""
        wait_until(lambda: not self.processes(), lambda: f"left: {self.processes()}")
        wait_until(lambda: not self.files(), lambda: f"left: {self.files()}")

    def run(self, *arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
        """Start, wait, and see that nothing is left."""
        options = {"stdin": subprocess.DEVNULL, "timeout": PATIENCE, "env": self.environment, **more}
        done = subprocess.run(arguments, capture_output=True, text=True, **options)  # type: ignore[call-overload]
        self.wait_gone()
        assert isinstance(done, subprocess.CompletedProcess)
        return done


def wait_until(condition: object, explain: object = None) -> None:
    """Poll the callable `condition`; fail with `explain()` when PATIENCE is over."""
    assert callable(condition)
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, explain() if callable(explain) else "waited in vain"
        time.sleep(0.02)


class Terminal:
    """A pseudo-terminal with a session of its own on the other side."""

    def __init__(self, arguments: Sequence[str], environment: dict[str, str]) -> None:
        self._ours, theirs = os.openpty()
        self.text = ""
        self.process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
        )
        os.close(theirs)

    def send(self, text: str) -> None:
        """Type `text`, at a person's pace: a process that a signal is about to stop may still take what is typed at once,
        under any shell, and a shell that has shown its prompt may not have set the terminal yet."""
        time.sleep(TYPING)
        os.write(self._ours, text.encode())

    def expect(self, pattern: str) -> re.Match[str]:
        """Read until `pattern` has come; what is before its end is forgotten."""
        deadline = time.monotonic() + PATIENCE
        while not (match := re.search(pattern, self.text)):
            left = deadline - time.monotonic()
            assert left > 0, f"no {pattern!r} in {self.text!r}"
            if select.select([self._ours], [], [], left)[0]:
                try:
                    self.text += os.read(self._ours, 4096).decode(errors="replace")
                except OSError:  # EIO: nobody has the other side open
                    raise AssertionError(f"end of terminal, no {pattern!r} in {self.text!r}") from None
        self.text = self.text[match.end() :]
        return match

    def close(self) -> None:
        os.close(self._ours)
        self.process.wait(PATIENCE)


@contextlib.contextmanager
def terminal(arguments: Sequence[str], environment: dict[str, str]) -> Iterator[Terminal]:
    """A `Terminal`, hung up at the end."""
    found = Terminal(arguments, environment)
    try:
        yield found
    finally:
        found.close()
