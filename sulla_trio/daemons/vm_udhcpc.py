"""``-dhcp-script``: busybox's udhcpc keeps the lease and its script applies it; our part is that it runs.

It is told of a new link by SIGUSR1 (renew), started again when it fails, and dies with us, however we end. Its frames pass
through the tap like all others. Source: specs/daemons.md section 3.4; udhcpc --help.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from collections.abc import Callable
from typing import Final

import trio

from sulla_trio.daemons.run_supervise import wait_process
from sulla_trio.errors import ConfigError
from sulla_trio.link import process
from sulla_trio.link.control import CONTROL_VARIABLE

log = logging.getLogger(__name__)

PROGRAM: Final = "udhcpc"
FIRST_BACK_OFF: Final = 1.0
LAST_BACK_OFF: Final = 30.0
STEADY: Final = 60.0
"""Seconds of service after which the back-off begins anew."""


class Udhcpc:
    """``udhcpc -f -i interface -s script``, looked up in PATH, with our environment, stdout and stderr.

    `has_address` says whether the interface has one: an udhcpc without a lease is started again when a link has come, for
    it sleeps for 20 s between two attempts.
    """

    def __init__(self, interface: str, script: str, has_address: Callable[[str], bool]) -> None:
        self._interface = interface
        self._script = script
        self._has_address = has_address
        self._child: subprocess.Popen[bytes] | None = None
        self._renewing = False
        self._hurry = trio.Event()
        """A new link: no back-off any longer."""

    def start(self) -> None:
        """Spawn it; on the main thread, with whose end the kernel kills it.

        Raises:
            ConfigError: it or the script cannot be executed. (Without its script udhcpc would go on, and nobody set the
                address.)
        """
        if not os.path.isfile(self._script) or not os.access(self._script, os.X_OK):
            raise ConfigError(f"-dhcp-script {self._script} is not an executable file")
        command = (PROGRAM, "-f", "-i", self._interface, "-s", self._script)
        environment = {name: value for name, value in os.environ.items() if name != CONTROL_VARIABLE}
        try:
            self._child = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, preexec_fn=_prepare_child
            )
        except OSError as error:
            reason = (
                "not found in PATH" if isinstance(error, FileNotFoundError) else (error.strerror or str(error)).lower()
            )
            raise ConfigError(f"{PROGRAM} cannot be started: {reason}") from None
        log.info("started %s, pid %d", " ".join(command), self._child.pid)

    def reconfirm(self) -> None:
        """The link is a new one: have the lease confirmed there."""
        self._hurry.set()
        child = self._child
        if child is None or child.poll() is not None:
            return
        if self._has_address(self._interface):
            child.send_signal(signal.SIGUSR1)
        else:
            self._renewing = True
            child.kill()

    async def run(self) -> None:
        """Until cancelled, or until it ends with status 0; it is dead afterwards."""
        back_off = FIRST_BACK_OFF
        try:
            while True:
                began = trio.current_time()
                if self._child is None:
                    self._start_again()
                status = await self._wait()
                if status == 0:
                    log.info("%s ended with status 0: the lease is its script's from now on", PROGRAM)
                    return
                if self._renewing:
                    self._renewing = False
                    continue
                if trio.current_time() - began > STEADY:
                    back_off = FIRST_BACK_OFF
                log.error("dhcp error: %s; starting it again in %.0f s", describe(status), back_off)
                self._hurry = trio.Event()
                with trio.move_on_after(back_off):
                    await self._hurry.wait()
                back_off = min(back_off * 2, LAST_BACK_OFF)
        finally:
            self.stop()

    def _start_again(self) -> None:
        try:
            self.start()
        except ConfigError as error:
            log.error("dhcp error: %s", error)

    async def _wait(self) -> int:
        """The status of the child, which is none afterwards; 127 when there was none."""
        child = self._child
        if child is None:
            return 127
        status = await wait_process(child)
        self._child = None
        return status

    def stop(self) -> None:
        """Kill it and wait for that: a millisecond."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()


def _prepare_child() -> None:
    process.die_with_parent()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def describe(status: int) -> str:
    """An exit status as Go has it: ``exit status 1``, ``signal: killed``."""
    if status >= 0:
        return f"{PROGRAM}: exit status {status}"
    try:
        return f"{PROGRAM}: signal: {(signal.strsignal(-status) or str(-status)).lower()}"
    except ValueError:
        return f"{PROGRAM}: signal: {-status}"
