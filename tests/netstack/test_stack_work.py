"""The stack's timers and work, which is per segment and never per connection, and two stacks on a lossy wire."""

from __future__ import annotations

import gc
import random
import sys
from typing import Any

import pytest

from sulla_trio.config import network_config
from sulla_trio.netstack.events import (
    Closed,
    Connected,
    ConnectionRequest,
    Readable,
    Writable,
)
from sulla_trio.netstack.stack import Stack
from sulla_trio.netstack.tcp import TcpConnection
from tests.support.stack_guest import OpenGuest
from tests.support.two_drivers import guest_config
from tools.simulate_lib.wire_pair import Profile, WirePair

# Timers and work


def test_the_heap_does_not_grow_with_rearming() -> None:
    guest = OpenGuest()
    for earlier in range(1000):
        guest.connection.arm(guest.now + 5000 - earlier)
        assert len(guest.stack._timers) <= 66
    assert guest.stack.poll_at() == guest.now + 4001


def test_stale_timers_are_never_due() -> None:
    guest = OpenGuest()
    guest.connection.send(b"x", guest.now)
    guest.frames()
    guest.connection.abort(guest.now)
    guest.frames()
    assert guest.wait(10_000) == []
    assert guest.stack.poll_at() is None


def python_calls(idle: int) -> int:
    """How many Python functions a batch of ten segments, its frames and its timer call beside `idle` connections."""
    guest = OpenGuest()
    for number in range(idle):
        guest.open(5000 + number)
    frames = [memoryview(bytearray(guest.data(bytes(1000), seq=101 + 1000 * at))) for at in range(10)]
    count = 0

    def profile(frame: object, what: str, argument: object) -> None:
        nonlocal count
        count += what == "call"

    stack = guest.stack
    gc.disable()  # a collection in the midst would call its callbacks, hypothesis's among them
    sys.setprofile(profile)
    try:
        for frame in frames:
            stack.receive(frame, guest.port, guest.now)
        sent = stack.frames_to_send(guest.now)
        stack.poll_at()
        stack.handle_timer(guest.now)
        event = stack.next_event()
    finally:
        sys.setprofile(None)
        gc.enable()
    assert len(sent) == 1
    assert isinstance(event, Readable)
    return count


def test_ten_thousand_idle_connections_cost_a_batch_nothing() -> None:
    assert python_calls(10_000) == python_calls(10)


# Two of them


@pytest.mark.parametrize("seed", range(3))
def test_many_connections_between_two_stacks_over_a_lossy_wire(seed: int) -> None:
    """Five each way, every one with its own bytes in both directions, all at once."""
    left, right = Stack(network_config(), random.Random(seed)), Stack(guest_config(), random.Random(seed + 50))
    wire = WirePair(left, right, Profile("mixed", loss=0.03, reorder=0.1, duplicate=0.05), seed)
    got: dict[tuple[int, bytes], bytearray] = {}
    reasons: list[str | None] = []

    def text(stack: object, connection: TcpConnection) -> bytes:
        return random.Random(f"{stack is left} {sorted((connection.local_port, connection.remote_port))}").randbytes(
            30_000
        )

    def push(connection: TcpConnection, data: bytes) -> None:
        while connection.bytes_out < len(data):
            size = min(connection.send_room(), 7000)
            if not size:
                return
            connection.send(data[connection.bytes_out : connection.bytes_out + size], wire.now)
        connection.shutdown(wire.now)

    def handle(stack: Any, event: Any) -> None:
        if isinstance(event, ConnectionRequest):
            stack.accept(event, wire.now)
        elif isinstance(event, (Connected, Writable)):
            push(event.connection, text(stack, event.connection))
        elif isinstance(event, Readable):
            key = (id(stack), event.connection.key)
            got.setdefault(key, bytearray()).extend(event.connection.receive(1 << 20, wire.now))
            other = left if stack is right else right
            assert text(other, event.connection).startswith(bytes(got[key]))
        elif isinstance(event, Closed):
            reasons.append(event.reason)

    wire.handler = handle
    for number in range(5):
        left.connect(right.network.gateway_ip, 80, wire.now, local_port=20_000 + number)
        right.connect(left.network.gateway_ip, 81, wire.now, local_port=30_000 + number)
    assert wire.run(lambda: len(reasons) == 20, limit=3600)
    assert set(reasons) == {None}
    assert [len(data) for data in got.values()] == [30_000] * 20
    wire.run(limit=200)
    assert left.connections == right.connections == {}
    assert left.poll_at() is right.poll_at() is None
    assert left.credit.charged == right.credit.charged == 0
    assert left.counters.tcp_current_established == 0
