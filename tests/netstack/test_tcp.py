"""Two connections over a bad wire: the bytes are equal, the end is orderly, nothing is left. A failure is its seed."""

from __future__ import annotations

import random

import pytest

from sulla_trio.config import network_config
from sulla_trio.netstack.stack import Stack
from sulla_trio.netstack.tcp_options import TcpOptions
from sulla_trio.netstack.tcp_state import State
from sulla_trio.wire.tcp import ACK, PSH, emit_options
from tests.support.bare_stack import GATEWAY_MAC, GUEST_IP, GUEST_MAC, BareStack
from tests.support.peer import CollectingSink, established
from tests.support.two_drivers import guest_config
from tools.simulate_lib.transfer import PROFILES, Transfer
from tools.simulate_lib.wire_pair import Profile, WirePair


def check(transfer: Transfer) -> None:
    transfer.run()
    assert transfer.differences() == []


def bare_pair(mss: int = 1460, options: TcpOptions | None = None) -> tuple[BareStack, BareStack]:
    options = options or TcpOptions()
    left = BareStack(options, mss=mss)
    right = BareStack(options, GUEST_IP, GUEST_MAC, GATEWAY_MAC, mss, isn=0xFFFF_FF00)
    return left, right


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("profile", PROFILES.values(), ids=str)
def test_bytes_are_equal_over_a_bad_wire(profile: Profile, seed: int) -> None:
    left, right = bare_pair(mss=(536, 1460, 8960)[seed % 3])
    wire = WirePair(left, right, profile, seed)
    left.connect(GUEST_IP, 80, wire.now)
    check(Transfer(wire, 60_000, seed))
    for stack in (left, right):
        assert not stack.connections
        assert stack.credit.charged == stack.credit.connections == 0
        assert stack.poll_at() is None
        assert stack.counters.tcp_current_established == 0


def test_a_megabyte_over_a_perfect_wire_needs_no_retransmission() -> None:
    left, right = bare_pair()
    wire = WirePair(left, right)
    left.connect(GUEST_IP, 80, wire.now)
    check(Transfer(wire, 1_000_000, 1))
    assert left.counters.tcp_retransmits == right.counters.tcp_retransmits == 0
    assert left.counters.tcp_timeouts == right.counters.tcp_timeouts == 0


def test_big_segments() -> None:
    left, right = bare_pair(mss=64_960)
    wire = WirePair(left, right, Profile("lossy", loss=0.02), seed=3)
    left.connect(GUEST_IP, 80, wire.now)
    check(Transfer(wire, 2_000_000, 3))


@pytest.mark.parametrize("seed", range(4))
def test_the_real_stacks(seed: int) -> None:
    left = Stack(network_config(), random.Random(seed))
    right = Stack(guest_config(), random.Random(seed + 100))
    wire = WirePair(left, right, Profile("mixed", loss=0.02, reorder=0.1, duplicate=0.05), seed)
    left.connect(right.network.gateway_ip, 80, wire.now)
    check(Transfer(wire, 100_000, seed))
    assert not left.connections
    assert not right.connections


def test_a_reader_that_pauses_stops_the_sender_and_nothing_is_lost() -> None:
    left, right = bare_pair()
    wire = WirePair(left, right)
    connection = left.connect(GUEST_IP, 80, wire.now)
    wire.run(lambda: connection.state is State.ESTABLISHED)
    data = random.Random(5).randbytes(200_000)
    given = 0
    for _ in range(20):
        size = min(connection.send_room(), len(data) - given)
        connection.send(data[given : given + size], wire.now)
        given += size
        wire.run(limit=5)
    reader = right.accepted[0]
    assert reader.rcv.queued <= 65_536 + 128
    assert connection.snd.queued > 0
    got = bytearray()
    for _ in range(100):
        got += reader.receive(10_000, wire.now)
        size = min(connection.send_room(), len(data) - given)
        connection.send(data[given : given + size], wire.now)
        given += size
        wire.run(limit=61)
    assert got == data


def test_a_sink_that_takes_little_at_a_time() -> None:
    left, right = bare_pair()
    wire = WirePair(left, right, Profile("lossy", loss=0.02), seed=9)
    connection = left.connect(GUEST_IP, 80, wire.now)
    wire.run(lambda: bool(right.accepted))
    sink = right.accepted[0].sink = CollectingSink(room=1000)
    data = random.Random(6).randbytes(60_000)
    connection.send(data, wire.now)
    while len(sink.data) < len(data):
        sink.room = 777
        right.accepted[0].drain_to_sink(wire.now)
        assert wire.run(limit=1) is False
    assert sink.data == data
    assert right.accepted[0].bytes_in == connection.bytes_out == len(data)


def test_a_pump_of_no_news_costs_nothing_for_idle_connections() -> None:
    peer = established()
    calls = []
    peer.connection.host.mark_dirty = calls.append  # type: ignore[method-assign]
    for _ in range(10):
        peer.send(ACK | PSH, b"x")
    assert len(calls) == 0  # ten lone bytes: one delayed ACK, no frame due now
    peer.send(ACK, bytes(3000))
    peer.send(ACK, bytes(3000))
    assert calls == [peer.connection]


def test_header_prediction_handles_what_the_slow_path_would() -> None:
    """The same segments with a flag that leaves the fast path end in the same state."""
    results = []
    for extra in (0, 0x20):  # URG
        peer = established(emit_options(mss=1000, window_scale=2, timestamps=(1000, 0)))
        peer.connection.send(bytes(5000), peer.now)
        for at in range(5):
            peer.expect(ACK)
            peer.timestamps = (1001 + at, 0)
            peer.send(ACK | extra, bytes(700), window=9000 + at)
        connection = peer.connection
        snd, rcv = connection.snd, connection.rcv
        results.append(
            [getattr(snd, name) for name in ("una", "nxt", "max", "wnd", "max_wnd", "cwnd", "queued", "wl1", "wl2")]
            + [getattr(rcv, name) for name in ("nxt", "edge", "queued", "position", "unacked", "ts_recent")]
        )
    assert results[0] == results[1]
