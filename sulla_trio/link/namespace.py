"""A network namespace as a descriptor, and work inside it, for a process that runs trio.

Neither trio's thread nor one of its pool may enter a namespace: their children and later work would stay in it. So each job
gets a `threading.Thread` of its own, which enters, never spawns, and ends; the process stays where it is. (`os.setns` exists
from Python 3.12 on.) Source: network_namespaces(7), setns(2); DESIGN section 6, "Namespaces".
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, TypeVar

import trio

from sulla_trio.link.netns import CLONE_NEWNET, unshare
from sulla_trio.link.process import libc_call

T = TypeVar("T")

THREAD_NAMESPACE: Final = "/proc/thread-self/ns/net"
FORWARDING: Final = "/proc/sys/net/ipv4/ip_forward"
_LOOK_AGAIN: Final = 0.01
"""Seconds between two looks at what a SIGKILL has left."""


async def make_namespace() -> int:
    """Descriptor (close-on-exec) of a new network namespace; the last holder's end is the namespace's.

    Not cancelled once begun: it takes milliseconds. Raises OSError.
    """

    def make() -> int:
        unshare(CLONE_NEWNET)
        return os.open(THREAD_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)

    return await _in_new_thread(make)


async def run_inside(namespace: int, function: Callable[[], T]) -> T:
    """Result of `function`, run in a thread that is inside the network namespace `namespace` and ends with it.

    Not cancelled once begun. Raises OSError, and what `function` does.
    """

    def enter() -> T:
        libc_call("setns", ctypes.c_int(namespace), ctypes.c_int(CLONE_NEWNET))
        return function()

    return await _in_new_thread(enter)


def open_namespace_of(pid: int) -> int:
    """Descriptor (close-on-exec) of the network namespace that process `pid` is in. Raises OSError."""
    return os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def enable_forwarding() -> None:
    """IPv4 packets pass from interface to interface in the calling thread's network namespace. Raises OSError."""
    with open(FORWARDING, "w") as file:
        file.write("1\n")


def members(namespace: int) -> list[int]:
    """The processes in `namespace` by their main threads, except this one; a zombie is in none."""
    wanted = os.fstat(namespace)
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdecimal() or int(entry) == os.getpid():
            continue
        try:
            seen = os.stat(f"/proc/{entry}/ns/net")
        except OSError:  # it has ended
            continue
        if (seen.st_dev, seen.st_ino) == (wanted.st_dev, wanted.st_ino):
            found.append(int(entry))
    return found


async def kill_members(namespace: int) -> None:
    """SIGKILL for every process in `namespace`, again until there is none: one may be forking. Bound it by a cancel scope.

    The end of a pid namespace's PID 1 is the end of all in it, whatever namespaces they have made for themselves.
    """
    while pids := members(namespace):
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        await trio.sleep(_LOOK_AGAIN)


async def _in_new_thread(function: Callable[[], T]) -> T:
    result: Future[T] = Future()
    done = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def work() -> None:
        try:
            result.set_result(function())
        except BaseException as error:
            result.set_exception(error)
        token.run_sync_soon(done.set)

    threading.Thread(target=work, name="namespace", daemon=True).start()
    with trio.CancelScope(shield=True):
        await done.wait()
    return result.result()
