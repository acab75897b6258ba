"""vm-switch as network-setup's child: how it is started, what it says, what is known of its end.

Ours speaks on the control descriptor (`sulla_trio.link.control`) and takes a new link there. The Go one says nothing and does
not end on a lost link: after `SILENCE` of it our duplicate of the connection is watched, and vm-switch killed when the host
hangs up. Source: specs/daemons.md sections 2.2, 3.4 and 4.3; DESIGN section 6, "Re-attach".
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import stat
import time
from dataclasses import dataclass
from typing import Final

import trio

from sulla_trio.config import DEFAULT_SUBNET, GUEST_MAC, TAP_NAME, format_mac
from sulla_trio.daemons.run_supervise import message_of
from sulla_trio.errors import BadPacket, ConfigError
from sulla_trio.link import control
from sulla_trio.link.child import Child, Inherited, describe_status, spawn
from sulla_trio.link.endpoint import Endpoint

log = logging.getLogger(__name__)

NSENTER: Final = "/usr/bin/nsenter"
LINK_FD: Final = 3  # the number the Go vm-switch expects
CONTROL_FD: Final = 4
SILENCE: Final = 5.0
"""Seconds of life without a word after which a vm-switch is taken for a Go one that works: ours speaks in less than one."""
DEFAULT_LOG: Final = "/var/log/vm-switch.log"  # vm-switch's own
_TAIL: Final = 4096
"""Bytes of its log that are looked at for its last words."""


@dataclass(frozen=True, slots=True)
class VmSwitchCommand:
    """What is passed on to vm-switch."""

    path: str
    tap_interface: str = TAP_NAME
    subnet: str = DEFAULT_SUBNET
    tap_mac: str = format_mac(GUEST_MAC)
    dhcp_script: str = ""
    logfile: str = ""
    logfile_append: bool = False
    debug: bool = False
    trace_packets: bool = False

    def arguments(self) -> list[str]:
        """Its argv, in the Go daemon's order."""
        line = [self.path, "-tap-interface", self.tap_interface, "-subnet", self.subnet]
        line += ["-tap-mac-address", self.tap_mac, "-dhcp-script", self.dhcp_script]
        if self.logfile:
            line += ["-logfile", self.logfile]
        if self.logfile_append:
            line.append("-logfile-append")
        if self.debug:
            line.append("-debug")
        if self.trace_packets:
            line.append("-trace-packets")
        return line


