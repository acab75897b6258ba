"""The stack and the switch, driven: clock, ports, one timer task, and the pump that every batch ends with.

Everything that changes the stack (a link's batch of frames, a host socket's bytes, a timer) ends in one `Driver.pump`: events
are dispatched, due frames made, every touched port flushed once, the timer re-armed by one assignment. Nothing in it waits.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

import trio

from sulla_trio.config import NetworkConfig, format_mac
from sulla_trio.forward.context import ConnectionOwner, DatagramHandler
from sulla_trio.link.endpoint import Endpoint
from sulla_trio.link.framed import FrameReader
from sulla_trio.netstack import events as stack_events
from sulla_trio.netstack.counters import Counters
from sulla_trio.netstack.stack import BROADCAST_PORT, Stack
from sulla_trio.netstack.switch import Switch
from sulla_trio.services.events import EventLog
from sulla_trio.services.flows import FlowTable
from sulla_trio.vnet.port import Port

log = logging.getLogger(__name__)

BATCH_FRAMES: Final = 64
"""Frames handled before other tasks run (DESIGN section 3)."""
DIAL_TURNS: Final = 3
TRACEBACK_INTERVAL: Final = 60.0
"""Seconds between two tracebacks of one place (DESIGN law 3)."""


class Driver:
    """Owns the stack, the switch and the ports. `run` must be running for timers and for tasks of the network.

    `on_request`, `on_cancelled` and `on_datagram` are set by the network that is built on it.
    """

    def __init__(
        self, network: NetworkConfig, events: EventLog, flows: FlowTable, *, poison: bool = False, strict: bool = False
    ) -> None:
        self.network = network
        self.events = events
        self.flows = flows
        self.counters = Counters()
        self.stack = Stack(network, random.SystemRandom(), counters=self.counters)
        self.switch = Switch(network.gateway_mac, self.counters)
        self.on_request: Callable[[stack_events.ConnectionRequest], None] = self._refuse
        self.on_cancelled: Callable[[bytes], None] = lambda key: None
        self.on_datagram: Callable[[stack_events.DatagramReceived], None] = lambda event: None
        self.on_echo: Callable[[stack_events.EchoRequested], None] = lambda event: None
        self._ports: dict[int, Port] = {}
        self._handlers: dict[tuple[bytes, int], DatagramHandler] = {}
        self._nursery: trio.Nursery | None = None
        self._timer: trio.CancelScope | None = None
        self._deadline = math.inf
        self._pumping = False
        self._poison = poison
        self._strict = strict
        self._traces: dict[tuple[str, int], float] = {}

    def now(self) -> float:
        return trio.current_time()

    def port(self, port_id: int) -> Port | None:
        return self._ports.get(port_id)

    @property
    def ports(self) -> list[Port]:
        """The live ports, oldest first."""
        return list(self._ports.values())

    # Tasks

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run timers and the network's own tasks until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._run_timer)
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def spawn(self, port_id: int | None, task: Callable[..., Awaitable[None]], *args: Any) -> bool:
        if port_id is None:
            nursery = self._nursery
        else:
            port = self._ports.get(port_id)
            nursery = port.nursery if port is not None else None
        if nursery is None:
            return False
        nursery.start_soon(self._guarded, task, args, name=getattr(task, "__qualname__", None))
        return True

    async def _guarded(self, task: Callable[..., Awaitable[None]], args: tuple[Any, ...]) -> None:
        try:
            await task(*args)
        except Exception as error:
            self.internal_error(error)

    def internal_error(self, error: Exception) -> None:
        """Count and log a bug, at most one traceback per place and minute; raise it again with ``--strict``."""
        if self._strict:
            raise error
        self.counters.drop("internal_error")
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        place = (trace.tb_frame.f_code.co_filename, trace.tb_lineno) if trace else ("", 0)
        if self.now() - self._traces.get(place, -math.inf) >= TRACEBACK_INTERVAL:
            self._traces[place] = self.now()
            log.error("internal error in a flow: %r", error, exc_info=error)
            self.events.emit("daemon.internal_error", error=repr(error), place=f"{place[0]}:{place[1]}")

    async def _run_timer(self) -> None:
        while True:
            with trio.CancelScope(deadline=self._deadline) as self._timer:
                await trio.sleep_forever()
            self._timer = None
            self._deadline = math.inf
            self.stack.handle_timer(self.now())
            self.pump()
            await trio.lowlevel.checkpoint()

    # Links

    async def serve_link(self, endpoint: Endpoint) -> OSError | None:
        """Attach `endpoint` as a switch port and carry its frames until it ends; closes it.

        Returns None at an orderly end of the stream, else what broke it. Cancelling detaches the port. Every flow of the
        port is over when this returns.
        """
        port_id = self.switch.add_port()
        failure: OSError | None = None
        self.events.emit("link.up", port=port_id, peer=endpoint.name)
        try:
            async with trio.open_nursery() as nursery:
                port = self._ports[port_id] = Port(port_id, endpoint, nursery, partial(self._drained, port_id))
                try:
                    await self._read_link(port)
                except OSError as error:
                    failure = error
                nursery.cancel_scope.cancel()
            failure = port.failure or failure
        finally:
            del self._ports[port_id]
            self.stack.port_removed(port_id, self.now())
            self.switch.remove_port(port_id)
            endpoint.close()
            self.pump()
            self.events.emit("link.down", port=port_id, peer=endpoint.name, reason=str(failure) if failure else "eof")
        return failure

    async def _read_link(self, port: Port) -> None:
        reader = FrameReader(poison=self._poison)
        endpoint, counters = port.endpoint, self.counters
        skipped = 0
        while True:
            try:
                frames = reader.read(endpoint)
            except BlockingIOError:
                await endpoint.wait_readable()
                continue
            if frames is None:
                if reader.partial:
                    raise ConnectionResetError(f"the link ended {reader.partial} bytes into a frame")
                return
            if reader.skipped != skipped:
                counters.drop("frame_short", reader.skipped - skipped)
                skipped = reader.skipped
            for start in range(0, len(frames), BATCH_FRAMES):
                self.ingress(port.id, frames[start : start + BATCH_FRAMES])
                # A dial to this machine takes two turns of the loop: with SYNs waiting, give them these turns before the
                # next batch brings more than the bound of pending dials allows.
                for _ in range(DIAL_TURNS if self.stack.pending else 1):
                    await trio.lowlevel.checkpoint()

    def ingress(self, port_id: int, frames: list[memoryview]) -> None:
        """One batch of frames from a port: through the switch, into the stack or out of other ports, then one pump."""
        now = self.now()
        switch_ingress, receive, counters = self.switch.ingress, self.stack.receive, self.counters
        received = 0
        switched: set[Port] = set()
        for frame in frames:
            received += len(frame)
            to_gateway, others = switch_ingress(port_id, frame)
            if to_gateway:
                receive(frame, port_id, now)
            for other in others:
                port = self._ports[other]
                self._transmit(port, bytes(frame), b"")
                switched.add(port)
        if self.switch.duplicates:
            self._tell_duplicates()
        counters.frames_received += len(frames)
        counters.bytes_received += received
        for port in switched:
            self._flush(port)  # first, so that TCP finds either room or a held port
        self.pump()

    def _flush(self, port: Port) -> None:
        port.flush()
        if port.backlogged:
            self.stack.hold(port.id)

    def _drained(self, port_id: int) -> None:
        self.stack.release(port_id)
        self.pump()

    def _tell_duplicates(self) -> None:
        """Two guests with one MAC take each other's frames, and have one lease between them."""
        for mac, *ports in self.switch.duplicates:
            names = [port.endpoint.name for at in ports if (port := self._ports.get(at)) is not None]
            self.events.emit("switch.duplicate_mac", mac=format_mac(mac), ports=ports, peers=names)
        self.switch.duplicates.clear()

    def _transmit(self, port: Port, header: bytes, payload: Any) -> None:
        if port.transmit(header, payload):
            self.counters.frames_sent += 1
            self.counters.bytes_sent += len(header) + len(payload)
        else:
            self.counters.drop("link_queue_full")

    # The pump

    def pump(self) -> None:
        """Deliver the stack's events, send its frames, re-arm its timer. Never waits; not re-entrant, so what a handler
        adds is carried by the pump that called it."""
        if self._pumping:
            return
        self._pumping = True
        stack, ports = self.stack, self._ports
        try:
            touched: set[Port] = set()
            while True:
                while (event := stack.next_event()) is not None:
                    try:
                        self._dispatch(event)
                    except Exception as error:
                        self.internal_error(error)
                frames = stack.frames_to_send(self.now())
                if not frames:
                    break
                for port_id, header, payload in frames:
                    port = ports.get(port_id)
                    if port is not None:
                        self._transmit(port, header, payload)
                        touched.add(port)
                    elif port_id == BROADCAST_PORT:
                        for port in ports.values():
                            self._transmit(port, header, payload)
                            touched.add(port)
                for port in touched:
                    self._flush(port)
                touched.clear()
        finally:
            self._pumping = False
        deadline = stack.poll_at()
        if deadline is not None and deadline < self._deadline:
            self._deadline = deadline
            if self._timer is not None:
                self._timer.deadline = deadline

    def _dispatch(self, event: stack_events.Event) -> None:
        match event:
            case stack_events.DatagramReceived():
                handler = self._handlers.get((event.destination_ip, event.destination_port))
                (handler or self.on_datagram)(event)
            case stack_events.ConnectionRequest():
                self.on_request(event)
            case stack_events.RequestCancelled():
                self.on_cancelled(event.key)
            case stack_events.EchoRequested():
                self.on_echo(event)
            case _:
                owner: ConnectionOwner | None = event.connection.owner
                if owner is not None:
                    self._dispatch_connection(owner, event)

    def _dispatch_connection(self, owner: ConnectionOwner, event: Any) -> None:
        match event:
            case stack_events.Readable():
                owner.readable()
            case stack_events.Writable():
                owner.writable()
            case stack_events.Connected():
                owner.connected()
            case stack_events.PeerClosed():
                owner.peer_closed()
            case stack_events.SinkClosed():
                owner.sink_closed()
            case stack_events.Closed():
                owner.closed(event.reason)

    def _refuse(self, request: stack_events.ConnectionRequest) -> None:
        self.stack.reject(request, self.now())

    def bind_datagrams(self, address: tuple[bytes, int], handler: DatagramHandler) -> bool:
        if address in self._handlers:
            return False
        self._handlers[address] = handler
        return True

    def unbind_datagrams(self, address: tuple[bytes, int]) -> None:
        with suppress(KeyError):
            del self._handlers[address]

    def cam(self) -> dict[str, int]:
        """MAC text to port id, as ``/cam`` shows it."""
        return {format_mac(mac): port for mac, port in self.switch.cam().items()}
