"""A real `Stack` with one scripted guest, driven for forwarding code alone: no link, no switch, trio's clock as the stack's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
import trio.testing

from sulla_trio.config import NetworkConfig
from sulla_trio.services.events import EventLog
from sulla_trio.services.flows import FlowTable
from tests.support.stack_guest import StackGuest


class LoneDriver:
    """A `forward.context.Driver` without ports; `port_gone` has it refuse tasks."""

    def __init__(self, guest: StackGuest, nursery: trio.Nursery) -> None:
        self.guest = guest
        self.network: NetworkConfig = guest.network
        self.stack = guest.stack
        self.events = EventLog(lambda: 0.0)
        self.flows = FlowTable(self.events)
        self.nursery = nursery
        self.port_gone = False

    def now(self) -> float:
        return trio.current_time()

    def pump(self) -> None:
        """Frames wait in the stack for the test to take them."""

    def spawn(self, port_id: int | None, task: Callable[..., Awaitable[None]], *args: Any) -> bool:
        if not self.port_gone:
            self.nursery.start_soon(task, *args)
        return not self.port_gone

    def port(self, port_id: int) -> None:
        return None

    def told(self, type: str) -> list[dict[str, Any]]:
        """The events of that type so far."""
        return [event for event in self.events.since(0) if event["type"] == type]

    async def frames(self) -> list[bytes]:
        """What the guest has been sent, once every task waits for something outside."""
        await trio.testing.wait_all_tasks_blocked()
        return self.guest.frames()


@asynccontextmanager
async def lone_driver(network: NetworkConfig | None = None) -> AsyncIterator[LoneDriver]:
    async with trio.open_nursery() as nursery:
        guest = StackGuest(network)
        guest.now = trio.current_time()
        yield LoneDriver(guest, nursery)
        nursery.cancel_scope.cancel()
