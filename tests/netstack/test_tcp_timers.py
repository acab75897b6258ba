"""Retransmission, persist, keep-alive and the limits of closing states, on a virtual clock."""

from __future__ import annotations

import pytest

from sulla_trio.netstack.events import Closed
from sulla_trio.netstack.tcp_options import TcpOptions
from sulla_trio.netstack.tcp_state import State
from sulla_trio.wire.tcp import ACK, FIN, RST, SYN
from tests.support.peer import Peer, established, fin_wait_2, listening, syn_sent


def test_syn_is_sent_again_at_doubling_intervals_then_given_up() -> None:
    peer = syn_sent()
    peer.expect(SYN)
    assert peer.times(200) == [1, 3, 7, 15, 31, 63]
    assert peer.event(Closed).reason == "timeout"
    assert peer.stack.poll_at() is None


def test_syn_ack_is_given_up_too() -> None:
    peer = listening()
    peer.expect(SYN | ACK)
    assert len(peer.times(200)) == 6
    assert peer.event(Closed).reason == "timeout"
    assert not peer.stack.connections


def test_a_dead_peer_is_given_up() -> None:
    peer = established()
    peer.connection.send(b"data", peer.now)
    peer.expect(ACK)
    assert len(peer.times(1200)) == 15 + 1  # and the RST
    assert peer.event(Closed).reason == "timeout"


# The persist timer


def stalled(**arguments: object) -> Peer:
    """Established with a shut window and bytes to send."""
    peer = established(**arguments)  # type: ignore[arg-type]
    peer.send(window=0)
    peer.connection.send(b"stalled", peer.now)
    peer.expect_nothing()
    return peer


def test_a_shut_window_is_probed_with_one_byte() -> None:
    peer = stalled()
    peer.wait(0.21)
    peer.expect(ACK, b"s", seq=1)
    peer.send(ack=1, window=0)
    peer.expect_nothing()
    peer.send(ack=1, window=1000)
    peer.expect(ACK, b"stalled", seq=1)


def test_a_probe_that_was_taken() -> None:
    peer = stalled()
    peer.wait(0.21)
    peer.expect(ACK, b"s", seq=1)
    peer.send(ack=2, window=0)
    peer.wait(0.5)
    peer.expect(ACK, b"t", seq=2)
    peer.send(ack=3, window=100)
    peer.expect(ACK, b"alled", seq=3)


def test_probes_go_on_for_ever_while_they_are_answered() -> None:
    peer = stalled()
    count = 0
    for _ in range(400):
        peer.wait(5)
        while peer.sent:
            peer.expect(ACK, b"s", seq=1)
            peer.send(ack=1, window=0)
            count += 1
    assert peer.state is State.ESTABLISHED
    assert 30 < count < 50  # a minute apart in the end
    assert peer.stack.counters.tcp_zero_window_probes == count


def test_probes_without_answer_end_it() -> None:
    peer = stalled()
    peer.times(1500)
    assert peer.event(Closed).reason == "timeout"


def test_a_silly_window_is_used_by_the_probe() -> None:
    peer = established()
    peer.send(window=100)
    peer.connection.send(bytes(5000), peer.now)
    peer.expect_nothing()
    peer.wait(0.21)
    peer.expect(ACK, bytes(100), seq=1)


def test_probes_of_our_shut_window_are_answered() -> None:
    """The other way: a peer that asks is told, and told again once there is room (RFC 9293 section 3.8.6.1)."""
    peer = established()
    peer.send(ACK, bytes(60_000))
    peer.send(ACK, bytes(5_535))
    peer.expect(ACK, ack=65_536, window=0)
    for _ in range(3):
        peer.wait(5)
        peer.send(ACK, b"x", seq=65_536)
        peer.expect(ACK, ack=65_536, window=0)
        peer.wait(5)
        peer.send(ACK, seq=65_535)  # as Linux probes: without a byte
        peer.expect(ACK, ack=65_536, window=0)
    assert len(peer.connection.receive(65_535, peer.now)) == 65_535
    peer.expect(ACK, ack=65_536, window=65_535)


# Keep-alive


def test_a_dead_idle_peer_is_found_out() -> None:
    peer = established(options=TcpOptions(keepalive_idle=100.0, keepalive_interval=10.0, keepalive_probes=3))
    peer.wait(99)
    peer.expect_nothing()
    peer.wait(2)
    peer.expect(ACK, b"", seq=0)
    peer.wait(20)
    peer.expect(ACK, seq=0)
    peer.expect(ACK, seq=0)
    peer.wait(10)
    peer.expect(RST | ACK)
    assert peer.event(Closed).reason == "timeout"


def test_an_answer_keeps_it_alive() -> None:
    peer = established(options=TcpOptions(keepalive_idle=100.0, keepalive_interval=10.0, keepalive_probes=3))
    for _ in range(10):
        peer.wait(101)
        peer.expect(ACK, seq=0)
        peer.send()
    assert peer.state is State.ESTABLISHED
    peer.no_event()


# Closing states


def test_fin_wait_2_is_limited_once_the_owner_has_closed() -> None:
    peer = fin_wait_2()
    peer.wait(3600)
    assert peer.state is State.FIN_WAIT_2
    peer.connection.close(peer.now)
    peer.wait(61)
    assert peer.state is State.CLOSED
    assert peer.event(Closed).reason == "timeout"


def test_close_then_fin_wait_2() -> None:
    peer = established()
    peer.connection.close(peer.now)
    peer.expect(FIN | ACK)
    peer.send()
    peer.wait(61)
    assert peer.state is State.CLOSED


@pytest.mark.parametrize("make", [established, fin_wait_2, listening])
def test_a_timer_that_is_not_due_does_nothing(make: type[Peer]) -> None:
    peer = make()
    peer._collect()
    peer.sent.clear()
    peer.connection.handle_timer(peer.now)
    peer.expect_nothing()
    assert peer.connection.poll_at() == peer.connection.armed_at


def test_moving_a_deadline_is_no_push() -> None:
    peer = established()
    peer.connection.send(b"x", peer.now)
    peer.expect(ACK)
    pushed = peer.stack._pushed
    for _ in range(100):
        peer.send()
        peer.connection.send(b"x", peer.now)
        peer.expect(ACK)
    assert peer.stack._pushed <= pushed + 1
