"""The last way of an echo to the outside: the system's `ping` program, which may do what this process may not.

One process per echo with the guest's size, TTL and DF bit. The outside returns bytes of the program's own making, so the guest
gets its payload back unread, but only when the program has seen a reply; its start adds some milliseconds to the round trip.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from typing import Final

import trio

from sulla_trio.config import format_ip, parse_ip
from sulla_trio.forward.datagram_socket import DEFAULT_TTL, LINUX, OWN_TTL, HostError
from sulla_trio.forward.echo_path import Echo, EchoAnswer
from sulla_trio.wire import icmp

MAX_PROCESSES: Final = 16
"""At one time; more echoes are dropped, as on a busy line. Each is a process of some megabytes for a round trip."""
WAIT: Final = 5
"""Seconds until the program gives up; and one more until it is ended."""
SEARCH_PATH: Final = "/usr/bin:/bin:/usr/sbin:/sbin"
_REPLY: Final = re.compile(r"^\d+ bytes from (\d+\.\d+\.\d+\.\d+): icmp_seq=1(?: ttl=(\d+))?", re.MULTILINE)
_ERROR: Final = re.compile(r"^From (\d+\.\d+\.\d+\.\d+):? icmp_seq=1 (.*)$", re.MULTILINE)
_TOO_LONG: Final = re.compile(r"message too long, mtu[=:] ?(\d+)")
_FRAG_NEEDED: Final = re.compile(r"^Frag needed and DF set \(mtu = (\d+)\)")
_TEXTS: Final = {
    "Time to live exceeded": (icmp.TIME_EXCEEDED, 0),
    "Destination Net Unreachable": (icmp.UNREACHABLE, icmp.UNREACHABLE_NET),
    "Destination Host Unreachable": (icmp.UNREACHABLE, icmp.UNREACHABLE_HOST),
    "Destination Protocol Unreachable": (icmp.UNREACHABLE, icmp.UNREACHABLE_PROTOCOL),
    "Destination Port Unreachable": (icmp.UNREACHABLE, icmp.UNREACHABLE_PORT),
    "Packet filtered": (icmp.UNREACHABLE, icmp.UNREACHABLE_ADMIN),
}
"""What iputils calls the errors (its ping_common.c), in the C locale."""
_NOT_ALLOWED: Final = ("Operation not permitted", "Permission denied", "Lacking privilege", "missing cap_net_raw")


class PingPrograms:
    """Opens paths by the system's `ping`, all of them under one bound of processes."""

    def __init__(self, program: str | None = None) -> None:
        self._program = program
        self._slots = trio.Semaphore(MAX_PROCESSES)
        self.refused = False
        """The program was seen not to be allowed either."""

    def open(self) -> PingProgram:
        """Raises OSError (ENOENT, EACCES): there is no such program, or it may not ping."""
        # Its options are those of iputils; other systems' letters mean other things.
        program = self._program or (shutil.which("ping", path=SEARCH_PATH) if LINUX else None)
        if program is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "ping")
        if self.refused:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), program)
        return PingProgram(self, program, self._slots)


class PingProgram:
    """An `EchoPath` that runs `program` for each echo."""

    def __init__(self, owner: PingPrograms, program: str, slots: trio.Semaphore) -> None:
        self._owner = owner
        self._program = program
        self._slots = slots
        self._send, self._receive = trio.open_memory_channel[Echo](MAX_PROCESSES)

    def send(self, echo: Echo) -> None:
        try:
            if not self._slots.value:
                raise trio.WouldBlock
            self._send.send_nowait(echo)
        except trio.WouldBlock:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None

    async def run(self, answered: Callable[[EchoAnswer], None]) -> None:
        async with trio.open_nursery() as nursery:
            async for echo in self._receive:
                nursery.start_soon(self._ping, echo, answered, nursery.cancel_scope)
        if self._owner.refused:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), self._program)

    async def _ping(self, echo: Echo, answered: Callable[[EchoAnswer], None], scope: trio.CancelScope) -> None:
        async with self._slots:
            try:
                with trio.move_on_after(WAIT + 1):
                    done = await trio.run_process(
                        arguments(self._program, echo),
                        stdin=subprocess.DEVNULL,
                        capture_stdout=True,
                        capture_stderr=True,
                        check=False,
                        env={"LC_ALL": "C"},
                    )
                    answer = interpret(echo, done.returncode, done.stdout.decode("ascii", "replace"),
                                       done.stderr.decode("ascii", "replace"))  # fmt: skip
                    if answer is not None:
                        answered(answer)
            except PermissionError:  # a program whose file capabilities the kernel does not grant is not even started
                self._owner.refused = True
                scope.cancel()
            except OSError:
                pass  # no process or descriptor to be had: this echo is lost, as echoes may be

    def close(self) -> None:
        self._send.close()
        self._receive.close()


def arguments(program: str, echo: Echo) -> list[str]:
    """The command line for one echo."""
    options = {"-c": 1, "-W": WAIT, "-s": len(echo.payload), "-t": max(1, echo.ttl - 1)}
    words = [word for name, value in options.items() for word in (name, str(value))]
    return [program, "-n", *words, "-M", "do" if echo.dont_fragment else "dont", format_ip(echo.target)]


def interpret(echo: Echo, status: int, out: str, complaint: str) -> EchoAnswer | None:
    """What the program's output says was answered; None: nothing.

    Raises:
        PermissionError: that it may not ping.
    """
    reply = _REPLY.search(out)
    if reply is not None and status == 0 and parse_ip(reply[1]) == echo.target:
        return EchoAnswer(echo.target, echo.sequence, echo.payload, int(reply[2] or DEFAULT_TTL), None)
    error = _ERROR.search(out)
    if error is not None:
        frag_needed = _FRAG_NEEDED.match(error[2])
        if frag_needed is not None:
            kind, code, rest = icmp.UNREACHABLE, icmp.UNREACHABLE_FRAG_NEEDED, int(frag_needed[1])
        elif error[2] in _TEXTS:
            (kind, code), rest = _TEXTS[error[2]], 0
        else:
            return None
        return _failed(echo, parse_ip(error[1]), kind, code, rest)
    too_long = _TOO_LONG.search(out + complaint)
    if too_long is not None:
        return _failed(echo, None, icmp.UNREACHABLE, icmp.UNREACHABLE_FRAG_NEEDED, int(too_long[1]))
    if "Network is unreachable" in complaint:
        return _failed(echo, None, icmp.UNREACHABLE, icmp.UNREACHABLE_NET, 0)
    if status == 2 and any(text in complaint for text in _NOT_ALLOWED):
        raise PermissionError(errno.EACCES, complaint.strip())
    return None


def _failed(echo: Echo, sender: bytes | None, kind: int, code: int, rest: int) -> EchoAnswer:
    error = HostError((echo.target, 0), sender, kind, code, rest & 0xFFFF, OWN_TTL, b"")
    return EchoAnswer(echo.target, echo.sequence, b"", OWN_TTL, error)
