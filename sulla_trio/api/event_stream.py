"""The websocket of events: a bounded queue per subscriber, and the task that empties it.

A subscriber that does not keep up loses the oldest events and is told how many; the event log never waits for it.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable
from typing import Any, Final

import trio

from sulla_trio.errors import ConfigError
from sulla_trio.services.events import Event, EventLog

QUEUE_SIZE: Final = 1024
"""Events held for one subscriber: a burst of a second of a busy network, about half a MiB."""
LOST: Final = "events.lost"


class Subscription:
    """Events for one client, filtered by type. Use it as a context manager; only inside are new events collected."""

    def __init__(
        self, source: EventLog, *, since: int | None = None, types: Iterable[str] = (), size: int = QUEUE_SIZE
    ) -> None:
        self._source = source
        self._since = since
        self._types = tuple(types)
        self._size = size
        self._queue: deque[Event] = deque()
        self._lost = self._token = 0
        self._wake = trio.Event()

    def __enter__(self) -> Subscription:
        # No await between the two: no event is missed, none comes twice.
        if self._since is not None:
            self._lost = self._source.lost_since(self._since)
            for event in self._source.since(self._since):
                self._put(event)
        self._token = self._source.subscribe(self._put)
        return self

    def __exit__(self, *_: object) -> None:
        self._source.unsubscribe(self._token)

    def _put(self, event: Event) -> None:
        if self._types and not any(matches(event["type"], wanted) for wanted in self._types):
            return
        if len(self._queue) >= self._size:
            self._queue.popleft()
            self._lost += 1
        self._queue.append(event)
        self._wake.set()

    async def next(self) -> Event:
        """The oldest event not yet taken; first the number of those lost before it."""
        while not (self._lost or self._queue):
            self._wake = trio.Event()
            await self._wake.wait()
        await trio.lowlevel.checkpoint()
        if self._lost:
            count, self._lost = self._lost, 0
            return {"type": LOST, "count": count}
        return self._queue.popleft()


def matches(name: str, wanted: str) -> bool:
    """Whether the event type `name` is `wanted`, or of its family (``flow`` or ``flow.*``)."""
    family = wanted.removesuffix(".*")
    return name == family or name.startswith(family + ".")


def parse_query(since: str | None, types: str | None) -> tuple[int | None, tuple[str, ...]]:
    """The query of ``/events?since=SEQ&types=a,b``.

    Raises:
        ConfigError: `since` is not a number.
    """
    wanted = tuple(filter(None, (name.strip() for name in (types or "").split(","))))
    if since is None:
        return None, wanted
    if not (since.isascii() and since.isdigit() and len(since) < 20):
        raise ConfigError(f"since={since}: want the seq of an event, a number of 0 or more")
    return int(since), wanted


async def send_events(subscription: Subscription, websocket: Any) -> None:
    """Send events until cancelled or until the client says anything: it has nothing to say, and is closed (1003).

    `websocket` is Quart's. Its receive side is drained all the time, for Quart's queue of messages may be unbounded.
    """
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_send_all, subscription, websocket)
        await websocket.receive()
        nursery.cancel_scope.cancel()


async def _send_all(subscription: Subscription, websocket: Any) -> None:
    while True:
        event = await subscription.next()
        await websocket.send(json.dumps(event, separators=(",", ":"), default=str))
