"""The state file of host-switch: read at start, written by one task whenever forwards or leases have changed.

What the file says is `services.state`'s business. Nothing that happens to it is fatal: a file that cannot be used is
renamed and told, one that cannot be written is told and written again at the next change. Source: DESIGN section 5.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
import time
from contextlib import suppress
from typing import Final

import trio

from sulla_trio.errors import ConfigError
from sulla_trio.forward.inbound import ForwardEntry
from sulla_trio.services import state
from sulla_trio.services.events import Event
from sulla_trio.services.state import State, StoredForward
from sulla_trio.vnet.network import VirtualNetwork

log = logging.getLogger(__name__)

WRITE_INTERVAL: Final = 1.0
"""Seconds between two writes at least: what a killed host-switch may have forgotten."""
LAST_WRITE: Final = 0.5
"""Seconds that the write at the end may take: a daemon is gone within a second of SIGTERM, whatever its disk does."""
MAX_CORRUPT: Final = 5
"""Unusable files kept beside the state file; then the oldest makes room."""
CHANGES: Final = frozenset(
    (
        "forward.added",
        "forward.removed",
        "lease.acquired",
        "lease.renewed",
        "lease.released",
        "lease.declined",
        "lease.removed",
    )
)
"""Events after which the file is no longer true."""


async def keep_state(
    network: VirtualNetwork, path: str, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Restore what the file at `path` has, started when the leases are there; then keep it up to date until cancelled.

    Forwards come back in the background, for their names may have to be looked up. Cancelling writes the file once more,
    for at most `LAST_WRITE`. Raises nothing.
    """
    keeper = _StateKeeper(network, path)
    await keeper.restore()
    token = network.events.subscribe(keeper.notice)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(keeper.run)
            nursery.start_soon(network.forwards.restore)
            task_status.started()
    finally:
        network.events.unsubscribe(token)


class _StateKeeper:
    def __init__(self, network: VirtualNetwork, path: str) -> None:
        self._network = network
        self._path = os.path.realpath(path)  # a symbolic link stays one
        self._changed = trio.Event()
        self._failure = ""
        """Why the last write failed; told once while it stays the same."""
        self._disk = threading.Lock()
        """Held by a thread while it writes: one that was abandoned may still be at it when the last write begins."""
        self._snapshots = 0
        self._newest = 0
        """Number of the newest snapshot that a thread has begun to write; an abandoned one may come to it late."""

    async def restore(self) -> None:
        """Take the leases back, and tell the forward table what to have again."""
        try:
            data = await trio.to_thread.run_sync(read_file, self._path)
            saved = await trio.to_thread.run_sync(state.parse, data)
        except FileNotFoundError:
            return
        except (ConfigError, OSError) as error:
            await self._set_aside(_reason(error))
            return
        self._network.forwards.want(
            ForwardEntry(one.local, one.protocol, one.remote, one.source) for one in saved.forwards
        )
        driver = self._network.driver
        leases = self._network.leases.restore(saved.leases, time.time() - driver.now(), driver.now())
        log.info("restoring %d forwards and %d leases from %s", len(saved.forwards), leases, self._path)
        self._network.events.emit("daemon.state_restored", path=self._path, forwards=len(saved.forwards), leases=leases)

    async def _set_aside(self, reason: str) -> None:
        kept: str | None = None
        try:
            kept = await trio.to_thread.run_sync(set_aside, self._path)
            log.warning("cannot use the state file %s: %s; it is kept as %s", self._path, reason, kept)
        except OSError as error:
            log.warning("cannot use the state file %s: %s; nor rename it: %s", self._path, reason, _reason(error))
        self._network.events.emit("daemon.state_unusable", path=self._path, reason=reason, kept=kept)

    def notice(self, event: Event) -> None:
        """Called with each event of the network."""
        if event["type"] in CHANGES:
            self._changed.set()

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Write at once (a file that cannot be written is told at start), then after each change, then at the end."""
        try:
            task_status.started()
            while True:
                self._changed = trio.Event()
                await self._write()
                await trio.sleep(WRITE_INTERVAL)
                await self._changed.wait()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + LAST_WRITE) as scope:
                await self._write()
            if scope.cancelled_caught:
                self._failed(f"it took longer than {LAST_WRITE} s")

    async def _write(self) -> None:
        """Write the tables as they are now, in a thread."""
        self._snapshots += 1
        try:
            await trio.to_thread.run_sync(
                self._write_in_thread, self._snapshots, self._snapshot(), abandon_on_cancel=True
            )
        except OSError as error:
            self._failed(_reason(error))
            return
        if self._failure:
            self._failure = ""
            log.info("the state file %s is written again", self._path)

    def _snapshot(self) -> State:
        network = self._network
        forwards = [
            StoredForward(one.local, one.remote, one.protocol, one.source) for one in network.forwards.snapshot()
        ]
        return State(forwards, network.leases.snapshot(time.time() - network.driver.now()))

    def _write_in_thread(self, number: int, snapshot: State) -> None:
        with self._disk:
            if number < self._newest:
                return
            self._newest = number
            write_file(self._path, state.emit(snapshot))

    def _failed(self, reason: str) -> None:
        if reason != self._failure:
            self._failure = reason
            log.error("cannot write the state file %s: %s", self._path, reason)
            self._network.events.emit("daemon.state_failed", path=self._path, reason=reason)


def _reason(error: ConfigError | OSError) -> str:
    return error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error)


# The disk. These block.


def read_file(path: str) -> bytes:
    """The bytes of a regular file, one more than `state.MAX_BYTES` at most.

    Raises:
        OSError: there is none, or it cannot be read.
    """
    # Non-blocking: opening a FIFO would wait for its writer.
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
        _check_regular(os.fstat(file.fileno()))
        return file.read(state.MAX_BYTES + 1)


def write_file(path: str, data: bytes) -> None:
    """Put `data` in the place of the file at `path`, readable by its owner alone: after a crash at any moment there is the
    old file or the new one.

    Raises:
        OSError: it cannot be written; the old file is untouched.
    """
    with suppress(FileNotFoundError):
        _check_regular(os.stat(path))
    new = f"{path}.new"
    with suppress(FileNotFoundError):
        os.unlink(new)  # of one that was killed
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except OSError:
        with suppress(OSError):
            os.unlink(new)
        raise
    _sync_directory(os.path.dirname(path))


def set_aside(path: str) -> str:
    """Rename the file to ``path.corrupt-N``, the lowest N that is free, or the oldest's; returns the new name.

    Raises:
        OSError: it cannot be renamed, or is not a regular file.
    """
    _check_regular(os.stat(path))
    names = [f"{path}.corrupt-{number}" for number in range(1, MAX_CORRUPT + 1)]
    free = [name for name in names if not os.path.lexists(name)]
    kept = free[0] if free else min(names, key=lambda name: os.lstat(name).st_mtime_ns)
    os.replace(path, kept)
    return kept


def _check_regular(status: os.stat_result) -> None:
    """Neither wait for a FIFO nor rename over a device or a directory."""
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "Not a regular file")


def _sync_directory(path: str) -> None:
    """Make a rename in it last. Not every system can open a directory, nor every file system sync one."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
