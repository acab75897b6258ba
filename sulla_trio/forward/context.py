"""What forwarding code needs of the driven stack, and what the driven stack calls back.

The concrete driver is `sulla_trio.vnet.driver.Driver`; this page keeps the import direction (vnet above forward).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from sulla_trio.config import NetworkConfig
from sulla_trio.netstack.stack import Stack
from sulla_trio.services.events import EventLog
from sulla_trio.services.flows import FlowTable


class ConnectionOwner(Protocol):
    """Called by the driver for each event of a `TcpConnection` whose `owner` this is. None of them may wait or raise."""

    def connected(self) -> None:
        """The handshake is complete."""

    def readable(self) -> None:
        """In-order bytes were queued on the connection."""

    def peer_closed(self) -> None:
        """The guest's FIN, after its last byte was delivered."""

    def writable(self) -> None:
        """There is room to send again."""

    def sink_closed(self) -> None:
        """The connection's sink answered CLOSED."""

    def closed(self, reason: str | None) -> None:
        """The connection is gone; the last call."""


class DatagramHandler(Protocol):
    """Called by the driver with each datagram for a bound address. May not wait or raise."""

    def __call__(self, event: Any) -> None: ...


class LinkPort(Protocol):
    """One switch port: the guest's end of the flows that live in its nursery."""

    id: int

    @property
    def congested(self) -> bool:
        """Whether so much is queued for the link that nothing should be read for it."""

    async def wait_uncongested(self) -> None:
        """Return when `congested` is false."""


class Driver(Protocol):
    """The stack, driven."""

    network: NetworkConfig
    stack: Stack
    events: EventLog
    flows: FlowTable

    def now(self) -> float:
        """Seconds of the stack's clock."""

    def pump(self) -> None:
        """Deliver the stack's events, send its frames, re-arm its timer. Never waits."""

    def port(self, port_id: int) -> LinkPort | None:
        """The live port with that id."""

    def spawn(self, port_id: int | None, task: Callable[..., Awaitable[None]], *args: Any) -> bool:
        """Start `task(*args)` in the nursery of a port (None: of the network). False: that port is gone.

        An unexpected exception of the task is counted and logged as `internal_error` (raised with ``--strict``); it
        never ends the port.
        """

    def bind_datagrams(self, address: tuple[bytes, int], handler: DatagramHandler) -> bool:
        """Hand datagrams for (destination address, port) to `handler` instead of the outside. False: already taken."""

    def unbind_datagrams(self, address: tuple[bytes, int]) -> None:
        """Undo `bind_datagrams`."""
