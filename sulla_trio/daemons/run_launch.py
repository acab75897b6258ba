"""The launcher of `sulla run`: a small process without trio that makes the guest's namespaces and what lives in them.

It is a child of `sulla run` and dies with it, and all of the guest dies with the launcher. In order: user, network and
mount namespace; name service; vm-switch, outside CMD's pid namespace; then, when vm-switch has a lease, the init of
`run_init`. It ends with CMD's exit status. Imports are what an interpreter has at hand: CMD waits for this start-up.

With `sulla run` it speaks over a SOCK_SEQPACKET socket, one text per message:
  to it    ``running`` · ``failed TEXT`` · ``lost GENERATION STATUS`` (vm-switch ended)
  from it  ``link GENERATION`` with a connected socket (SCM_RIGHTS): a new vm-switch is to serve it
"""

from __future__ import annotations

import array
import fcntl
import os
import select
import signal
import socket
import sys
import time
from typing import Final, NamedTuple, NoReturn

from sulla_trio.daemons import run_init
from sulla_trio.errors import ConfigError
from sulla_trio.link import mounts, netns, process

READY_TIMEOUT: Final = 15.0
"""Seconds for vm-switch to start and get its lease: 0.4 on an idle machine."""
LINK_FD: Final = 3  # the number the Go vm-switch expects
READY_FD: Final = 4
_SAFE_FD: Final = 10
"""Our descriptors live from here on, so that a dup2 to the two numbers above hits none of them."""
TERMINAL_SIGNALS: Final = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_IGNORED: Final = (
    signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, *TERMINAL_SIGNALS
)  # fmt: skip


class Plan(NamedTuple):
    """What to do. It travels in a file without a name: a command line would show CMD's words as the launcher's own."""

    parent: int
    control: int
    init: int
    link: int
    log: int
    """Where vm-switch's stderr goes."""
    root: bool
    nameserver: str
    vm_switch: tuple[str, ...]
    command: tuple[str, ...]

    def store(self) -> int:
        """Descriptor of a memory file that `load` reads."""
        numbers = (self.parent, self.control, self.init, self.link, self.log, int(self.root), len(self.vm_switch))
        texts = [*map(str, numbers), self.nameserver, *self.vm_switch, *self.command]
        descriptor = os.memfd_create("plan")
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(b"\0".join(map(os.fsencode, texts)))
        os.lseek(descriptor, 0, os.SEEK_SET)
        return descriptor

    @classmethod
    def load(cls, descriptor: int) -> Plan:
        """Read and close what `store` made."""
        with os.fdopen(descriptor, "rb") as file:
            texts = [os.fsdecode(text) for text in file.read().split(b"\0")]
        parent, control, init, link, log, root, length = map(int, texts[:7])
        split = 8 + length
        vm_switch, command = tuple(texts[8:split]), tuple(texts[split:])
        return cls(parent, control, init, link, log, bool(root), texts[7], vm_switch, command)


