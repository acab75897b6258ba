"""`sulla run` while CMD runs: signals passed on, the terminal handed back, daemons that ended started again.

One nursery: signals, messages of launcher and init, the daemons' logs, the restarts. The launcher's end ends it.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import subprocess
from collections import deque
from typing import Final

import trio

from sulla_trio.daemons.run import Processes, complain
from sulla_trio.link.process import SI_KERNEL, SignalDescriptor

FIRST_BACK_OFF: Final = 0.2
LAST_BACK_OFF: Final = 2.0
STEADY: Final = 10.0
"""Seconds of service after which the back-off begins anew."""
TERM_GRACE: Final = 10.0
"""Seconds between a SIGTERM passed on to CMD and its SIGKILL, as container engines have it."""
STOP_DELAY: Final = 0.5
"""Seconds between CMD's stop and ours: a Ctrl-Z stops both at once, and after it CMD is soon seen to have continued."""
OWN_END_GRACE: Final = 1.0
"""Seconds for host-switch to end by itself when its link has."""
HOST_SWITCH_GRACE: Final = 3.0
"""Seconds between SIGTERM and SIGKILL for it."""
LINK_LOST: Final = "link lost"
"""How vm-switch's last line begins when it was the other side that went."""
_LOG_LINES: Final = 16
_READ_SIZE: Final = 65_536
_MESSAGE: Final = re.compile(r'\bmsg=(?:"((?:[^"\\]|\\.)*)"|(\S+))')
_PASSED_ON: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT)


def supervise(processes: Processes) -> int:
    """Until CMD has ended; the exit status of `sulla run`."""
    terminal = _Terminal()
    signals = SignalDescriptor((signal.SIGINT, signal.SIGQUIT, *_PASSED_ON))
    try:
        return trio.run(_Supervisor(processes, signals).run)
    finally:
        terminal.take_back()
        signals.close()


class _Supervisor:
    def __init__(self, processes: Processes, signals: SignalDescriptor) -> None:
        self._processes = processes
        self._signals = signals
        self._running = False
        self._failure: str | None = None
        self._stop_scope = trio.CancelScope()
        self._ended_by = 0
        """The signal that ended us before CMD ran."""
        self._vm_lost = trio.Event()
        self._vm_status = 0
        self._lost_first = ""
        debug = processes.config.debug
        self._host_log = DaemonLog(debug)
        self._vm_log = DaemonLog(debug)

    async def run(self) -> int:
        processes = self._processes
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for task in (self._read_signals, self._read_control, self._read_init, self._keep_network):
                    nursery.start_soon(task)
                nursery.start_soon(self._vm_log.follow, processes.vm_log)
                status = await wait_process(processes.launcher)
                self._drain_control()
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await end_process(processes.launcher, signal.SIGKILL)
                # Its link has ended, so it is ending: a signal in the midst of that could cut its clean-up short.
                with trio.move_on_after(OWN_END_GRACE):
                    await wait_process(processes.host_switch)
                await end_process(processes.host_switch, signal.SIGTERM)
        if self._ended_by:
            return 128 + self._ended_by
        if self._failure is not None:
            reason = self._last_words() if self._failure.startswith("vm-switch") else ""
            complain(reason or self._failure)
            return 1
        return status if status >= 0 else 128 - status

    def _fail(self, reason: str) -> None:
        """Before CMD runs: nothing to wait for."""
        self._failure = self._failure or reason
        self._processes.launcher.kill()

    # signals

    async def _read_signals(self) -> None:
        while True:
            try:
                received = self._signals.read()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._signals.fileno())
                continue
            number = received.number
            self._drain_control()
            if not self._running:
                if number != signal.SIGCONT:
                    self._ended_by = number
                    self._processes.launcher.kill()
                continue
            if number in (signal.SIGINT, signal.SIGQUIT) and received.code == SI_KERNEL:
                continue  # the terminal's: CMD has it too, and decides
            self._send_to_command(number)
            if number == signal.SIGTERM or (number == signal.SIGHUP and received.code == SI_KERNEL):
                self._send_to_command(signal.SIGCONT)
                self._nursery.start_soon(self._kill_after_grace)

    def _send_to_command(self, number: int) -> None:
        try:
            self._processes.init.send(f"signal {number}".encode(), socket.MSG_DONTWAIT)
        except OSError:
            pass  # CMD has just ended

    async def _kill_after_grace(self) -> None:
        await trio.sleep(TERM_GRACE)
        self._processes.launcher.kill()

    # messages

    async def _read_control(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._processes.control)
            if not self._drain_control():
                return

    def _drain_control(self) -> bool:
        """Take the launcher's messages there are; False at end of stream."""
        while True:
            try:
                message = self._processes.control.recv(_READ_SIZE, socket.MSG_DONTWAIT).decode()
            except BlockingIOError:
                return True
            except ConnectionResetError:
                return False
            word, _, rest = message.partition(" ")
            if not word:
                return False
            if word == "running":
                self._running = True
            elif word == "failed":
                self._failure = self._failure or rest
            elif word == "lost":
                generation, status = map(int, rest.split())
                if generation == self._processes.generation:
                    self._vm_status = status
                    self._vm_lost.set()

    async def _read_init(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._processes.init)
            try:
                message = self._processes.init.recv(64, socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
            except ConnectionResetError:
                return
            if not message:
                return
            self._stop_scope.cancel()
            if message == b"stopped":
                self._stop_scope = trio.CancelScope()
                self._nursery.start_soon(self._stop_too, self._stop_scope)

    async def _stop_too(self, scope: trio.CancelScope) -> None:
        """CMD has stopped: so do we, that the shell which waits for us sees it."""
        with scope:
            await trio.sleep(STOP_DELAY)
            os.kill(os.getpid(), signal.SIGSTOP)

    # the network

    async def _keep_network(self) -> None:
        """Wait for one of the daemons to end; start both again on a fresh link."""
        processes = self._processes
        back_off = FIRST_BACK_OFF
        while True:
            started = trio.current_time()
            self._lost_first = ""
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._host_log.follow, processes.host_log)
                nursery.start_soon(self._wait_host_switch, nursery.cancel_scope)
                nursery.start_soon(self._wait_vm_switch, nursery.cancel_scope)
            reason = await self._explain_loss()
            if not self._running:
                self._fail(reason)
                return
            if trio.current_time() - started > STEADY:
                back_off = FIRST_BACK_OFF
            while True:
                complain(f"{reason}; starting the network again in {back_off:.1f} s")
                await trio.sleep(back_off)
                back_off = min(back_off * 2, LAST_BACK_OFF)
                self._vm_lost = trio.Event()
                try:
                    processes.restart_network()
                except OSError as error:
                    if error.errno in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN):
                        return  # the launcher is gone: the end
                    reason = f"cannot start the network: {error.strerror}"
                else:
                    break

    async def _wait_host_switch(self, scope: trio.CancelScope) -> None:
        await wait_process(self._processes.host_switch)
        self._lost_first = self._lost_first or "host-switch"
        scope.cancel()

    async def _wait_vm_switch(self, scope: trio.CancelScope) -> None:
        await self._vm_lost.wait()
        self._lost_first = self._lost_first or "vm-switch"
        scope.cancel()

    async def _explain_loss(self) -> str:
        """End what is left of the pair; why there is no network any more."""
        host_switch = self._processes.host_switch
        with trio.move_on_after(OWN_END_GRACE):
            await wait_process(host_switch)
        await end_process(host_switch, signal.SIGTERM)
        return self._last_words()

    def _last_words(self) -> str:
        """Which of the two daemons ended first, and what it said last. Both have ended, each takes the other with it."""
        processes = self._processes
        self._host_log.read(processes.host_log)
        self._vm_log.read(processes.vm_log)
        host_status = processes.host_switch.returncode
        if self._lost_first == "host-switch" or self._vm_log.last.startswith(LINK_LOST):
            name, status, last = "host-switch", host_status, self._host_log.last
        else:
            name, status, last = "vm-switch", self._vm_status, self._vm_log.last
        return f"{name} ended with status {status}" + (f": {last}" if last else "")


