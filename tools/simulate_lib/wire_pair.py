"""Two stacks on a scripted wire with a virtual clock: loss, damage, reordering, duplication, delay, a rate; all from one seed.

Takes anything with the stack's verbs `receive`, `frames_to_send`, `poll_at`, `handle_timer` and `next_event`.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any, Final, Protocol


class StackVerbs(Protocol):
    """The five verbs."""

    def receive(self, frame: memoryview, port: int, now: float) -> None: ...
    def frames_to_send(self, now: float) -> list[tuple[int, bytes, Any]]: ...
    def poll_at(self) -> float | None: ...
    def handle_timer(self, now: float) -> None: ...
    def next_event(self) -> Any: ...


IPV4: Final = b"\x08\0"


@dataclass(frozen=True)
class Profile:
    """What the wire does to a frame: probabilities 0..1, times in seconds.

    With a `rate` (bytes per second, each way; 0: no limit) frames wait for their turn, and what would make more than
    `buffer` bytes wait is lost (0: no bound).
    """

    name: str = "perfect"
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    delay: float = 0.001
    jitter: float = 0.0
    corrupt: float = 0.0
    """Of one bit being wrong, behind the Ethernet header: the checksums' business."""
    rate: float = 0.0
    buffer: int = 0

    def __str__(self) -> str:
        return self.name


class WirePair:
    """`left` and `right` joined. `handlers` are called with (stack, event) for each event, `drop` may take single frames out.

    The clock starts at 1000 and moves only in `run`. Received frames are overwritten after `receive` returns, as a link's
    buffer is.
    """

    def __init__(self, left: StackVerbs, right: StackVerbs, profile: Profile = Profile(), seed: int = 0) -> None:
        self.left, self.right, self.profile = left, right, profile
        self.now = self.started = 1000.0
        self.random = random.Random(seed)
        self.events: dict[int, list[Any]] = {id(left): [], id(right): []}
        self.handler: Callable[[StackVerbs, Any], None] = lambda stack, event: None
        self.drop: Callable[[StackVerbs, bytes], bool] = lambda sender, frame: False
        self.frames = 0
        self._free_at = {id(left): 0.0, id(right): 0.0}
        """When the wire has taken all that a side has sent."""
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
        if frame[12:14] != IPV4:  # three ARP questions unanswered are nobody there, which is another test
            heapq.heappush(self._flying, (self.now + self.profile.delay, self.frames * 2, receiver, frame))
            return
        chance, profile = self.random.random, self.profile
        if self.drop(sender, frame) or chance() < profile.loss:
            return
        if profile.corrupt and chance() < profile.corrupt:
            at = self.random.randrange(14, len(frame))
            frame = frame[:at] + bytes((frame[at] ^ 1 << self.random.randrange(8),)) + frame[at + 1 :]
        waited = 0.0
        if profile.rate:
            waited = max(0.0, self._free_at[id(sender)] - self.now)
            if profile.buffer and waited * profile.rate + len(frame) > profile.buffer:
                return
            waited += len(frame) / profile.rate
            self._free_at[id(sender)] = self.now + waited
        for _ in range(2 if chance() < profile.duplicate else 1):
            at = self.now + waited + profile.delay + profile.jitter * chance()
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
