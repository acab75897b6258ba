"""Echo from the guest to the outside: never forged, and answered when the outside has answered (DESIGN section 4).

One `EchoPath` per session, which is a guest's address and echo identifier (RFC 5508 section 3.1): one run of its `ping`. The
reply has the guest's identifier and sequence, and the bytes and the TTL that came back; errors quote the guest's own packet.
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import trio

from sulla_trio.config import format_ip
from sulla_trio.forward.context import Driver
from sulla_trio.forward.datagram_socket import refusal_of, tell_denied, tell_guest
from sulla_trio.forward.echo_path import NOT_HERE, Echo, EchoAnswer, EchoPath, open_ping_socket, open_raw_socket
from sulla_trio.forward.ping_program import PingPrograms
from sulla_trio.netstack.events import EchoRequested
from sulla_trio.services.flows import Flow
from sulla_trio.services.policy import Verdict
from sulla_trio.wire import ipv4

IDLE: Final = 60.0
"""Seconds after the last request (RFC 5508 section 3.2: not less than 60)."""
MAX_SESSIONS: Final = 256
"""Each is a descriptor; beyond it the longest idle goes. A `ping` is one, a sweep by fping or mtr too."""
MAX_ECHOES: Final = 1024
"""Requests remembered per session, for answers and what errors quote; the oldest goes. Answered ones stay: a second reply is
the outside's fault, and for the guest's `ping` to show."""
NO_WAY: Final = (
    "ping to the outside is closed: sysctl net.ipv4.ping_group_range does not include this process's group, "
    "it has no CAP_NET_RAW, and there is no ping program that it may use"
)
Opener = Callable[[], EchoPath]


class EchoSession:
    """A guest's (address, identifier) and its way out."""

    __slots__ = ("echoes", "flow", "path", "port", "scope")

    def __init__(self, path: EchoPath, port: int, flow: Flow, deadline: float) -> None:
        self.path = path
        self.port = port
        self.flow = flow
        self.echoes: OrderedDict[tuple[bytes, int], EchoRequested] = OrderedDict()
        """By target and sequence, without their payload."""
        self.scope = trio.CancelScope(deadline=deadline)


class OutboundIcmp:
    """Carries echoes to addresses that are not ours. One per virtual network.

    `openers` are the ways out, the best first; each raises OSError where it does not exist.
    """

    def __init__(
        self, driver: Driver, may_dial: Callable[[bytes, int], Verdict], openers: Sequence[Opener] | None = None
    ) -> None:
        self._driver = driver
        self._may_dial = may_dial
        self._openers = openers or (open_ping_socket, open_raw_socket, PingPrograms().open)
        self._sessions: OrderedDict[tuple[bytes, int], EchoSession] = OrderedDict()
        self._told = False

    def requested(self, event: EchoRequested) -> None:
        """Send one request on to the outside; never waits."""
        driver = self._driver
        verdict = self._may_dial(event.destination_ip, 0)
        if not verdict.allowed:
            driver.stack.counters.drop("icmp_denied")
            tell_denied(driver, verdict, event.header, event.mac, event.port)
            return
        key = (event.source_ip, event.identifier)
        session = self._sessions.get(key)
        if session is None or session.port != event.port:
            session = self._open(key, event)
            if session is None:
                return
        target = verdict.target_ip
        session.echoes[target, event.sequence] = event._replace(payload=b"")
        session.echoes.move_to_end((target, event.sequence))
        if len(session.echoes) > MAX_ECHOES:
            session.echoes.popitem(last=False)
        self._sessions.move_to_end(key)
        session.scope.deadline = driver.now() + IDLE
        session.flow.bytes_out += len(event.payload)
        dont_fragment = bool(event.header[6] & ipv4.DONT_FRAGMENT >> 8)
        try:
            session.path.send(Echo(target, event.sequence, event.payload, event.ttl, dont_fragment))
        except OSError as error:
            driver.stack.counters.drop("icmp_" + errno.errorcode.get(error.errno or 0, "error").lower())
            refusal = refusal_of(error, (target, 0))
            if refusal is not None:
                tell_guest(driver, refusal, event.header, event.mac, event.port)

    def _open(self, key: tuple[bytes, int], event: EchoRequested) -> EchoSession | None:
        driver = self._driver
        old = self._sessions.pop(key, None)
        if old is None and len(self._sessions) >= MAX_SESSIONS:
            old = self._sessions.popitem(last=False)[1]
        if old is not None:
            old.scope.cancel()
        path = self._open_path()
        if path is None:
            driver.stack.counters.drop("icmp_no_path")
            return None
        guest = f"{format_ip(event.source_ip)}:{event.identifier}"
        flow = driver.flows.opened("icmp", guest, format_ip(event.destination_ip), driver.now())
        flow.state = "open"
        session = EchoSession(path, event.port, flow, driver.now() + IDLE)
        if not driver.spawn(event.port, self._run, key, session):
            path.close()
            driver.flows.closed(flow, "port_gone", driver.now())
            return None
        self._sessions[key] = session
        return session

    def _open_path(self) -> EchoPath | None:
        for opener in self._openers:
            try:
                return opener()
            except OSError as error:
                if error.errno not in NOT_HERE:  # EMFILE and the like: for now, and a worse way would not help
                    reason = os.strerror(error.errno or 0)
                    self._driver.events.emit("flow.failed", protocol="icmp", reason=reason)
                    return None
        self._tell_no_way()
        return None

    def _tell_no_way(self) -> None:
        if not self._told:
            self._told = True
            self._driver.events.emit("flow.failed", protocol="icmp", reason=NO_WAY)

    async def _run(self, key: tuple[bytes, int], session: EchoSession) -> None:
        driver = self._driver
        reason = "shutdown"
        try:
            with session.scope:
                await session.path.run(partial(self._answered, session))
            reason = "idle" if driver.now() >= session.scope.deadline else "replaced"
        except PermissionError:
            reason = "host_error"
            self._tell_no_way()
        finally:
            if self._sessions.get(key) is session:
                del self._sessions[key]
            session.path.close()
            driver.flows.closed(session.flow, reason, driver.now())

    def _answered(self, session: EchoSession, answer: EchoAnswer) -> None:
        driver = self._driver
        event = session.echoes.get((answer.target, answer.sequence))
        if event is None:
            driver.stack.counters.drop("icmp_unsolicited")
        elif answer.error is not None:
            tell_guest(driver, answer.error, event.header, event.mac, event.port)
        else:
            session.flow.bytes_in += len(answer.payload)
            driver.stack.send_echo_reply(event, answer.payload, driver.now(), ttl=max(1, answer.ttl - 1))
        driver.pump()
