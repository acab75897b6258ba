"""TCP from the guest to the outside: the host is dialled before the guest gets its SYN-ACK (DESIGN section 4).

Refused is a RST, unreachable is an ICMP unreachable and a RST in one flush, a time-out is silence (the guest's own timer says
ETIMEDOUT), and a guest that gives up cancels the dial.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from typing import Final

import trio

from sulla_trio.config import format_ip
from sulla_trio.forward.context import Driver
from sulla_trio.forward.datagram_socket import UNREACHABLE
from sulla_trio.forward.host_sockets import tune
from sulla_trio.forward.relay import SocketRelay
from sulla_trio.netstack.events import ConnectionRequest
from sulla_trio.services.flows import Flow
from sulla_trio.services.policy import Verdict

DIAL_TIMEOUT: Final = 130.0
"""Seconds; past Linux's own six SYN retries, so that the kernel's answer comes first."""


class OutboundTcp:
    """Answers `ConnectionRequest` events with dials. One per virtual network.

    `may_dial` maps (address, port, protocol) to a `Verdict`: whether, and where to after NAT.
    """

    def __init__(self, driver: Driver, may_dial: Callable[[bytes, int], Verdict]) -> None:
        self._driver = driver
        self._may_dial = may_dial
        self._dials: dict[bytes, trio.CancelScope] = {}

    @property
    def dialling(self) -> int:
        """Dials under way."""
        return len(self._dials)

    def requested(self, request: ConnectionRequest) -> None:
        """Decide on one request; never waits."""
        driver = self._driver
        verdict = self._may_dial(request.local_ip, request.local_port)
        if not verdict.allowed:
            driver.stack.reject(request, driver.now())
            driver.events.emit(
                "flow.denied",
                protocol="tcp",
                guest=f"{format_ip(request.remote_ip)}:{request.remote_port}",
                remote=f"{format_ip(request.local_ip)}:{request.local_port}",
                reason=verdict.reason,
            )
            return
        if not driver.spawn(request.port, self._dial, request, verdict.target_ip):
            driver.stack.drop(request)

    def cancelled(self, key: bytes) -> None:
        """The guest gave up on the request with that key."""
        scope = self._dials.pop(key, None)
        if scope is not None:
            scope.cancel()

    async def _dial(self, request: ConnectionRequest, target_ip: bytes) -> None:
        driver, key = self._driver, request.key
        flow = driver.flows.opened(
            "tcp",
            f"{format_ip(request.remote_ip)}:{request.remote_port}",
            f"{format_ip(request.local_ip)}:{request.local_port}",
            driver.now(),
        )
        flow.state = "dialling"
        sock: socket.socket | None = None
        answered = False
        try:
            with trio.move_on_after(DIAL_TIMEOUT) as scope:
                self._dials[key] = scope
                sock = await connect_out(target_ip, request.local_port)
            given_up = self._dials.pop(key, None) is not scope
            answered = True
            if given_up or sock is None:
                if not given_up:
                    driver.stack.drop(request)
                driver.flows.closed(flow, "guest_reset" if given_up else "timeout", driver.now())
                if sock is not None:
                    sock.close()
                return
        except OSError as error:
            answered = True
            self._dials.pop(key, None)
            self._refuse(request, error, flow)
            return
        finally:
            if not answered:  # cancelled: the port is gone, or an unexpected exception is on its way up
                self._dials.pop(key, None)
                driver.stack.drop(request)
                driver.flows.closed(flow, "shutdown", driver.now())
        connection = driver.stack.accept(request, driver.now())
        relay = SocketRelay(driver, connection, sock, flow)
        driver.pump()
        await relay.run()

    def _refuse(self, request: ConnectionRequest, error: OSError, flow: Flow) -> None:
        driver, stack = self._driver, self._driver.stack
        code = error.errno or 0
        if code == errno.ECONNREFUSED or code == errno.ECONNRESET:
            stack.reject(request, driver.now())
            reason = "refused"
        elif code in UNREACHABLE:
            stack.unreachable(request, UNREACHABLE[code], driver.now())
            reason = "unreachable"
        elif code == errno.ETIMEDOUT:
            stack.drop(request)
            reason = "timeout"
        else:  # EMFILE, EADDRNOTAVAIL, EINVAL...: ours to mend, so the guest tries again
            stack.drop(request)
            reason = "host_error"
            driver.events.emit("flow.failed", protocol="tcp", remote=flow.remote, reason=os.strerror(code))
        driver.flows.closed(flow, reason, driver.now())
        driver.pump()


async def connect_out(address: bytes, port: int) -> socket.socket:
    """A connected, non-blocking host socket. Raises OSError as connect(2) does; cancellation closes the socket."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        tune(sock)
        code = sock.connect_ex((format_ip(address), port))
        if code in (errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EAGAIN):
            await trio.lowlevel.wait_writable(sock)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        else:
            await trio.lowlevel.checkpoint()
        if code:
            raise OSError(code, os.strerror(code))
    except BaseException:
        sock.close()
        raise
    return sock
