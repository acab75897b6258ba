"""Child processes: their descriptors, signals and groups, and who goes with whom."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from sulla_trio.link.child import Child, Inherited, describe_status, spawn

REPORT = """
import json, os, signal, sys
names = sorted(int(name) for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}"))
status = dict(line.split(":\\t") for line in open("/proc/self/status") if ":\\t" in line)
json.dump({"descriptors": names, "stdin": os.readlink("/proc/self/fd/0"), "group": os.getpgrp() == os.getpid(),
           "blocked": int(status["SigBlk"], 16) & ~0x180000000, "inside": {n: os.read(n, 9).decode() for n in names if n > 2},
           "x": os.environ.get("X")}, open(sys.argv[1], "w"))
"""


async def report(path: Path, **options: object) -> dict[str, object]:
    child = spawn([sys.executable, "-c", REPORT, str(path)], Inherited.current(), **options)  # type: ignore[arg-type]
    assert await child.wait() == 0
    assert await child.wait() == 0
    found = json.loads(path.read_text())
    assert isinstance(found, dict)
    return found


async def test_it_has_the_descriptors_it_is_given_and_no_others(tmp_path: Path) -> None:
    pipes = [os.pipe() for _ in range(2)]
    for (_, write), text in zip(pipes, (b"first", b"second"), strict=True):
        os.write(write, text)
    (first, _), (second, _) = pipes
    found = await report(tmp_path / "report", descriptors={3: first, 4: second}, environment={"X": "y"})
    assert found["descriptors"] == [0, 1, 2, 3, 4]
    assert found["inside"] == {"3": "first", "4": "second"}
    assert (found["stdin"], found["x"], found["blocked"], found["group"]) == ("/dev/null", "y", 0, False)
    for (_, write), text in zip(pipes, (b"first", b"second"), strict=True):
        os.write(write, text)
    # Each number that is asked for is another one's source.
    found = await report(tmp_path / "crosswise", descriptors={second: first, first: second})
    assert found["inside"] == {str(second): "first", str(first): "second"}
    for pair in pipes:
        for descriptor in pair:
            os.close(descriptor)


async def test_what_cannot_be_executed_is_an_error_with_its_path(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    for path, kind in ((str(tmp_path / "none"), FileNotFoundError), ("/etc/passwd", PermissionError)):
        with pytest.raises(kind) as caught:
            spawn([path], Inherited.current())
        assert caught.value.filename == path
    assert os.listdir("/proc/self/fd") == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)  # noqa: ASYNC222


async def test_a_bound_childs_own_children_go_with_it() -> None:
    read, write = os.pipe()
    child = spawn(
        ["/bin/sh", "-c", "sleep 1000 & echo $!; exec true"], Inherited.current(), descriptors={1: write}, bound=True
    )
    os.close(write)
    assert await child.wait() == 0
    assert int(os.read(read, 32))
    assert select.select([read], [], [], 20)[0]
    assert os.read(read, 1) == b"", "somebody has the other side still"
    os.close(read)


async def test_cancelled_waiting_leaves_it_alone_and_two_may_wait() -> None:
    child = spawn(["/bin/sleep", "1000"], Inherited.current())
    with trio.move_on_after(0.01):
        await child.wait()
    assert child.status is None
    statuses: list[int] = []

    async def wait(waited_for: Child) -> None:
        statuses.append(await waited_for.wait())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, child)
        nursery.start_soon(wait, child)
        await trio.testing.wait_all_tasks_blocked()
        assert await child.kill_and_wait() == -signal.SIGKILL
    assert statuses == [-9, -9]


PARENT = """
import os, signal, trio
from sulla_trio.link.child import Inherited, spawn
async def main():
    child = spawn(["/bin/sleep", "1000"], Inherited.current(), bound=True)
    print(child.pid, flush=True)
    await trio.sleep_forever()
trio.run(main)
"""


def test_a_bound_child_dies_with_its_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        handle = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
        assert select.select([handle], [], [], 30)[0], "the child lives"
        os.close(handle)


def test_statuses_are_worded_as_go_does() -> None:
    assert describe_status(1) == "exit status 1"
    assert describe_status(-9) == "signal: killed"
    assert describe_status(-15) == "signal: terminated"
