"""A process among its relatives: prctl, signalfd, dispositions, limits. By ctypes: it costs a launcher no time to import.

Source: prctl(2), signalfd(2), PR_SET_PDEATHSIG(2const).
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

PR_SET_PDEATHSIG: Final = 1
PR_SET_NAME: Final = 15
PR_SET_CHILD_SUBREAPER: Final = 36
SFD_NONBLOCK: Final = os.O_NONBLOCK
SFD_CLOEXEC: Final = os.O_CLOEXEC
SI_KERNEL: Final = 0x80
"""`code` of a signal that the kernel itself sent: the terminal's Ctrl-C, and its hang-up."""

_SIGNALFD_RECORD: Final = struct.Struct("=IiiI112x")
_SIGSET_BYTES: Final = 128  # glibc's sigset_t; the kernel reads the first 8 bytes
_SET_BY_PYTHON: Final = frozenset({signal.SIGPIPE, signal.SIGXFSZ})
"""Ignored by the interpreter itself: says nothing about the caller."""


def libc_call(name: str, *arguments: object) -> int:
    """Call a libc function that returns -1 on failure.

    Raises:
        OSError: with the function's name as `filename`.
    """
    result: int = getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    return result


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Have `number` sent to this process when the *thread* that made it ends: spawn from the main thread.

    Raises:
        OSError: the kernel refuses.
    """
    libc_call("prctl", PR_SET_PDEATHSIG, ctypes.c_ulong(number))


def adopt_orphans() -> None:
    """Orphaned descendants become children of this process instead of init's. Raises OSError."""
    libc_call("prctl", PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1))


def set_process_name(name: str) -> None:
    """The name that ps, pgrep and top show for this process (15 bytes); call it on the main thread."""
    libc_call("prctl", PR_SET_NAME, ctypes.c_char_p(name.encode()[:15]))


def raise_descriptor_limit() -> int:
    """Soft NOFILE to hard (DESIGN law 6); returns it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def ignored_signals() -> frozenset[signal.Signals]:
    """Signals that this process was started with ignored (by nohup, by a shell's ``&``); call it before any `signal()`."""
    return frozenset(
        number for number in signal.valid_signals() if isinstance(number, signal.Signals)
        and signal.getsignal(number) is signal.SIG_IGN and number not in _SET_BY_PYTHON
    )  # fmt: skip


def restore_signals(ignored: Iterable[int], mask: Iterable[int]) -> None:
    """Before an exec: the dispositions and the mask that the caller gave us."""
    keep = frozenset(ignored)
    for number in signal.valid_signals():
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_IGN if number in keep else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class SignalReceived(NamedTuple):
    """One signal: its number, who sent it (0: nobody visible), and how (`SI_KERNEL`, 0 for kill)."""

    number: int
    code: int
    sender: int


class SignalDescriptor:
    """signalfd: blocked signals as records to read, with what a handler does not get to know, their origin.

    Blocks `numbers` in the calling thread; `close` unblocks them.
    """

    def __init__(self, numbers: Iterable[int]) -> None:
        self._numbers = tuple(numbers)
        self.inherited_mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._numbers)
        bits = sum(1 << (number - 1) for number in self._numbers)
        self._mask = ctypes.create_string_buffer(bits.to_bytes(8, "little"), _SIGSET_BYTES)
        self._descriptor = libc_call("signalfd", -1, self._mask, SFD_NONBLOCK | SFD_CLOEXEC)

    def fileno(self) -> int:
        return self._descriptor

    def read(self) -> SignalReceived:
        """The next signal. Raises BlockingIOError when there is none."""
        number, _, code, sender = _SIGNALFD_RECORD.unpack(os.read(self._descriptor, _SIGNALFD_RECORD.size))
        return SignalReceived(number, code, sender)

    def close(self) -> None:
        os.close(self._descriptor)
        signal.pthread_sigmask(signal.SIG_SETMASK, self.inherited_mask)
