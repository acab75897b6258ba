"""What a TCP connection needs of its two neighbours: the stack that owns it and the sink its bytes go to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from sulla_trio.netstack.counters import Counters
from sulla_trio.netstack.credit import CreditBudget
from sulla_trio.netstack.events import Event
from sulla_trio.netstack.tcp_options import TcpOptions

if TYPE_CHECKING:
    from sulla_trio.netstack.tcp import TcpConnection

CLOSED: Final = -1
"""What `Sink.try_write` returns when nothing can be written any more."""


class Sink(Protocol):
    """Where in-order bytes go without being queued."""

    def try_write(self, view: memoryview) -> int:
        """Take 0 to len(view) bytes and return how many, or CLOSED. Never raises, waits, keeps the view or calls the
        stack."""


class TcpHost(Protocol):
    """What a connection needs of the stack that owns it."""

    counters: Counters
    options: TcpOptions
    credit: CreditBudget
    gateway_mac: bytes
    """Source of every frame."""
    batch: int
    """Number of the present call of `frames_to_send`."""

    def mark_dirty(self, connection: TcpConnection) -> None:
        """Call `connection.frames` at the next `frames_to_send`. Called once until then (`connection.dirty` is the
        flag, which `frames` clears)."""

    def arm(self, connection: TcpConnection, deadline: float) -> None:
        """Push (deadline, connection) on the timer heap.

        Lazy deletion: an entry is live only while ``deadline == connection.armed_at``; a live one that is due means
        `connection.handle_timer(now)`, which arms again by itself. Stale entries can outnumber connections: rebuild the
        heap from `armed_at` (inf: none) when it holds more than twice as many entries as there are connections.
        """

    def raise_event(self, event: Event) -> None:
        """Append to what `next_event` returns."""

    def forget(self, connection: TcpConnection) -> None:
        """The connection is CLOSED: remove it from the table. Its last frames (a RST) are still due if it is dirty."""

    def path_mss(self, remote_ip: bytes) -> int:
        """Bytes (options included) of a segment that reach `remote_ip`, as far as is known."""

    def is_queued(self, connection: TcpConnection) -> bool:
        """Whether what `connection` sent last, in batch `connection.sent_batch`, still waits in this machine for its
        link to take it. To send it again would help nobody."""

    def entered_time_wait(self, connection: TcpConnection) -> None:
        """The connection is in TIME-WAIT; keep at most `options.time_wait_limit` of them by calling `expire` on the
        oldest."""
