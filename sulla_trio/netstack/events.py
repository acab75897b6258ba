"""What `Stack.next_event` returns: one NamedTuple per kind of news, in the order it happened.

Events own their bytes: none holds a view of a received frame. An event about a connection carries the connection
itself; whoever drives the stack dispatches it by ``event.connection.owner``. `Closed` is the last event of a
connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from sulla_trio.netstack.tcp import TcpConnection
    from sulla_trio.wire.tcp import Segment


class ConnectionRequest(NamedTuple):
    """A guest's SYN. Nothing has been sent; answer with `Stack.accept`, `reject`, `drop` or `unreachable`."""

    key: bytes
    remote_ip: bytes
    """The guest's address."""
    remote_port: int
    local_ip: bytes
    """The address the guest dialled."""
    local_port: int
    mac: bytes
    port: int
    """Switch port that the SYN came in by."""
    segment: Segment
    """The SYN itself, for the stack; its payload offsets mean nothing any more."""
    header: bytes
    """IP header and 8 bytes of the SYN: what an ICMP error quotes (RFC 792)."""
    at: float
    """When the SYN came, in seconds of the stack's clock."""


class RequestCancelled(NamedTuple):
    """The guest reset or gave up a `ConnectionRequest` that is still unanswered."""

    key: bytes


class Connected(NamedTuple):
    """The three-way handshake is complete (either direction of opening)."""

    connection: TcpConnection


class Readable(NamedTuple):
    """In-order bytes were queued: no sink, or it did not take all. Not raised again until the queue has been empty."""

    connection: TcpConnection


class PeerClosed(NamedTuple):
    """The peer's FIN, after its last byte was delivered or taken."""

    connection: TcpConnection


class Writable(NamedTuple):
    """`send_room` had fallen below the low-water mark and at least half of the bound is free again."""

    connection: TcpConnection


class SinkClosed(NamedTuple):
    """The sink answered CLOSED; what it did not take is discarded."""

    connection: TcpConnection


class Closed(NamedTuple):
    """The connection is gone for its owner; the last event of a connection.

    `reason` is None for an orderly end (both FINs acknowledged, everything received was delivered), else ``reset``,
    ``refused``, ``timeout`` or ``aborted``.
    """

    connection: TcpConnection
    reason: str | None


class DatagramReceived(NamedTuple):
    """A UDP datagram, whole (reassembled)."""

    source_ip: bytes
    source_port: int
    destination_ip: bytes
    destination_port: int
    payload: bytes
    mac: bytes
    port: int
    ttl: int
    header: bytes
    """IP header and 8 bytes: what an ICMP error quotes (RFC 792)."""


class EchoRequested(NamedTuple):
    """An ICMP echo request to an address that is not ours."""

    source_ip: bytes
    destination_ip: bytes
    identifier: int
    sequence: int
    payload: bytes
    mac: bytes
    port: int
    ttl: int
    header: bytes
    """IP header and 8 bytes: what an ICMP error quotes (RFC 792)."""


Event: TypeAlias = (
    ConnectionRequest
    | RequestCancelled
    | Connected
    | Readable
    | PeerClosed
    | Writable
    | SinkClosed
    | Closed
    | DatagramReceived
    | EchoRequested
)
