"""Two stacks on a scripted wire with a virtual clock: loss, reordering, duplication and delay, all from one seed.

Takes anything with the stack's verbs `receive`, `frames_to_send`, `poll_at`, `handle_timer` and `next_event`.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any, Protocol


class StackVerbs(Protocol):
    """The five verbs."""

    def receive(self, frame: memoryview, port: int, now: float) -> None: ...
    def frames_to_send(self, now: float) -> list[tuple[int, bytes, Any]]: ...
    def poll_at(self) -> float | None: ...
    def handle_timer(self, now: float) -> None: ...
    def next_event(self) -> Any: ...


@dataclass(frozen=True)
class Profile:
    """What the wire does to a frame: probabilities 0..1, times in seconds."""

    name: str = "perfect"
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    delay: float = 0.001
    jitter: float = 0.0

    def __str__(self) -> str:
        return self.name


class WirePair:
    """`left` and `right` joined. `handlers` are called with (stack, event) for each event, `drop` may take single frames out.

    The clock starts at 1000 and moves only in `run`. Received frames are overwritten after `receive` returns, as a link's
    buffer is.
    """

    def __init__(self, left: StackVerbs, right: StackVerbs, profile: Profile = Profile(), seed: int = 0) -> None:
        self.left, self.right, self.profile = left, right, profile
        self.now = 1000.0
        self.random = random.Random(seed)
        self.events: dict[int, list[Any]] = {id(left): [], id(right): []}
        self.handler: Callable[[StackVerbs, Any], None] = lambda stack, event: None
        self.drop: Callable[[StackVerbs, bytes], bool] = lambda sender, frame: False
        self.frames = 0
        self._flying: list[tuple[float, int, StackVerbs, bytes]] = []

    def events_of(self, stack: StackVerbs) -> list[Any]:
        """Every event the stack has raised so far."""
        return self.events[id(stack)]

    def flush(self) -> None:
        """Run both stacks to quiescence: events to the handler, frames onto the wire."""
        busy = True
        while busy:
            busy = False
            for stack, other in ((self.left, self.right), (self.right, self.left)):
                while (event := stack.next_event()) is not None:
                    busy = True
                    self.events[id(stack)].append(event)
                    self.handler(stack, event)
                for _, header, payload in stack.frames_to_send(self.now):
                    busy = True
                    self._launch(stack, other, header + bytes(payload))

    def _launch(self, sender: StackVerbs, receiver: StackVerbs, frame: bytes) -> None:
        self.frames += 1
        chance, profile = self.random.random, self.profile
        if self.drop(sender, frame) or chance() < profile.loss:
            return
        for _ in range(2 if chance() < profile.duplicate else 1):
            at = self.now + profile.delay + profile.jitter * chance()
            if chance() < profile.reorder:
                at += profile.delay * 4 * chance()
            heapq.heappush(self._flying, (at, self.frames * 2 + _, receiver, frame))

    def run(self, until: Callable[[], bool] = lambda: False, limit: float = 600.0) -> bool:
        """Move the clock from one happening to the next until `until`, `limit` seconds have passed or nothing is left to
        happen. Returns what `until` says then."""
        end = self.now + limit
        self.flush()
        while not until():
            timers = [at for stack in (self.left, self.right) if (at := stack.poll_at()) is not None]
            at = min(self._flying[0][0] if self._flying else inf, *timers, inf)
            if at > end:
                self.now = end
                return until()
            self.now = max(self.now, at)
            while self._flying and self._flying[0][0] <= self.now:
                _, _, receiver, frame = heapq.heappop(self._flying)
                buffer = bytearray(frame)
                receiver.receive(memoryview(buffer), 0, self.now)
                buffer[:] = b"\xdb" * len(buffer)
            for stack in (self.left, self.right):
                deadline = stack.poll_at()
                if deadline is not None and deadline <= self.now:
                    stack.handle_timer(self.now)
            self.flush()
        return True
