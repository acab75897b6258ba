"""What is carried over the simulated wire: bytes both ways on one connection, each end with a FIN of its own."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address
from types import MappingProxyType
from typing import Any, Final

from sulla_trio.config import GUEST_MAC, NetworkConfig, network_config
from sulla_trio.netstack.events import Closed, Connected, ConnectionRequest, PeerClosed, Readable, Writable
from sulla_trio.netstack.stack import Stack
from sulla_trio.netstack.tcp import TcpConnection
from tools.simulate_lib.wire_pair import Profile, WirePair

GUEST_IP: Final = IPv4Address("192.168.127.2").packed
_PROFILES: Final = (
    Profile("perfect"),
    Profile("lossy", loss=0.03),
    Profile("duplicating", duplicate=0.3),
    Profile("reordering", reorder=0.3),
    Profile("jittery", jitter=0.01),
    Profile("slow", delay=0.3, loss=0.01),
    Profile("corrupting", corrupt=0.03),
    Profile("narrow", rate=125_000, buffer=16 << 10, delay=0.02),
    Profile("everything", loss=0.05, duplicate=0.05, reorder=0.1, jitter=0.002, corrupt=0.01),
    Profile("awful", loss=0.25, duplicate=0.2, reorder=0.3, jitter=0.01),
)
PROFILES: Final[Mapping[str, Profile]] = MappingProxyType({profile.name: profile for profile in _PROFILES})
PATIENCE: Final = 7200.0
"""Simulated seconds for a transfer; all timers of a connection have given up by then."""


class Transfer:
    """Each end sends its bytes and a FIN, and reads in pieces of random size until the other's FIN."""

    def __init__(self, wire: WirePair, size: int, seed: int) -> None:
        self.wire, self.random = wire, random.Random(seed)
        stacks = (wire.left, wire.right)
        self.data = {id(stack): self.random.randbytes(size) for stack in stacks}
        self.given = dict.fromkeys(self.data, 0)
        self.got = {key: bytearray() for key in self.data}
        self.got_fin: set[int] = set()
        self.closed: dict[int, str | None] = {}
        self.whole_at = 0.0
        """When the last byte had come."""
        wire.handler = self.handle

    def handle(self, stack: Any, event: Any) -> None:
        """What an owner of the connection does about `event` of `stack`."""
        if isinstance(event, ConnectionRequest):
            stack.accept(event, self.wire.now)
        elif isinstance(event, Connected | Writable):
            self._push(id(stack), event.connection)
        elif isinstance(event, Readable):
            while data := event.connection.receive(self.random.randrange(1, 20_000), self.wire.now):
                self.got[id(stack)] += data
                self.whole_at = self.wire.now
        elif isinstance(event, PeerClosed):
            self.got_fin.add(id(stack))
        elif isinstance(event, Closed):
            assert id(stack) not in self.closed
            self.closed[id(stack)] = event.reason

    def _push(self, key: int, connection: TcpConnection) -> None:
        data = self.data[key]
        while self.given[key] < len(data):
            size = min(connection.preferred_read(), self.random.randrange(1, 30_000))
            if not size:
                return
            connection.send(data[self.given[key] : self.given[key] + size], self.wire.now)
            self.given[key] += size
        connection.shutdown(self.wire.now)

    def run(self) -> None:
        """Until both ends are closed, and through TIME-WAIT."""
        self.wire.run(lambda: len(self.closed) == 2, limit=PATIENCE)
        self.wire.run(limit=200)

    def differences(self) -> list[str]:
        """What is not as it should be, in words; nothing if all is."""
        found = []
        left, right = self.data
        for name, here, there in (("left", left, right), ("right", right, left)):
            got, sent = bytes(self.got[here]), self.data[there]
            if got != sent:
                at = next(
                    (at for at, (a, b) in enumerate(zip(got, sent, strict=False)) if a != b), min(len(got), len(sent))
                )
                found.append(
                    f"{name} got {len(got)} of {len(sent)} bytes, the first wrong or missing one is number {at}"
                )
            if here not in self.got_fin:
                found.append(f"{name} was not told of the end")
            if here not in self.closed:
                found.append(f"{name} never closed")
        reasons = sorted(str(reason) for reason in self.closed.values())
        # The last of all, the ACK of the second FIN, may be lost for as long as TIME-WAIT lasts: RFC 9293 section 3.6.1.
        if reasons not in (["None", "None"], ["None", "reset"], ["None", "timeout"]):
            found.append(f"closed for {' and '.join(reasons)}")
        for name, stack in (("left", self.wire.left), ("right", self.wire.right)):
            found += self._left_behind(name, stack)
        return found

    def _left_behind(self, name: str, stack: Any) -> list[str]:
        left = {
            "connections": len(stack.connections),
            "bytes of window charged": stack.credit.charged,
            "counted as established": stack.counters.tcp_current_established,
        }
        return [f"{name} has {count} {what} left" for what, count in left.items() if count]


def two_stacks(seed: int, mtu: int) -> tuple[Stack, Stack]:
    """A gateway's stack and a guest's."""
    gateway = network_config(mtu=mtu)
    return Stack(gateway, random.Random(seed)), Stack(guest_config(gateway), random.Random(seed + 1_000_000))


def guest_config(gateway: NetworkConfig) -> NetworkConfig:
    """The guest's view of `gateway`: its own address and MAC where the gateway's would be."""
    host_ip = IPv4Address("192.168.127.253").packed
    return replace(gateway, gateway_ip=GUEST_IP, host_ip=host_ip, gateway_mac=GUEST_MAC)


def simulate(profile: Profile, seed: int, *, size: int, mtu: int) -> Transfer:
    """One transfer of `size` bytes each way between two stacks, run to its end."""
    left, right = two_stacks(seed, mtu)
    wire = WirePair(left, right, profile, seed)
    left.connect(GUEST_IP, 80, wire.now)
    transfer = Transfer(wire, size, seed)
    transfer.run()
    return transfer
