"""Port forwards: listeners on the host whose connections and datagrams go to an address in the virtual network.

Statuses and texts are gvproxy's (specs/gvproxy.md sections 2.4 to 2.6, 5.4, 5.5). A forward's live connections survive its
removal; its UDP mappings do not.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

import trio

from sulla_trio.config import format_ip
from sulla_trio.errors import ForwardError, LocalError
from sulla_trio.forward.context import Driver
from sulla_trio.forward.forward_address import ForwardPorts, check_protocol, listen_tcp, listen_udp, parse_forward
from sulla_trio.forward.host_sockets import bind_error, peer_text, tune
from sulla_trio.forward.inbound_udp import UdpForward
from sulla_trio.forward.relay import SocketRelay
from sulla_trio.link.endpoint import take_socket

log = logging.getLogger(__name__)

CONNECT_TIMEOUT: Final = 10.0
"""Seconds for the guest to accept (gvproxy's)."""
RESTORE_WAITS: Final = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Seconds between attempts to have a forward of before the restart again: whoever holds its port then (often the
host-switch that was replaced) is gone within a minute, or here to stay."""


@dataclass(frozen=True, slots=True, order=True)
class ForwardEntry:
    """One forward as the API lists it: the strings as they were given, the remote with its host filled in."""

    local: str
    protocol: str
    remote: str
    source: str = field(default="api", compare=False)
    owner: str | None = field(default=None, compare=False)
    """Who has it go with himself (`forward.owned`); None: it stays until somebody removes it."""


@dataclass(slots=True)
class _Running:
    entry: ForwardEntry
    scope: trio.CancelScope
    stopped: trio.Event
    bound: bool = False


class ForwardTable:
    """The forwards of one virtual network. `run` owns their listeners; connections live in the network's nursery."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._running: dict[tuple[str, str], _Running] = {}
        self._wanted: dict[tuple[str, str], ForwardEntry] = {}
        """Forwards of before a restart that are not there again (yet)."""
        self._nursery: trio.Nursery | None = None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the listeners until cancelled; then every one is closed."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def all(self) -> list[ForwardEntry]:
        """Sorted by local, then protocol (byte order)."""
        return sorted(running.entry for running in self._running.values() if running.bound)

    def snapshot(self) -> list[ForwardEntry]:
        """What should be there again after a restart: the forwards that were asked for by the API, and those of before the
        last restart that could not be had since. The command line will name its own again, an owner his."""
        kept = [entry for entry in self.all() if entry.source != "static" and entry.owner is None]
        return kept + list(self._wanted.values())

    def find(self, local: str, protocol: str) -> ForwardEntry | None:
        """The forward of that address, bound or about to be."""
        running = self._running.get((protocol, local))
        return running.entry if running is not None else None

    async def expose(self, local: str, remote: str, protocol: str = "tcp", *, source: str = "api") -> None:
        """Listen on `local` and forward to `remote`. Returns when the listener is bound.

        Raises:
            ForwardError: with gvproxy's text: already running, unknown protocol, invalid remote, or the bind error.
        """
        entry = ForwardEntry(local, protocol, remote, source)
        try:
            await self.start(entry)
        except ForwardError as failure:
            if failure.code in ("local", "bind", "in_use", "privileged"):
                self.failed(entry, failure)
            raise

    async def unexpose(self, local: str, protocol: str = "tcp", *, reason: str | None = None) -> None:
        """Close the listener of a forward and wait until it is closed. Live TCP connections go on. The event has `reason`.

        Raises:
            ForwardError: ``proxy not found``.
        """
        wanted = self._wanted.pop((protocol, local), None)
        running = self._running.pop((protocol, local), None)
        if running is not None:
            running.scope.cancel()
        elif wanted is None:
            raise ForwardError("unknown", "proxy not found")
        try:
            if running is not None:
                await running.stopped.wait()
        finally:
            removed = running.entry if running is not None else wanted
            assert removed is not None
            self._emit("removed", removed, **({} if reason is None else {"reason": reason}))

    def want(self, entries: Iterable[ForwardEntry]) -> None:
        """Remember the forwards of before a restart, for `restore` to have them again. `snapshot` has them from now on.

        An address that is forwarded already stays as it is.
        """
        for entry in entries:
            if (entry.protocol, entry.local) not in self._running:
                self._wanted[entry.protocol, entry.local] = entry

    async def restore(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Have the forwards again that `want` was told. Started when all that can be had at once are there.

        One that cannot is told once, tried again for about a minute, and left alone then; it stays in `snapshot`, so that
        the next restart tries it again, until it is exposed or unexposed. Raises nothing.
        """
        failed = await self._restore_wanted()
        for entry, failure in failed:
            log.warning("cannot restore the forward of %s to %s: %s", entry.local, entry.remote, failure)
            self.failed(entry, failure)
        task_status.started()
        for seconds in RESTORE_WAITS:
            if not self._wanted:
                return
            await trio.sleep(seconds)
            await self._restore_wanted()

    async def _restore_wanted(self) -> list[tuple[ForwardEntry, ForwardError]]:
        """Try each forward that is wanted once; what could not be had, and why."""
        failed = []
        for key, entry in list(self._wanted.items()):
            if self._wanted.get(key) is not entry:
                continue  # somebody has exposed or unexposed it while an earlier one was being bound
            try:
                await self.start(entry, restored=True)
            except ForwardError as failure:
                if key in self._wanted:
                    failed.append((entry, failure))
            else:
                self._wanted.pop(key, None)
        return failed

    async def start(self, entry: ForwardEntry, *, restored: bool = False) -> None:
        """Bind the listener of `entry` and serve it in the table's nursery; no event where that fails.

        Whoever asks now is answered now: unless `restored`, an older wish for the address is over, whatever the answer.

        Raises:
            ForwardError: as `expose`.
        """
        key = (entry.protocol, entry.local)
        if not restored:
            self._wanted.pop(key, None)
        if key in self._running:
            raise ForwardError("running", f"proxy already running for {entry.protocol} on {entry.local}")
        check_protocol(entry.protocol)
        ports = parse_forward(entry.local, entry.remote)
        if self._nursery is None:
            raise ForwardError("closed", "the network is shutting down")
        running = _Running(entry, trio.CancelScope(), trio.Event())
        self._running[key] = running  # before the first await: two at once for one address must not both bind
        serve = self._serve_tcp if entry.protocol == "tcp" else self._serve_udp
        try:
            await self._nursery.start(serve, running, ports)
        except OSError as error:
            self._drop(key, running)
            failure = bind_error(entry.protocol, error.filename or entry.local, error)
            if error.errno == errno.EADDRINUSE:
                failure.code = "in_use"
            raise failure from None
        except ValueError as error:  # a name that no resolver takes (embedded NUL, a label over 63 bytes)
            self._drop(key, running)
            raise ForwardError("local", f"invalid address: {error}") from None
        except BaseException:
            self._drop(key, running)
            raise
        if self._running.get(key) is not running:
            raise ForwardError("closed", f"{entry.local} was unexposed meanwhile")
        running.bound = True
        self._emit("added", entry)

    def failed(self, entry: ForwardEntry, failure: ForwardError) -> None:
        """Tell that a forward could not be had."""
        self._emit("failed", entry, reason=str(failure))

    def _drop(self, key: tuple[str, str], running: _Running) -> None:
        if self._running.get(key) is running:
            del self._running[key]

    def _emit(self, what: str, entry: ForwardEntry, **more: Any) -> None:
        self._driver.events.emit(
            f"forward.{what}",
            local=entry.local,
            remote=entry.remote,
            protocol=entry.protocol,
            owner=entry.owner,
            source=entry.source,
            **more,
        )

    # TCP

    async def _serve_tcp(self, running: _Running, ports: ForwardPorts, task_status: trio.TaskStatus[None]) -> None:
        try:
            listeners = await listen_tcp(ports)
            handler = partial(self._accepted, running.entry, ports)
            with running.scope:
                task_status.started()
                await trio.serve_listeners(handler, listeners)
        finally:
            running.stopped.set()

    async def _accepted(self, entry: ForwardEntry, ports: ForwardPorts, stream: trio.SocketStream) -> None:
        """Hand the connection to the network's nursery, where it outlives the forward."""
        sock = take_socket(stream)
        port = sock.getsockname()[1]
        target = ports.target(port)
        if ports.size > 1:  # what is told of the connection is told of its port
            entry = replace(entry, local=f"{entry.local.rpartition(':')[0]}:{port}", remote=_text(target))
        if not self._driver.spawn(None, self._carry, entry, target, sock):
            sock.close()
        await trio.lowlevel.checkpoint()

    async def _carry(self, entry: ForwardEntry, target: tuple[bytes, int], sock: socket.socket) -> None:
        driver = self._driver
        peer = peer_text(sock)
        tune(sock)
        flow = driver.flows.opened("forward", entry.remote, peer, driver.now())
        flow.state = "dialling"
        self._emit_connection("opened", entry, peer, flow.id)
        waiter = _Opening()
        try:
            connection = driver.stack.connect(target[0], target[1], driver.now())
        except LocalError:
            driver.flows.closed(flow, "host_error", driver.now())
            sock.close()
            return
        connection.owner = waiter
        driver.pump()
        try:
            with trio.move_on_after(CONNECT_TIMEOUT):
                await waiter.decided.wait()
        finally:
            if not waiter.open:
                connection.owner = None
                if not waiter.gone:
                    connection.abort(driver.now())
                sock.close()
                driver.flows.closed(flow, waiter.reason or "timeout", driver.now())
                driver.pump()
        if waiter.open:
            relay = SocketRelay(driver, connection, sock, flow)
            if waiter.early_data:
                relay.readable()
            if waiter.gone:
                relay.closed(waiter.reason)
            elif waiter.fin:
                relay.peer_closed()
            flow.state = "established"
            await relay.run()
        self._emit_connection(
            "closed", entry, peer, flow.id, bytes_in=flow.bytes_in, bytes_out=flow.bytes_out, reason=flow.reason
        )

    def _emit_connection(self, what: str, entry: ForwardEntry, peer: str, flow: int, **more: Any) -> None:
        self._driver.events.emit(
            f"forward.{what}",
            local=entry.local,
            remote=entry.remote,
            protocol=entry.protocol,
            peer=peer,
            flow=flow,
            **more,
        )

    # UDP

    async def _serve_udp(self, running: _Running, ports: ForwardPorts, task_status: trio.TaskStatus[None]) -> None:
        try:
            sockets = await listen_udp(ports)
            with running.scope:
                async with trio.open_nursery() as nursery:
                    for sock in sockets:
                        target = ports.target(sock.getsockname()[1])
                        nursery.start_soon(UdpForward(self._driver, sock, target).run)
                    task_status.started()
        finally:
            running.stopped.set()


class _Opening:
    """Owner of a connection to the guest until it is established: remembers what comes before the relay exists."""

    def __init__(self) -> None:
        self.decided = trio.Event()
        self.open = self.gone = self.fin = self.early_data = False
        self.reason: str | None = None

    def connected(self) -> None:
        self.open = True
        self.decided.set()

    def readable(self) -> None:
        self.early_data = True

    def peer_closed(self) -> None:
        self.fin = True

    def writable(self) -> None:
        pass

    def sink_closed(self) -> None:
        pass

    def closed(self, reason: str | None) -> None:
        self.gone = True
        self.reason = "refused" if reason in ("reset", "refused") and not self.open else reason
        self.decided.set()


def _text(target: tuple[bytes, int]) -> str:
    return f"{format_ip(target[0])}:{target[1]}"