class VmSwitch:
    """One vm-switch process. `start` makes it, `run` is its life; whoever started it calls `close` at the end."""

    def __init__(self, child: Child, channel: socket.socket, link: Endpoint, logfile: str) -> None:
        self._child = child
        self._channel = channel
        self._link: Endpoint | None = link
        """Our duplicate of the connection, until vm-switch has said a word: a host sees the end of the last one."""
        self._logfile = logfile
        self._started = time.time()
        self._steady = False
        self._silent = trio.CancelScope()
        self.lost = trio.Event()
        """Set when it has lost its link and waits for another; `attach` renews it."""

    @classmethod
    def start(cls, command: VmSwitchCommand, link: Endpoint, namespace: int, inherited: Inherited) -> VmSwitch:
        """Start it in the network namespace behind descriptor `namespace`, with `link` as its descriptor 3.

        Takes `link` over, and closes it when this fails. Call it on the main thread.

        Raises:
            ConfigError: it cannot be started.
        """
        # The path of our descriptor, not of an inherited one: that would stay open in vm-switch.
        line = [NSENTER, f"--net=/proc/{os.getpid()}/fd/{namespace}", "-F", *command.arguments()]
        with contextlib.ExitStack() as failed:
            failed.callback(link.close)
            try:
                # A Go vm-switch reads and writes in blocking mode, which belongs to the connection and not to a descriptor.
                os.set_blocking(link.fileno(), True)
                ours, theirs = control.socket_pair()
                failed.enter_context(ours)
                with theirs:
                    child = spawn(
                        line,
                        inherited,
                        descriptors={LINK_FD: link.fileno(), CONTROL_FD: theirs.fileno()},
                        environment={**os.environ, control.CONTROL_VARIABLE: str(CONTROL_FD)},
                        bound=True,
                    )
            except OSError as error:
                text = (error.strerror or str(error)).lower()
                raise ConfigError(f"starting vm-switch failed: {error.filename or line[0]}: {text}") from None
            failed.pop_all()
        log.info("started vm-switch with PID %d", child.pid)
        return cls(child, ours, link, command.logfile or DEFAULT_LOG)

    @property
    def has_served(self) -> bool:
        """Whether it ever carried frames, as far as one can know."""
        return self._steady

    async def run(self) -> int:
        """Until it has ended; the status (negative: a signal)."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen)
            nursery.start_soon(self._watch_silent)
            status = await self._child.wait()
            self._read()  # what it said last
            nursery.cancel_scope.cancel()
        return status

    def attach(self, link: Endpoint) -> None:
        """Give it a new link, which is closed here."""
        self.lost = trio.Event()
        try:
            control.send_link(self._channel, link.fileno())
        except OSError as error:  # it is ending, which `run` sees
            log.debug("vm-switch does not take the link: %s", error.strerror)
        finally:
            link.close()

    def kill(self) -> None:
        """SIGKILL: a Go vm-switch looks at no other signal."""
        self._child.kill()

    async def close(self) -> None:
        """SIGKILL, and wait; then drop what connects us to it."""
        try:
            await self._child.kill_and_wait()
        finally:
            self._drop_duplicate()
            trio.lowlevel.notify_closing(self._channel)
            self._channel.close()

    async def _listen(self) -> None:
        while self._read():
            await trio.lowlevel.wait_readable(self._channel)

    def _read(self) -> bool:
        """Take the messages that are there; False when it has closed its end."""
        while True:
            try:
                message = control.receive(self._channel)
            except BlockingIOError:
                return True
            except BadPacket as error:
                log.warning("vm-switch sent what is no message: %s", error.reason)
                continue
            if message is None:
                return False
            self._obey(message)

    def _obey(self, message: control.Message) -> None:
        self._silent.cancel()
        self._drop_duplicate()
        if message.word == control.UP:
            self._steady = True
            log.debug("vm-switch carries frames")
        elif message.word == control.LOST:
            log.warning("data connection lost: %s; waiting for the next handshake", message.text)
            self.lost.set()
        elif message.fd is not None:
            os.close(message.fd)

    def _drop_duplicate(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    async def _watch_silent(self) -> None:
        with self._silent:
            await trio.sleep(SILENCE)
            assert self._link is not None
            self._steady = True
            log.debug("vm-switch says nothing; watching its connection")
            with select.epoll() as hang_up:
                # The peer's end alone: what there is to read is vm-switch's.
                hang_up.register(self._link.fileno(), select.EPOLLRDHUP)
                try:
                    await trio.lowlevel.wait_readable(hang_up.fileno())
                finally:
                    trio.lowlevel.notify_closing(hang_up.fileno())
            log.warning("data connection lost: closed by the host; ending vm-switch")
            self._drop_duplicate()
            self.kill()

    def explain(self, status: int) -> str:
        """Its end in words: the status as Go words it, and the last error in its log."""
        words = self._last_words()
        return f"vm-switch exited with error: {describe_status(status)}{words and ': ' + words}"

    def _last_words(self) -> str:
        """The last error in its log, if the log is a file that it has written to."""
        try:
            descriptor = os.open(self._logfile, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return ""
        try:
            found = os.fstat(descriptor)
            # A file's time has the grain of the kernel's tick.
            if not stat.S_ISREG(found.st_mode) or found.st_mtime < self._started - 0.01:
                return ""
            os.lseek(descriptor, max(0, found.st_size - _TAIL), os.SEEK_SET)
            lines = os.read(descriptor, _TAIL).decode("utf-8", "replace").splitlines()
            # With -debug the reason is not the last line: its traceback follows.
            told = [line for line in lines if "level=fatal" in line or "level=error" in line]
            return message_of(told[-1]) if told else ""
        finally:
            os.close(descriptor)
