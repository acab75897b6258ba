"""A child process of a daemon that runs trio, started on trio's own thread: what `trio.run_process` cannot do.

trio spawns in a pool thread, with whose end PR_SET_PDEATHSIG would strike, and `subprocess` keeps the numbers of inherited
descriptors. Here a child gets exactly the descriptors it is to have under the numbers it expects, the dispositions that our
own caller gave us, and /dev/null as its stdin. Source: fork(2), PR_SET_PDEATHSIG(2const), pidfd_open(2).
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import warnings
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, NoReturn

import trio

from sulla_trio.link import process

_SAFE_FD: Final = 64
"""Above every number that a child is given, so that a dup2 to one hits none that is still to be moved."""


class Inherited(NamedTuple):
    """Signal dispositions and mask of our own caller; take it before the first `signal()`."""

    ignored: frozenset[signal.Signals]
    mask: frozenset[int]

    @classmethod
    def current(cls) -> Inherited:
        return cls(process.ignored_signals(), frozenset(signal.pthread_sigmask(signal.SIG_BLOCK, ())))


class Child:
    """A running child. Owns a pidfd; `wait` or `kill_and_wait` reaps."""

    __slots__ = ("_group", "_handle", "_waiting", "pid", "status")

    def __init__(self, pid: int, group: bool) -> None:
        self.pid = pid
        self.status: int | None = None
        """None while it runs; then its exit status, negative for a signal."""
        self._group = group
        self._handle = os.pidfd_open(pid)
        self._waiting = trio.Lock()

    def kill(self) -> None:
        """SIGKILL; for one with a process group of its own to all of it."""
        if self.status is None:
            (os.killpg if self._group else os.kill)(self.pid, signal.SIGKILL)

    async def wait(self) -> int:
        """The status. Cancellation leaves the child alone. What is left of its process group is killed."""
        async with self._waiting:
            if self.status is None:
                await trio.lowlevel.wait_readable(self._handle)
                self.status = self._reap()
        return self.status

    def _reap(self) -> int:
        if self._group:  # before it is reaped: until then nobody else can have its number
            self.kill()
        _, status = os.waitpid(self.pid, 0)
        os.close(self._handle)
        return os.waitstatus_to_exitcode(status)

    async def kill_and_wait(self) -> int:
        """SIGKILL, then the status."""
        self.kill()
        return await self.wait()


def spawn(
    arguments: Sequence[str],
    inherited: Inherited,
    *,
    descriptors: Mapping[int, int] | None = None,
    environment: Mapping[str, str] | None = None,
    bound: bool = False,
) -> Child:
    """Start the program at the path `arguments[0]`. Call it on the main thread.

    `descriptors` is child's number -> ours. A `bound` child is sent SIGKILL when this process ends, however it ends, and
    has a process group of its own, so that its own children go with it.

    Raises:
        OSError: it cannot be executed; `filename` is the path.
    """
    failure_read, failure_write = os.pipe()
    parent = os.getpid()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = _fork()
        if not pid:
            _become(arguments, inherited, descriptors or {}, environment, parent if bound else 0, failure_write)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        os.close(failure_write)
    try:
        failure = os.read(failure_read, 32)
    finally:
        os.close(failure_read)
    if failure:
        os.waitpid(pid, 0)
        number = int(failure)
        raise OSError(number, os.strerror(number), arguments[0])
    return Child(pid, bound)


def _fork() -> int:
    # From Python 3.12 on it warns where there are other threads: ours hold no lock the child needs on its way to exec.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _become(
    arguments: Sequence[str],
    inherited: Inherited,
    descriptors: Mapping[int, int],
    environment: Mapping[str, str] | None,
    parent: int,
    failure: int,
) -> NoReturn:
    """In the child: never returns, and tells by errno on `failure` why it could not."""
    number = errno.ECHILD
    try:
        failure = fcntl.fcntl(failure, fcntl.F_DUPFD_CLOEXEC, _SAFE_FD)
        if parent:
            os.setpgid(0, 0)
            process.die_with_parent()
            if os.getppid() != parent:
                os._exit(1)
        moved = {target: fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, _SAFE_FD) for target, source in descriptors.items()}
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        for target, source in moved.items():
            os.dup2(source, target)
        _close_all_but({0, 1, 2, failure, *moved})
        process.restore_signals(inherited.ignored, inherited.mask)
        os.execve(arguments[0], list(arguments), os.environ if environment is None else environment)
    except OSError as error:
        number = error.errno or number
    finally:
        try:
            os.write(failure, str(number).encode())
        finally:
            os._exit(127)


def _close_all_but(kept: set[int]) -> None:
    """Also what our own caller left open for us by mistake."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:
            try:
                os.close(int(name))
            except OSError:  # the listing's own
                pass


def describe_status(status: int) -> str:
    """``exit status 1``, ``signal: killed``: as Go words it."""
    if status >= 0:
        return f"exit status {status}"
    return f"signal: {signal_text(-status)}"


def signal_text(number: int) -> str:
    """``killed``, ``terminated``."""
    return (signal.strsignal(number) or f"signal {number}").lower()