class _Launcher:
    def __init__(self, plan: Plan) -> None:
        self._control = socket.socket(fileno=_move_up(plan.control))
        self._init = _move_up(plan.init)
        self._log = _move_up(plan.log)
        self._plan = plan
        self._vm_switch = 0
        self._vm_switch_handle = -1
        self._generation = 1

    def run(self, ignored: frozenset[signal.Signals], mask: set[int]) -> int:
        uid, gid = os.getuid(), os.getgid()
        try:
            netns.enter_guest_namespaces()
            # What the kernel clears when credentials change.
            process.die_with_parent()
            if os.getppid() != self._plan.parent:
                return 1
            netns.set_network_sysctls()
            try:
                mounts.set_up_name_service(self._plan.nameserver)
            except OSError as error:
                where = f" on {error.filename}" if error.filename else ""
                raise ConfigError(f"private mounts for the name service failed{where}: {error.strerror}") from None
            self._start_vm_switch(_move_up(self._plan.link), wait=True)
            identity = None if self._plan.root or not uid else (uid, gid)
            guest = run_init.Guest(self._plan.command, identity, frozenset(ignored), frozenset(mask))
            init = _start_init(self._init, guest)
        except ConfigError as error:
            self._tell(f"failed {error}")
            return 1
        os.close(self._init)
        run_init.let_go_of_standard_streams()
        self._tell("running")
        return self._watch(init)

    def _tell(self, message: str) -> None:
        try:
            self._control.send(message.encode("utf-8", "replace"))
        except OSError:
            pass  # sulla run is gone: so are we, at once

    def _start_vm_switch(self, link: int, *, wait: bool = False) -> None:
        """Spawn vm-switch on `link`, which is closed here. With `wait`, return when it has a lease."""
        ready_read, ready_write = os.pipe()
        ready_write = _move_up(ready_write)
        pid = os.fork()
        if not pid:
            self._become_vm_switch(link, ready_write)
        os.close(link)
        os.close(ready_write)
        self._vm_switch = pid
        self._vm_switch_handle = os.pidfd_open(pid)
        try:
            if wait:
                self._wait_ready(ready_read)
        finally:
            os.close(ready_read)

    def _become_vm_switch(self, link: int, ready: int) -> NoReturn:
        try:
            os.setsid()
            process.die_with_parent()
            if os.getppid() == 1:
                os._exit(1)
            os.dup2(os.open(os.devnull, os.O_RDWR), 0)
            os.dup2(self._log, 1)
            os.dup2(self._log, 2)
            os.dup2(link, LINK_FD)
            os.dup2(ready, READY_FD)
            process.restore_signals((), ())
            os.execv(self._plan.vm_switch[0], self._plan.vm_switch)
        except BaseException as error:
            os.write(2, f"vm-switch: {error}\n".encode())
        os._exit(1)

    def _wait_ready(self, ready: int) -> None:
        """Until the first lease is in place.

        Raises:
            ConfigError: vm-switch ended, or has no lease within READY_TIMEOUT.
        """
        poll = select.poll()
        poll.register(ready, select.POLLIN)
        deadline = time.monotonic() + READY_TIMEOUT
        while (left := deadline - time.monotonic()) > 0:
            if poll.poll(left * 1000):
                if os.read(ready, 64):
                    return
                _, status = os.waitpid(self._vm_switch, 0)
                raise ConfigError(
                    f"vm-switch ended with status {os.waitstatus_to_exitcode(status)} before it had a lease"
                )
        raise ConfigError(f"the network did not come up within {READY_TIMEOUT:.0f} s")

    def _watch(self, init: int) -> int:
        """Until init ends; its status."""
        init_handle = os.pidfd_open(init)
        poll = select.poll()
        poll.register(init_handle, select.POLLIN)
        poll.register(self._control, select.POLLIN)
        poll.register(self._vm_switch_handle, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if init_handle in ready:
                _, status = os.waitpid(init, 0)
                # Waited for, so that the tap is gone when `sulla run` is.
                self._end_vm_switch()
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
            if self._control.fileno() in ready:
                self._replace_vm_switch(poll)
            elif self._vm_switch_handle in ready:
                poll.unregister(self._vm_switch_handle)
                status = self._reap_vm_switch()
                self._tell(f"lost {self._generation} {status}")

    def _replace_vm_switch(self, poll: select.poll) -> None:
        rights_size = socket.CMSG_SPACE(array.array("i").itemsize)
        message, ancillary, _, _ = self._control.recvmsg(64, rights_size, socket.MSG_CMSG_CLOEXEC)
        if not message:
            os._exit(1)  # sulla run is gone
        descriptors = array.array("i")
        descriptors.frombytes(ancillary[0][2])
        if self._vm_switch:
            poll.unregister(self._vm_switch_handle)
        self._end_vm_switch()
        self._generation = int(message.split()[1])
        self._start_vm_switch(_move_up(descriptors[0]))
        poll.register(self._vm_switch_handle, select.POLLIN)

    def _end_vm_switch(self) -> None:
        if self._vm_switch:
            os.kill(self._vm_switch, signal.SIGKILL)
            self._reap_vm_switch()

    def _reap_vm_switch(self) -> int:
        _, status = os.waitpid(self._vm_switch, 0)
        os.close(self._vm_switch_handle)
        self._vm_switch = 0
        return os.waitstatus_to_exitcode(status)


def _move_up(descriptor: int) -> int:
    """The same open file under a number of at least _SAFE_FD, close-on-exec."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _SAFE_FD)
    os.close(descriptor)
    return moved


def _start_init(connection: int, guest: run_init.Guest) -> int:
    """Fork the init as PID 1 of a new pid namespace; its pid as seen from here.

    unshare(CLONE_NEWPID) is for good: later children of the same process would be born in there too. So a process in
    between does it and ends, and init becomes our child as the nearest subreaper.

    Raises:
        ConfigError: the kernel forbids it.
    """
    process.adopt_orphans()
    pid_read, pid_write = os.pipe()
    go_read, go_write = os.pipe()
    between = os.fork()
    if not between:
        try:
            netns.unshare(netns.CLONE_NEWPID)
            init = os.fork()
            if not init:
                os.close(go_write)
                os.close(pid_write)
                run_init.main(connection, go_read, guest)
            os.write(pid_write, str(init).encode())
        except OSError as error:
            os.write(pid_write, f"! {netns.explain_refusal(error)}".encode())
        finally:
            os._exit(0)
    os.close(pid_write)
    os.close(go_read)
    os.waitpid(between, 0)
    text = os.read(pid_read, 4096).decode()
    os.close(pid_read)
    if not text.isdecimal():
        raise ConfigError(text.removeprefix("! ") or "init could not be started")
    # Only now is init our child: its death signal, were it set before, would have come from the process in between.
    os.write(go_write, b"x")
    os.close(go_write)
    return int(text)


def main() -> int:
    """The process's whole life; its exit status is CMD's."""
    plan = Plan.load(int(sys.argv[1]))
    process.die_with_parent()
    process.set_process_name("sulla-launch")
    if os.getppid() != plan.parent:
        return 1
    ignored = process.ignored_signals()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    # What a terminal or `kill -- -GROUP` sends to the whole job: sulla run decides, CMD gets its own.
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    return _Launcher(plan).run(ignored, mask)


if __name__ == "__main__":
    # No interpreter shutdown: CMD's status is not to wait for it.
    os._exit(main())
