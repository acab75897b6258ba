"""Forwards that belong to somebody: he says which he wants, is told what became of each, and takes them with him.

A program that publishes ports (a guest agent, a container runtime's helper) may die without removing them; a port that
leads nowhere is worse than none. An owner is alive as long as he is heard from (`ttl`), or until `end`, which is what the
websocket he spoke on calls. What he wants and cannot have yet is tried again for him.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

import trio

from sulla_trio.errors import ForwardError
from sulla_trio.forward.inbound import ForwardEntry, ForwardTable

DEFAULT_TTL: Final = 15.0
"""Seconds that an owner lives after he was last heard from: three heart-beats of the usual 5."""
RETRY: Final = 5.0
"""Seconds between attempts to have what is wanted and not there."""
MAX_OWNERS: Final = 64
"""Programs that publish ports on one machine."""
MAX_WANTED: Final = 16_384
"""Forwards of one owner; each that is there costs a listener and a task."""
OTHER_PROGRAM: Final = "another program on the host"


class PortState(StrEnum):
    """What became of a forward that somebody wants."""

    ACTIVE = "active"
    PENDING = "pending"
    """Not yet, and tried again: its address is not there, or its name cannot be looked up now."""
    CONFLICT = "conflict"
    """Somebody else has the port (`by`); tried again."""
    PRIVILEGED = "privileged"
    """This user may not have the port; tried again, for an administrator may change that."""
    DENIED = "denied"
    """It can never be: a protocol we have not, an address that is none."""


@dataclass(frozen=True, slots=True)
class WantedPort:
    """One forward that an owner wants, and what became of it. `by` is who has the port, for a conflict."""

    entry: ForwardEntry
    state: PortState
    reason: str | None = None
    by: str | None = None


@dataclass(slots=True)
class _Owner:
    name: str
    deadline: float
    ports: dict[tuple[str, str], WantedPort] = field(default_factory=dict)
    lock: trio.Lock = field(default_factory=trio.Lock)
    """One change of his at a time."""
    over: bool = False


class OwnedForwards:
    """The owners of one forward table. `run` ends them and tries again for them."""

    def __init__(self, table: ForwardTable) -> None:
        self._table = table
        self._owners: dict[str, _Owner] = {}
        self._wake = trio.Event()

    def all(self) -> list[WantedPort]:
        """What every owner wants, by owner and then in his order."""
        return [port for owner in self._owners.values() for port in owner.ports.values()]

    async def put(
        self, name: str, entries: Iterable[ForwardEntry], *, ttl: float | None = DEFAULT_TTL
    ) -> list[WantedPort]:
        """Let owner `name` have exactly `entries`; what became of each, in their order.

        What he had besides is removed; what he has already is left as it is, connections and all. He lives for `ttl`
        seconds from now; None: until `end`.

        Raises:
            ForwardError: there are too many owners, or too many entries, or he ended meanwhile.
        """
        wanted = {(entry.protocol, entry.local): replace(entry, owner=name) for entry in entries}
        if len(wanted) > MAX_WANTED:
            raise ForwardError("denied", f"one owner may have {MAX_WANTED} forwards")
        owner = self._owner(name, ttl)
        async with owner.lock:
            for key in [key for key, port in owner.ports.items() if wanted.get(key) != port.entry]:
                await self._remove(owner, key, "not wanted any more")
            for key, entry in wanted.items():
                await self._settle(owner, key, entry)
            if owner.over:
                raise ForwardError("closed", f"{name} ended meanwhile")
            return [owner.ports[key] for key in wanted]

    async def add(self, name: str, entry: ForwardEntry, *, ttl: float | None = DEFAULT_TTL) -> None:
        """Let owner `name` have `entry` too, now or not at all.

        Raises:
            ForwardError: as `ForwardTable.expose`, and as `put`.
        """
        owner = self._owner(name, ttl)
        key = (entry.protocol, entry.local)
        entry = replace(entry, owner=name)
        async with owner.lock:
            if key not in owner.ports and len(owner.ports) >= MAX_WANTED:
                raise ForwardError("denied", f"one owner may have {MAX_WANTED} forwards")
            await self._table.start(entry)
            owner.ports[key] = WantedPort(entry, PortState.ACTIVE)
            if owner.over:
                await self._remove(owner, key, "owner gone")
                raise ForwardError("closed", f"{name} ended meanwhile")

    def heard(self, name: str, ttl: float = DEFAULT_TTL) -> bool:
        """Owner `name` is alive; False: he is none."""
        owner = self._owners.get(name)
        if owner is None or owner.over:
            return False
        if owner.deadline < math.inf:
            owner.deadline = trio.current_time() + ttl
        return True

    def end(self, name: str) -> bool:
        """Owner `name` is gone, and `run` removes what he has; False: he was none."""
        owner = self._owners.get(name)
        if owner is None or owner.over:
            return False
        owner.over = True
        self._wake.set()
        return True

    async def run(self) -> None:
        """End owners who are not heard from, and try again what they want, until cancelled."""
        retry_at = -math.inf
        while True:
            await self._wait(retry_at)
            now = trio.current_time()
            for owner in list(self._owners.values()):
                owner.over = owner.over or owner.deadline <= now
                if owner.over:
                    await self._end(owner)
            if now >= retry_at:
                retry_at = now + RETRY
                for owner in list(self._owners.values()):
                    await self._try_again(owner)

    async def _wait(self, retry_at: float) -> None:
        """Until something is due."""
        self._wake = trio.Event()
        if any(owner.over for owner in self._owners.values()):
            return
        due = min((owner.deadline for owner in self._owners.values()), default=math.inf)
        if self._owners:
            due = min(due, max(retry_at, trio.current_time()))
        with trio.CancelScope(deadline=due):
            await self._wake.wait()

    def _owner(self, name: str, ttl: float | None) -> _Owner:
        deadline = math.inf if ttl is None else trio.current_time() + ttl
        owner = self._owners.get(name)
        if owner is not None and owner.over:
            raise ForwardError("closed", f"{name} is just ending; try again")
        if owner is None:
            if len(self._owners) >= MAX_OWNERS:
                raise ForwardError("denied", f"there are {MAX_OWNERS} owners already")
            owner = self._owners[name] = _Owner(name, deadline)
            self._wake.set()
        else:
            owner.deadline = max(owner.deadline, deadline)
        return owner

    async def _end(self, owner: _Owner) -> None:
        async with owner.lock:
            for key in list(owner.ports):
                await self._remove(owner, key, "owner gone")
            del self._owners[owner.name]

    async def _remove(self, owner: _Owner, key: tuple[str, str], reason: str) -> None:
        port = owner.ports.pop(key)
        if self._is_there(port):
            await self._table.unexpose(port.entry.local, port.entry.protocol, reason=reason)

    def _is_there(self, port: WantedPort) -> bool:
        return self._table.find(port.entry.local, port.entry.protocol) is port.entry

    async def _settle(self, owner: _Owner, key: tuple[str, str], entry: ForwardEntry) -> None:
        """Have `entry` if that can be, and note what became of it; told when that has changed."""
        before = owner.ports.get(key)
        if before is not None and before.state is PortState.ACTIVE and self._is_there(before):
            return
        try:
            await self._table.start(entry)
        except ForwardError as failure:
            port = self._classify(entry, failure)
            if before is None or (before.state, before.by) != (port.state, port.by):
                self._table.failed(entry, failure)
            owner.ports[key] = port
        else:
            owner.ports[key] = WantedPort(entry, PortState.ACTIVE)

    async def _try_again(self, owner: _Owner) -> None:
        async with owner.lock:
            for key, port in list(owner.ports.items()):
                if port.state is PortState.ACTIVE:
                    if not self._is_there(port):
                        del owner.ports[key]  # somebody has unexposed it, and meant it
                elif port.state is not PortState.DENIED and not owner.over:
                    await self._settle(owner, key, port.entry)

    def _classify(self, entry: ForwardEntry, failure: ForwardError) -> WantedPort:
        reason = str(failure)
        match failure.code:
            case "in_use" | "running":
                return WantedPort(entry, PortState.CONFLICT, reason, self._holder(entry))
            case "privileged":
                return WantedPort(entry, PortState.PRIVILEGED, reason)
            case "bind" | "closed":
                return WantedPort(entry, PortState.PENDING, reason)
            case _:
                return WantedPort(entry, PortState.DENIED, reason)

    def _holder(self, entry: ForwardEntry) -> str:
        """Who has the port: another forward of this table (its owner, else where it came from), or nobody we know."""
        found = self._table.find(entry.local, entry.protocol)
        if found is None:
            port = entry.local.rpartition(":")[2]
            others = [one for one in self._table.all() if one.protocol == entry.protocol]
            found = next((one for one in others if one.local.rpartition(":")[2] == port), None)
        return OTHER_PROGRAM if found is None else found.owner or found.source
