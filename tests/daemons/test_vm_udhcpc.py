"""udhcpc as a child: its command line, its restarts, its end. It is a shell script here; the real one is in
test_vm_switch_udhcpc.py."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from sulla_trio.daemons import vm_udhcpc
from sulla_trio.daemons.vm_udhcpc import Udhcpc, describe
from sulla_trio.errors import ConfigError

INTERFACE = "no-such-if"


class Lab:
    """A directory that is PATH, with a udhcpc made of `body`; each start appends a line to `starts`."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.starts = directory / "starts"
        self.script = directory / "script with a space"
        self.script.write_text("#!/bin/sh\n")
        self.script.chmod(0o755)
        self.addressed = True
        # Nothing else: the real one is never to be found here, nor an interface that exists.
        (directory / "sleep").symlink_to(shutil.which("sleep") or "")
        monkeypatch.setenv("PATH", str(directory))
        monkeypatch.setenv("NOTIFY_SOCKET", "/run/notify")
        monkeypatch.setenv("SULLA_CTL_FD", "9")
        monkeypatch.setattr(vm_udhcpc, "FIRST_BACK_OFF", 0.01)
        self.udhcpc = Udhcpc(INTERFACE, str(self.script), lambda name: self.addressed)

    def install(self, body: str) -> None:
        program = self.directory / "udhcpc"
        program.write_text(f'#!/bin/sh\necho "$$ $NOTIFY_SOCKET ${{SULLA_CTL_FD-none}} $*" >>{self.starts}\n{body}\n')
        program.chmod(0o755)

    def lines(self) -> list[str]:
        return self.starts.read_text().splitlines() if self.starts.exists() else []

    async def started(self, count: int) -> int:
        """Pid of the `count`th."""
        while len(self.lines()) < count:
            await trio.sleep(0.01)
        return int(self.lines()[count - 1].split()[0])

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                self.udhcpc.start()
                nursery.start_soon(self.udhcpc.run)
                yield
                nursery.cancel_scope.cancel()


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    return Lab(tmp_path, monkeypatch)


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


async def test_its_command_line_and_environment(lab: Lab) -> None:
    lab.install("exec sleep 100")
    async with lab.running():
        pid = await lab.started(1)
    assert lab.lines() == [f"{pid} /run/notify none -f -i {INTERFACE} -s {lab.script}"]
    assert is_gone(pid)


async def test_a_failure_is_told_and_it_is_started_again(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    lab.install("exit 3")
    async with lab.running():
        await lab.started(3)
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert errors[:2] == ["dhcp error: udhcpc: exit status 3; starting it again in 0 s"] * 2


async def test_a_new_link_ends_the_back_off(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(vm_udhcpc, "FIRST_BACK_OFF", 1000.0)
    lab.install("exit 3")
    async with lab.running():
        while not any("starting it again" in record.getMessage() for record in caplog.records):
            await trio.sleep(0.01)
        lab.udhcpc.reconfirm()
        await lab.started(2)


async def test_status_0_is_no_failure(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    lab.install("exit 0")
    with trio.fail_after(30):
        lab.udhcpc.start()
        await lab.udhcpc.run()
    assert len(lab.lines()) == 1
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_one_that_is_gone_at_the_second_start_is_tried_again(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    lab.install("exit 3")
    lab.udhcpc.start()
    (lab.directory / "udhcpc").rename(lab.directory / "away")
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lab.udhcpc.run)
            while not any("cannot be started" in record.getMessage() for record in caplog.records):
                await trio.sleep(0.01)
            (lab.directory / "away").rename(lab.directory / "udhcpc")
            await lab.started(2)
            nursery.cancel_scope.cancel()


async def test_a_new_link_is_a_renewal(lab: Lab) -> None:
    lab.install(
        f"trap 'echo renew >>{lab.starts}; exit 0' USR1; echo ready >>{lab.starts}; while :; do sleep 0.01; done"
    )
    async with lab.running():
        while "ready" not in lab.lines():
            await trio.sleep(0.01)
        lab.udhcpc.reconfirm()
        while "renew" not in lab.lines():
            await trio.sleep(0.01)
    lab.udhcpc.reconfirm()  # it has ended: nothing to tell


async def test_a_new_link_without_an_address_is_a_new_start(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    lab.install("exec sleep 100")
    lab.addressed = False
    async with lab.running():
        first = await lab.started(1)
        lab.udhcpc.reconfirm()
        second = await lab.started(2)
        assert is_gone(first)
        assert not is_gone(second)
    assert is_gone(second)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_what_cannot_be_started_is_one_line(lab: Lab) -> None:
    with pytest.raises(ConfigError, match=r"^udhcpc cannot be started: not found in PATH$"):
        lab.udhcpc.start()
    (lab.directory / "udhcpc").write_text("no program")
    with pytest.raises(ConfigError, match=r"^udhcpc cannot be started: permission denied$"):
        lab.udhcpc.start()
    (lab.directory / "udhcpc").chmod(0o755)
    with pytest.raises(ConfigError, match=r"^udhcpc cannot be started: exec format error$"):
        lab.udhcpc.start()
    lab.udhcpc.stop()


@pytest.mark.parametrize("name", ["missing", "."])
def test_a_script_that_is_none(lab: Lab, name: str) -> None:
    lab.install("exec sleep 100")
    path = str(lab.directory / name)
    with pytest.raises(ConfigError, match=r"-dhcp-script .* is not an executable file"):
        Udhcpc(INTERFACE, path, lambda name: True).start()


def test_it_dies_with_us(lab: Lab) -> None:
    lab.install("exec sleep 100")
    code = f"""
import time
from sulla_trio.daemons.vm_udhcpc import Udhcpc
udhcpc = Udhcpc({INTERFACE!r}, {str(lab.script)!r}, lambda name: True)
udhcpc.start()
print(udhcpc._child.pid, flush=True)
time.sleep(100)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        handle = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
        assert select.select([handle], [], [], 30)[0], "it lives"
        os.close(handle)


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (1, "udhcpc: exit status 1"),
        (-signal.SIGKILL, "udhcpc: signal: killed"),
        (-64, "udhcpc: signal: real-time signal 30"),
    ],
)
def test_statuses_in_words(status: int, text: str) -> None:
    assert describe(status) == text
