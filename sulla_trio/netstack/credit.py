"""The window as credit: one budget for every byte that peers have been allowed to send us (DESIGN section 4).

A connection is charged for its window when it advertises it and gives it back when it ends, because a right window
edge never moves left. The same total bounds what is held for sending: each connection may hold its share.
"""

from __future__ import annotations

from typing import Final

SMALL_WINDOW: Final = 8 << 10
"""Window of a connection that starts when the budget is nearly spent: a few segments, so that it still makes
progress."""
MIN_SEND_SHARE: Final = 16 << 10
"""Bytes any connection may hold for sending however many there are: enough for ten segments of an Ethernet."""


class CreditBudget:
    """Bytes of receive window that all connections together may have advertised.

    Three quarters of `total` (bytes) may go to windows that grow, fifteen sixteenths to initial windows of the wanted
    size; beyond that a new connection gets `SMALL_WINDOW`, always, so that only the number of connections bounds the
    excess.
    """

    __slots__ = ("_growth_limit", "_initial_limit", "charged", "connections", "total")

    def __init__(self, total: int) -> None:
        self.total = total
        self.charged = 0
        self.connections = 0
        self._growth_limit = total * 3 // 4
        self._initial_limit = total * 15 // 16

    def open(self, wanted: int) -> int:
        """Charge the first window of a new connection; returns its size, `wanted` or less."""
        granted = wanted if self.charged + wanted <= self._initial_limit else min(wanted, SMALL_WINDOW)
        self.charged += granted
        self.connections += 1
        return granted

    def grow(self, amount: int) -> bool:
        """Charge `amount` more for a connection that has drained its window; False: not now."""
        if self.charged + amount > self._growth_limit:
            return False
        self.charged += amount
        return True

    def close(self, amount: int) -> None:
        """Give back all that a connection was charged."""
        self.charged -= amount
        self.connections -= 1

    def send_share(self) -> int:
        """Bytes one connection may hold for sending, sent or not."""
        return max(MIN_SEND_SHARE, self.total // (self.connections or 1))
