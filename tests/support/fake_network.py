"""A network without a stack, for what the API needs of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import trio

from sulla_trio.config import NetworkConfig, network_config
from sulla_trio.errors import ForwardError
from sulla_trio.forward.inbound import ForwardEntry
from sulla_trio.forward.owned import PortState, WantedPort
from sulla_trio.services.events import EventLog
from sulla_trio.services.flows import FlowTable
from sulla_trio.services.leases import LeaseTable


class FakeForwards:
    """Remembers forwards, and fails as the real table does."""

    def __init__(self) -> None:
        self.entries: dict[tuple[str, str], ForwardEntry] = {}
        self.gate: trio.Event | None = None
        self.failure: Exception | None = None

    async def expose(self, local: str, remote: str, protocol: str, *, source: str) -> None:
        if self.gate is not None:
            await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        if (protocol, local) in self.entries:
            raise ForwardError("running", f"proxy already running for {protocol} on {local}")
        if protocol not in ("tcp", "udp"):
            raise ForwardError("protocol", f"unknown protocol {protocol}")
        self.entries[protocol, local] = ForwardEntry(local, protocol, remote, source)

    async def unexpose(self, local: str, protocol: str) -> None:
        if self.entries.pop((protocol, local), None) is None:
            raise ForwardError("unknown", "proxy not found")

    def all(self) -> list[ForwardEntry]:
        return sorted(self.entries.values())


class FakeOwned:
    """Remembers what owners were given, and that they ended; the ports named in `states` are not active."""

    def __init__(self, forwards: FakeForwards) -> None:
        self._forwards = forwards
        self.owners: dict[str, list[WantedPort]] = {}
        self.times: dict[str, float | None] = {}
        self.states: dict[str, WantedPort] = {}

    async def add(self, name: str, entry: ForwardEntry) -> None:
        await self._forwards.expose(entry.local, entry.remote, entry.protocol, source=entry.source)
        self.owners.setdefault(name, []).append(WantedPort(replace(entry, owner=name), PortState.ACTIVE))

    async def put(self, name: str, entries: Sequence[ForwardEntry], *, ttl: float | None) -> list[WantedPort]:
        if len(entries) > 100:
            raise ForwardError("denied", "one owner may have 100 forwards")
        active = [WantedPort(replace(entry, owner=name), PortState.ACTIVE) for entry in entries]
        self.owners[name] = [self.states.get(port.entry.local, port) for port in active]
        self.times[name] = ttl
        return self.owners[name]

    def heard(self, name: str, ttl: float) -> bool:
        self.times[name] = ttl
        return name in self.owners

    def end(self, name: str) -> bool:
        return self.owners.pop(name, None) is not None

    def all(self) -> list[WantedPort]:
        return [port for ports in self.owners.values() for port in ports]


class FakeDriver:
    def now(self) -> float:
        return 100.0


class FakeNetwork:
    """What `sulla_trio.api` needs of a `VirtualNetwork`; the gateway listens on a memory channel."""

    def __init__(self) -> None:
        self.network: NetworkConfig = network_config()
        self.driver = FakeDriver()
        self.forwards = FakeForwards()
        self.owned = FakeOwned(self.forwards)
        self.events = EventLog(lambda: 1000.0)
        self.flows = FlowTable()
        self.leases = LeaseTable(self.network)
        self.own_listeners: set[tuple[str, int]] = set()
        self.dial, self._accepting = trio.open_memory_channel[Any](10)

    def statistics(self) -> dict[str, Any]:
        return {"BytesSent": 2, "BytesReceived": 1, "TCP": {"Timeouts": 0}}

    def cam(self) -> dict[str, int]:
        return {"5a:94:ef:e4:0c:ee": 0}

    def listen_tcp(self, local_ip: bytes, port: int) -> ChannelListener:
        return ChannelListener(self._accepting)


def as_guest(stream: Any) -> Any:
    """Our end of a guest's connection: a memory stream that knows its addresses, as `TcpStream` does."""
    stream.local = ("192.168.127.1", 80)
    stream.peer = ("192.168.127.2", 45678)
    return stream


class ChannelListener(trio.abc.Listener[Any]):
    def __init__(self, channel: trio.MemoryReceiveChannel[Any]) -> None:
        self._channel = channel

    async def accept(self) -> Any:
        return as_guest(await self._channel.receive())

    async def aclose(self) -> None:
        await self._channel.aclose()
