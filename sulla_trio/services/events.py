"""The event log: every state change is one JSON-ready dict ``{seq, time, type, ...}`` in a bounded ring.

A reader follows it either by `EventLog.subscribe` (each event as it happens) or by `EventLog.since` (what it missed),
and learns from `EventLog.lost_since` how many went by unread. Nobody who reads slowly slows the one who emits. Source:
DESIGN section 5.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any, Final

from sulla_trio.errors import LocalError

RING_SIZE: Final = 4096
"""Events kept for `EventLog.since`: minutes of a busy network at some 300 bytes each (about 1 MB)."""
MAX_SUBSCRIBERS: Final = 1024
"""More callbacks than any number of websockets we accept: beyond it somebody forgets to unsubscribe."""

Event = dict[str, Any]


class EventLog:
    """A ring of events, the oldest going first.

    `clock` gives unix seconds; it is called once for each event.
    """

    def __init__(self, clock: Callable[[], float], size: int = RING_SIZE) -> None:
        self._clock = clock
        self._ring: deque[Event] = deque(maxlen=size)
        self._subscribers: dict[int, Callable[[Event], None]] = {}
        self._tokens = 0
        self.last_seq = 0
        """`seq` of the newest event; 0 before the first, which has 1."""

    def emit(self, type: str, /, **fields: Any) -> None:
        """Record one event and hand it to each subscriber, in the order they subscribed.

        `fields` are values that JSON knows. Nobody may change the dict afterwards: all readers share it.

        Raises:
            LocalError: a field is named ``seq``, ``time`` or ``type``.
        """
        self.last_seq += 1
        event: Event = {"seq": self.last_seq, "time": self._clock(), "type": type, **fields}
        if len(event) != len(fields) + 3:
            self.last_seq -= 1
            raise LocalError(f"event {type}: the fields seq, time and type are the log's own")
        self._ring.append(event)
        for token, callback in tuple(self._subscribers.items()):
            if token in self._subscribers:  # an earlier callback may have unsubscribed this one
                callback(event)

    @property
    def lost(self) -> int:
        """Events that have left the ring since start."""
        return self.last_seq - len(self._ring)

    def since(self, seq: int) -> list[Event]:
        """The events after `seq`, oldest first, as far as the ring still has them (0: all of those).

        A `seq` that was never given (the reader knew an earlier run of the daemon) yields all of them too.
        """
        return list(islice(self._ring, self._position(seq), None))

    def lost_since(self, seq: int) -> int:
        """How many events after `seq` the ring no longer has: what `since(seq)` leaves out at its beginning."""
        return 0 if seq > self.last_seq else max(0, self.lost - max(seq, 0))

    def _position(self, seq: int) -> int:
        """Index in the ring of the first event after `seq`."""
        return 0 if seq > self.last_seq else max(0, seq - self.lost)

    def subscribe(self, callback: Callable[[Event], None]) -> int:
        """Have `callback` called with each event from now on; returns the token for `unsubscribe`.

        The callback may neither wait nor raise: it puts the event on a bounded queue of its own and counts what does
        not fit.

        Raises:
            LocalError: there are `MAX_SUBSCRIBERS` already.
        """
        if len(self._subscribers) >= MAX_SUBSCRIBERS:
            raise LocalError(f"{MAX_SUBSCRIBERS} event subscribers and none unsubscribed")
        self._tokens += 1
        self._subscribers[self._tokens] = callback
        return self._tokens

    def unsubscribe(self, token: int) -> None:
        """End a subscription; one that has ended already is no error."""
        self._subscribers.pop(token, None)
