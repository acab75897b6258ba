"""Ports whose link takes nothing more just now: what their TCP connections have to say waits unsaid (DESIGN section 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sulla_trio.netstack.tcp import TcpConnection


class HeldPorts:
    """Connections with something due on a port whose out-queue has not drained.

    Nobody asks them for frames until it has. So of many acknowledgments only the newest is ever made, none is lost to a
    full queue, and what still waits in the queue is not sent again. Only connections in the stack's table wait here,
    which bounds it.
    """

    __slots__ = ("_batches", "_waiting")

    def __init__(self) -> None:
        self._batches: dict[int, int] = {}
        self._waiting: dict[int, dict[TcpConnection, None]] = {}

    def __bool__(self) -> bool:
        return bool(self._batches)

    def __contains__(self, port: int) -> bool:
        return port in self._batches

    def hold(self, port: int, batch: int) -> None:
        """The out-queue of `port` did not empty after the frames of `batch`. Harmless when it is held already."""
        if port not in self._batches:
            self._batches[port] = batch
            self._waiting[port] = {}

    def release(self, port: int) -> list[TcpConnection]:
        """The out-queue of `port` is empty: the connections that waited, in their order. Harmless when it is not held."""
        self._batches.pop(port, None)
        return list(self._waiting.pop(port, ()))

    def add(self, connection: TcpConnection) -> None:
        """`connection` has something due; its port is held."""
        self._waiting[connection.port][connection] = None

    def discard(self, connection: TcpConnection) -> bool:
        """Let `connection` wait no longer; whether it did."""
        waiting = self._waiting.get(connection.port)
        if waiting is None or connection not in waiting:
            return False
        del waiting[connection]
        return True

    def is_queued(self, connection: TcpConnection) -> bool:
        """Whether what `connection` sent last is still in an out-queue: its port is held since just that batch.

        While a port is not held, every batch leaves its queue empty; while it is, TCP adds nothing to it.
        """
        return self._batches.get(connection.port) == connection.sent_batch
