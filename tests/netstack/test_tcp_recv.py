"""The window as credit, and delivery to the sink or the queue."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sulla_trio.netstack.credit import SMALL_WINDOW, CreditBudget
from sulla_trio.netstack.events import PeerClosed, Readable, SinkClosed
from sulla_trio.netstack.tcp_options import TcpOptions
from sulla_trio.netstack.tcp_recv import WINDOW_SLACK, Receiver
from sulla_trio.wire.tcp import ACK, FIN, emit_options
from tests.support.peer import CollectingSink, Peer, established

SCALED = emit_options(mss=1460, window_scale=7)
KIB = 1 << 10


def fill(peer: Peer, count: int, size: int = 1460) -> None:
    for _ in range(count):
        peer.send(ACK, bytes(size))


# Sink


def test_in_order_bytes_go_straight_to_the_sink() -> None:
    peer = established()
    sink = peer.connection.sink = CollectingSink()
    peer.send(ACK, b"hello")
    peer.send(ACK, b" world")
    assert sink.data == b"hello world"
    assert peer.connection.bytes_in == 11
    assert peer.connection.rcv.queue is None
    peer.no_event()


def test_what_the_sink_does_not_take_is_queued_and_said_once() -> None:
    peer = established()
    sink = peer.connection.sink = CollectingSink(room=3)
    peer.send(ACK, b"hello")
    peer.send(ACK, b" world")
    assert sink.data == b"hel"
    peer.event(Readable)
    peer.no_event()
    sink.room = 4
    assert not peer.connection.drain_to_sink(peer.now)
    sink.room = 100
    assert peer.connection.drain_to_sink(peer.now)
    assert sink.data == b"hello world"
    peer.send(ACK, b"!")
    assert sink.data == b"hello world!"
    sink.room = 0
    peer.send(ACK, b"?")
    peer.event(Readable)


def test_the_sink_is_not_asked_while_bytes_are_queued() -> None:
    peer = established()
    sink = peer.connection.sink = CollectingSink(room=0)
    peer.send(ACK, b"a")
    sink.room = 100
    peer.send(ACK, b"b")
    assert sink.data == b""
    peer.connection.drain_to_sink(peer.now)
    assert sink.data == b"ab"


def test_fin_is_told_after_the_last_byte_was_taken() -> None:
    peer = established()
    sink = peer.connection.sink = CollectingSink(room=0)
    peer.send(ACK | FIN, b"bye")
    peer.event(Readable)
    peer.no_event()
    sink.room = 100
    assert peer.connection.drain_to_sink(peer.now)
    peer.event(PeerClosed)


def test_a_closed_sink_is_an_event_and_takes_nothing() -> None:
    peer = established()
    peer.connection.sink = sink = CollectingSink()
    sink.closed = True
    peer.send(ACK, b"x")
    peer.send(ACK, b"y", seq=1)
    peer.event(SinkClosed)
    peer.no_event()
    assert peer.connection.bytes_in == 0


def test_a_sink_that_closes_while_draining() -> None:
    peer = established()
    peer.connection.sink = sink = CollectingSink(room=0)
    peer.send(ACK, b"x")
    peer.event(Readable)
    sink.closed = True
    assert peer.connection.drain_to_sink(peer.now)
    peer.event(SinkClosed)
    assert peer.connection.rcv.queued == 0


def test_receive_takes_at_most_what_is_asked_for() -> None:
    peer = established()
    peer.send(ACK, b"abcdef")
    assert [peer.connection.receive(n, peer.now) for n in (0, 4, 4, 4)] == [b"", b"abcd", b"ef", b""]


# Acknowledgments


def test_a_lone_small_segment_is_acknowledged_late() -> None:
    peer = established()
    peer.send(ACK, b"x")
    peer.expect_nothing()
    peer.wait(0.039)
    peer.expect_nothing()
    peer.wait(0.002)
    peer.expect(ACK, ack=2)
    peer.wait(10)
    peer.expect_nothing()


def test_every_second_full_segment_is_acknowledged() -> None:
    peer = established()
    fill(peer, 1)
    peer.expect_nothing()
    fill(peer, 1)
    peer.expect(ACK, ack=2921)
    peer.expect_nothing()


def test_a_batch_has_one_acknowledgment() -> None:
    peer = established()
    fill(peer, 20)
    peer.expect(ACK, ack=1 + 20 * 1460)
    peer.expect_nothing()


def test_an_answer_carries_the_acknowledgment() -> None:
    peer = established()
    peer.send(ACK, b"ping")
    peer.connection.send(b"pong", peer.now)
    peer.expect(ACK, b"pong", ack=5)
    peer.wait(1)
    assert all(payload == b"pong" for payload in peer.payloads)  # only its retransmissions


# The window


def test_it_shrinks_as_the_queue_fills_and_opens_when_it_drains() -> None:
    peer = established(SCALED)
    fill(peer, 44)
    assert peer.expect(ACK).window == (65_535 - 44 * 1460 + 127) // 128
    peer.send(ACK, bytes(65_536 - 44 * 1460))
    peer.wait(1)
    assert peer.expect(ACK).window <= 1
    assert peer.connection.receive(1000, peer.now)
    peer.expect_nothing()  # not worth a segment (RFC 9293 section 3.8.6.2.2)
    assert len(peer.connection.receive(10_000, peer.now)) == 10_000
    peer.expect(ACK, ack=65_537)


def test_it_grows_only_when_a_full_window_was_drained() -> None:
    peer = established(SCALED)
    peer.connection.sink = CollectingSink()
    rcv = peer.connection.rcv
    fill(peer, 44)
    peer.expect(ACK)
    assert rcv.capacity == 64 * KIB
    fill(peer, 2)
    peer.expect(ACK, window=(128 * KIB) >> 7)
    assert rcv.capacity == peer.stack.credit.charged == 128 * KIB


def test_a_reader_that_does_not_drain_gets_no_more() -> None:
    peer = established(SCALED)
    fill(peer, 45)
    peer.expect(ACK)
    assert peer.connection.rcv.capacity == 64 * KIB


def test_it_grows_to_the_maximum_and_no_further() -> None:
    peer = established(SCALED)
    peer.connection.sink = CollectingSink()
    for _ in range(200):
        fill(peer, 40)
        peer.expect(ACK)
    assert peer.connection.rcv.capacity == 4 << 20


def test_without_scaling_it_stays_below_64_kib() -> None:
    peer = established()
    peer.connection.sink = CollectingSink()
    for _ in range(10):
        fill(peer, 40)
        assert peer.expect(ACK).window <= 0xFFFF
    assert peer.connection.rcv.capacity == 64 * KIB


def test_near_the_limit_a_new_connection_gets_little() -> None:
    peer = established(SCALED, options=TcpOptions(budget=64 * KIB))
    assert peer.connection.rcv.capacity == SMALL_WINDOW
    assert (peer.connection.rcv.edge - peer.connection.rcv.nxt) & 0xFFFFFFFF == SMALL_WINDOW


def test_a_peer_that_creeps_is_not_heard_for_ever() -> None:
    peer = established(SCALED)
    for _ in range(100):
        peer.send(ACK, bytes(1460))
        peer._collect()
    for _ in range(3 * WINDOW_SLACK):
        peer.send(ACK, b"x", seq=peer.connection.rcv.position + 1)
        peer._collect()
    assert peer.connection.rcv.queued <= 64 * KIB + WINDOW_SLACK + 1460


@pytest.mark.parametrize("scaled", [True, False])
@given(steps=st.lists(st.tuples(st.sampled_from(["segment", "read", "ack"]), st.integers(1, 3000)), max_size=150))
def test_the_right_edge_never_moves_left(scaled: bool, steps: list[tuple[str, int]]) -> None:
    rcv = Receiver(TcpOptions(initial_window=8000, max_window=64_000), CreditBudget(1 << 20), 1460)
    rcv.synchronize(0xFFFFE000, scaled=scaled)
    start = rcv.nxt
    told = rcv.syn_window()
    position = 0
    for verb, amount in steps:
        if verb == "segment":
            size = min(amount, told - position)
            if size <= 0 or rcv.is_full:
                continue
            rcv.enqueue(memoryview(bytes(size)))
            rcv.position += size
            rcv.nxt = (rcv.nxt + size) & 0xFFFFFFFF
            position += size
        elif verb == "read":
            rcv.take(amount)
        else:
            edge = position + (rcv.advertise() << rcv.shift)
            assert edge >= told
            assert (start + edge) & 0xFFFFFFFF == rcv.edge
            assert edge - position <= rcv.capacity + 128
            told = edge