class DaemonLog:
    """What a daemon writes: the last lines are kept, all of it is passed to stderr when debugging."""

    def __init__(self, pass_through: bool) -> None:
        self._pass_through = pass_through
        self._lines: deque[str] = deque(maxlen=_LOG_LINES)

    @property
    def last(self) -> str:
        """The text of the last line: of a log line its message."""
        return message_of(self._lines[-1]) if self._lines else ""

    def read(self, descriptor: int) -> bool:
        """Take what is there now; False at end of file."""
        while True:
            try:
                data = os.read(descriptor, _READ_SIZE)
            except BlockingIOError:
                return True
            if not data:
                return False
            if self._pass_through:
                os.write(2, data)
            self._lines.extend(line for line in data.decode("utf-8", "replace").splitlines() if line.strip())

    async def follow(self, descriptor: int) -> None:
        """`read` for as long as there is a writer."""
        while self.read(descriptor):
            await trio.lowlevel.wait_readable(descriptor)


def message_of(line: str) -> str:
    """The message of a daemon's log line; a line of another kind as it is."""
    match = _MESSAGE.search(line)
    if not match:
        return line
    return match[2] or re.sub(r"\\(.)", r"\1", match[1])


async def wait_process(child: subprocess.Popen[bytes]) -> int:
    """The exit status (negative: a signal). Cancellation leaves the process alone.

    (trio's own `Process` spawns in a worker thread, with whose end PR_SET_PDEATHSIG would strike.)
    """
    if child.poll() is None:
        handle = os.pidfd_open(child.pid)
        try:
            await trio.lowlevel.wait_readable(handle)
        finally:
            trio.lowlevel.notify_closing(handle)
            os.close(handle)
    return child.wait()


async def end_process(child: subprocess.Popen[bytes], number: int) -> None:
    """Send `number` and wait; SIGKILL when that has not helped in time."""
    if child.poll() is not None:
        return
    child.send_signal(number)
    with trio.move_on_after(HOST_SWITCH_GRACE):
        await wait_process(child)
        return
    child.kill()
    await wait_process(child)


class _Terminal:
    """The controlling terminal, where we are in its foreground at the start."""

    def __init__(self) -> None:
        self._was_ours = False
        try:
            descriptor = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return
        try:
            self._was_ours = os.tcgetpgrp(descriptor) == os.getpgrp()
        except OSError:
            pass
        finally:
            os.close(descriptor)

    def take_back(self) -> None:
        """Into the foreground again, where a shell that CMD was has left a process group that no longer exists."""
        if not self._was_ours:
            return
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTTOU,))
        try:
            descriptor = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
            try:
                if not _group_lives(os.tcgetpgrp(descriptor)):
                    os.tcsetpgrp(descriptor, os.getpgrp())
            finally:
                os.close(descriptor)
        except OSError:
            pass  # hung up
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
