"""The state file on a real disk: kept up to date, read at start, and no trouble with it ends the daemon."""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from sulla_trio.config import format_ip, network_config, parse_ip
from sulla_trio.daemons import state_file
from sulla_trio.daemons.state_file import keep_state, read_file, set_aside, write_file
from sulla_trio.services import state
from sulla_trio.services.state import State, StoredForward
from sulla_trio.vnet.network import VirtualNetwork
from sulla_trio.vnet.resolver import Resolver
from tests.forward.test_inbound import free_port

MACS = [b"\2\0\0\0\0" + bytes((number,)) for number in range(1, 6)]
REMOTE = "192.168.127.2:80"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.json"


@pytest.fixture(autouse=True)
def _slow_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk of a busy machine may take seconds to sync."""
    monkeypatch.setattr(state_file, "LAST_WRITE", 60.0)


@asynccontextmanager
async def running(path: Path) -> AsyncIterator[VirtualNetwork]:
    """A network whose state is kept at `path`; left as by a signal."""
    network = VirtualNetwork(network_config(), resolver=Resolver(servers=()), poison=True, strict=True)
    async with trio.open_nursery() as nursery:
        await nursery.start(network.run)
        await nursery.start(keep_state, network, str(path))
        yield network
        nursery.cancel_scope.cancel()


def content(path: Path) -> bytes:
    return path.read_bytes()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def lease(network: VirtualNetwork, number: int) -> str:
    now = network.driver.now()
    given = network.leases.offer(MACS[number], now)
    assert given is not None
    network.leases.bind(given, now)
    network.events.emit("lease.acquired", ip=format_ip(given.ip), mac=MACS[number].hex(":"))
    return format_ip(given.ip)


def events(network: VirtualNetwork, type: str) -> list[dict[str, object]]:
    return [event for event in network.events.since(0) if event["type"] == type]


async def until(condition: object) -> None:
    assert callable(condition)
    with trio.fail_after(20):
        while not condition():
            await trio.sleep(0.005)


async def test_a_second_run_has_what_the_first_had(path: Path) -> None:
    local = f"127.0.0.1:{free_port()}"
    async with running(path) as network:
        assert [lease(network, number) for number in (0, 1)] == ["192.168.127.3", "192.168.127.4"]
        await network.forwards.expose(local, REMOTE, "tcp", source="guest")
    assert mode(path) == 0o600
    assert json.loads(content(path))["forwards"] == [
        {"local": local, "remote": REMOTE, "protocol": "tcp", "source": "guest"}
    ]
    async with running(path) as network:
        assert lease(network, 2) == "192.168.127.5"
        assert lease(network, 1) == "192.168.127.4"
        await until(network.forwards.all)
        assert [(entry.local, entry.source) for entry in network.forwards.all()] == [(local, "guest")]
        (told,) = events(network, "daemon.state_restored")
        assert (told["forwards"], told["leases"]) == (1, 2)
        await network.forwards.unexpose(local, "tcp")
    assert json.loads(content(path))["forwards"] == []
    assert os.listdir(path.parent) == [path.name]


async def test_the_first_write_forgets_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = StoredForward("127.0.0.1:1", REMOTE, "tcp", "api")
    write_file(str(path), state.emit(State([forward])))
    written: list[State] = []
    monkeypatch.setattr(state_file._StateKeeper, "_write_in_thread", lambda keeper, number, now: written.append(now))
    async with running(path):
        await until(lambda: written)
    assert all(now.forwards == [forward] for now in written)


async def test_it_is_written_at_start_and_after_a_change_at_most_once_a_second(
    path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    written: list[tuple[float, int]] = []

    async def write(keeper: state_file._StateKeeper) -> None:
        written.append((trio.current_time() - start, len(keeper._snapshot().leases)))
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(state_file._StateKeeper, "_write", write)
    start = trio.current_time()
    async with running(path) as network:
        await trio.sleep(5.0)
        assert written == [(0.0, 0)]
        for number in range(4):
            lease(network, number)
            await trio.sleep(0.3)
        await trio.sleep(5.0)
        assert [(round(at, 1), count) for at, count in written[1:]] == [(5.0, 1), (6.0, 4)]
        network.events.emit("forward.opened", local="", remote="")
        await trio.sleep(5.0)
    assert [count for _, count in written] == [0, 1, 4, 4]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "truncated"),
        (b"{" * 100, "malformed"),
        (os.urandom(4096), ""),
        (b'{"version": 2, "networks": []}', "version 2 is newer"),
        (b'{"version": 1, "forwards": [], "leases": [{"ip": 1}]}', "leases[0].ip"),
    ],
    ids=["empty", "braces", "noise", "newer", "bad_lease"],
)
async def test_an_unusable_file_is_renamed_and_told(
    path: Path, data: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_file(str(path), data)
    with caplog.at_level(logging.WARNING):
        async with running(path) as network:
            assert lease(network, 0) == "192.168.127.3"
            (told,) = events(network, "daemon.state_unusable")
    (record,) = caplog.records
    assert (record.levelno, reason in record.getMessage()) == (logging.WARNING, True)
    kept = path.with_name("state.json.corrupt-1")
    assert (told["kept"], reason in str(told["reason"])) == (str(kept), True)
    assert content(kept) == data
    assert len(state.parse(content(path)).leases) == 1


def test_unusable_files_are_bounded_and_the_oldest_goes(path: Path) -> None:
    for number in range(1, 8):
        path.write_text(str(number))
        os.utime(path, (number, number))
        set_aside(str(path))
    names = sorted(kept.name for kept in path.parent.iterdir())
    assert names == [f"state.json.corrupt-{number}" for number in range(1, 6)]
    assert sorted(kept.read_text() for kept in path.parent.iterdir()) == ["3", "4", "5", "6", "7"]


async def test_a_write_that_fails_is_told_once_and_the_next_change_tries_again(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    full = True
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    write_file(str(path), state.emit(State([StoredForward(":1", REMOTE, "tcp", "api")])))
    old = content(path)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(state_file, "WRITE_INTERVAL", 0.0)
    with caplog.at_level(logging.INFO, "sulla_trio.daemons.state_file"):
        async with running(path) as network:
            await until(lambda: events(network, "daemon.state_failed"))
            for number in range(4):
                lease(network, number)
                await trio.sleep(0.02)
            assert content(path) == old
            assert os.listdir(path.parent) == [path.name]
            full = False
            lease(network, 4)
            await until(lambda: content(path) != old)
            assert len(state.parse(content(path)).leases) == 5
    (told,) = events(network, "daemon.state_failed")
    assert told["reason"] == "no space left on device"
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert lines == [f"cannot write the state file {path}: no space left on device"]
    assert f"the state file {path} is written again" in caplog.text


@pytest.fixture
def unusual(tmp_path: Path) -> Iterator[dict[str, Path]]:
    """Paths that are no regular files."""
    paths = {name: tmp_path / name for name in ("directory", "fifo", "loop", "missing")}
    paths["directory"].mkdir()
    os.mkfifo(paths["fifo"])
    paths["loop"].symlink_to(paths["loop"])
    paths["missing"] /= "state.json"
    paths["device"] = Path("/dev/null")
    yield paths
    assert paths["directory"].is_dir()
    assert paths["fifo"].is_fifo()
    assert paths["device"].is_char_device()


@pytest.mark.parametrize("kind", ["directory", "fifo", "loop", "missing", "device"])
async def test_what_is_no_file_is_left_alone_and_the_daemon_runs(unusual: dict[str, Path], kind: str) -> None:
    async with running(unusual[kind]) as network:
        assert lease(network, 0) == "192.168.127.3"
        await until(lambda: events(network, "daemon.state_failed"))


async def test_a_symbolic_link_stays_one(path: Path) -> None:
    link = path.with_name("link")
    link.symlink_to(path)
    async with running(link) as network:
        lease(network, 0)
    assert link.is_symlink()
    assert len(state.parse(content(path)).leases) == 1


async def test_a_disk_that_hangs_does_not_hold_the_end_up(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    hangs = trio.Event()

    async def write(keeper: state_file._StateKeeper) -> None:
        hangs.set()
        await trio.sleep_forever()

    monkeypatch.setattr(state_file._StateKeeper, "_write", write)
    monkeypatch.setattr(state_file, "LAST_WRITE", 0.5)
    start = trio.current_time()
    async with running(path):
        await hangs.wait()
    assert trio.current_time() - start == pytest.approx(0.5)
    assert "took longer than 0.5 s" in caplog.text


def test_an_abandoned_write_that_comes_late_changes_nothing(path: Path) -> None:
    keeper = state_file._StateKeeper(VirtualNetwork(network_config()), str(path))
    keeper._write_in_thread(2, State([StoredForward(":2", REMOTE, "tcp", "api")]))
    keeper._write_in_thread(1, State([StoredForward(":1", REMOTE, "tcp", "api")]))
    assert [forward.local for forward in state.parse(content(path)).forwards] == [":2"]


async def test_a_changed_subnet_drops_the_leases_that_are_not_in_it(path: Path) -> None:
    async with running(path) as network:
        lease(network, 0)
    moved = content(path).replace(b"192.168.127.3", b"192.168.128.3")
    write_file(str(path), moved)
    async with running(path) as network:
        assert events(network, "daemon.state_restored")[0]["leases"] == 0
        assert network.leases.is_free(parse_ip("192.168.127.3"), network.driver.now())


def test_writing_replaces_whole_files_and_what_a_killed_writer_left(path: Path) -> None:
    path.with_name("state.json.new").write_text("half of a fi")
    path.write_text("old")
    path.chmod(0o644)
    write_file(str(path), b"new")
    assert read_file(str(path)) == b"new"
    assert mode(path) == 0o600
    assert os.listdir(path.parent) == [path.name]


def test_no_more_is_read_than_could_be_used(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(state.MAX_BYTES * 4)
    assert len(read_file(str(path))) == state.MAX_BYTES + 1
