"""Opening in both directions, closing from either side, and what the owner hears, state by state."""

from __future__ import annotations

import pytest

from sulla_trio.errors import LocalError
from sulla_trio.netstack.events import Closed, Connected, PeerClosed, Readable
from sulla_trio.netstack.tcp_options import TcpOptions
from sulla_trio.netstack.tcp_state import State
from sulla_trio.wire.tcp import ACK, CWR, ECE, FIN, RST, SYN, Segment, emit_options
from tests.support import peer as peers
from tests.support.peer import Peer, established, listening, syn_sent

OFFER = emit_options(mss=1400, window_scale=3, sack_permitted=True, timestamps=(7, 0))

# SYN-RECEIVED


def test_passive_open() -> None:
    peer = listening()
    assert peer.state is State.SYN_RECEIVED
    answer = peer.expect(SYN | ACK, seq=0, ack=1, window=65_535)
    assert (answer.mss, answer.window_scale, answer.sack_permitted, answer.ts_value) == (1460, None, False, None)
    peer.no_event()
    peer.send()
    assert peer.event(Connected).connection is peer.connection
    assert peer.state is State.ESTABLISHED
    assert peer.stack.counters.tcp_passive_opens == peer.stack.counters.tcp_current_established == 1
    peer.expect_nothing()


def test_options_are_accepted_when_offered() -> None:
    peer = listening(OFFER)
    answer = peer.expect(SYN | ACK)
    assert (answer.mss, answer.window_scale, answer.sack_permitted, answer.ts_echo) == (1460, 7, True, 7)
    assert peer.connection.snd.mss == 1400 - 12
    assert peer.connection.snd.shift == 3


@pytest.mark.parametrize(("offered", "used"), [(None, 536), (0, 64), (9000, 1460), (1000, 1000)])
def test_the_smaller_mss_counts(offered: int | None, used: int) -> None:
    peer = listening(emit_options(mss=offered) if offered is not None else b"")
    assert peer.connection.snd.mss == used


def test_a_window_scale_beyond_14_is_14() -> None:
    assert listening(emit_options(window_scale=20)).connection.snd.shift == 14


def test_a_syn_that_asks_for_ecn_connects() -> None:
    peer = Peer()
    peer.send(SYN | ECE | CWR, seq=0)
    peer.expect(SYN | ACK, ack=1)


def test_a_repeated_syn_gets_the_syn_ack_again() -> None:
    peer = listening()
    peer.expect(SYN | ACK)
    peer.send(SYN, seq=0)
    peer.expect(SYN | ACK, seq=0, ack=1)


def test_data_with_the_last_ack_of_the_handshake() -> None:
    peer = listening()
    peer.expect(SYN | ACK)
    peer.send(ACK, b"hello")
    peer.event(Connected)
    peer.event(Readable)
    assert peer.connection.receive(100, peer.now) == b"hello"


def test_what_was_queued_during_the_handshake_is_sent() -> None:
    peer = listening()
    peer.expect(SYN | ACK)
    peer.connection.send(b"early", peer.now)
    peer.connection.shutdown(peer.now)
    assert peer.state is State.SYN_RECEIVED
    peer.expect_nothing()
    peer.send()
    peer.expect(ACK | FIN, b"early", seq=1)
    assert peer.state is State.FIN_WAIT_1


def test_a_reset_in_syn_received() -> None:
    peer = listening()
    peer.expect(SYN | ACK)
    peer.send(RST, seq=1)
    assert peer.event(Closed).reason == "reset"
    assert not peer.stack.connections


def test_a_wrong_ack_in_syn_received_is_reset() -> None:
    peer = listening()
    peer.expect(SYN | ACK)
    peer.send(ACK, ack=5)
    peer.expect(RST, seq=5)
    assert peer.state is State.SYN_RECEIVED


def test_abort_in_syn_received() -> None:
    peer = listening()
    peer.connection.abort(peer.now)
    peer.expect(RST | ACK, seq=1, ack=1)
    assert peer.event(Closed).reason == "aborted"


# SYN-SENT


def test_active_open() -> None:
    peer = syn_sent()
    syn = peer.expect(SYN, seq=0)
    assert (syn.mss, syn.window_scale, syn.sack_permitted, syn.window) == (1460, 7, True, 65_535)
    assert syn.ts_value is not None
    peer.send(SYN | ACK, seq=0, options=emit_options(mss=1460))
    peer.expect(ACK, seq=1, ack=1)
    peer.event(Connected)
    assert peer.state is State.ESTABLISHED
    assert peer.connection.timestamps is False


def test_refused() -> None:
    peer = syn_sent()
    peer.expect(SYN)
    peer.send(RST | ACK, seq=0)
    assert peer.event(Closed).reason == "refused"
    assert peer.connection.error == "refused"


def test_a_reset_with_a_wrong_ack_does_not_refuse() -> None:
    peer = syn_sent()
    peer.expect(SYN)
    peer.send(RST | ACK, seq=0, ack=77)
    peer.send(RST, seq=0)
    assert peer.state is State.SYN_SENT


def test_an_ack_of_something_else_is_reset() -> None:
    peer = syn_sent()
    peer.expect(SYN)
    peer.send(ACK, seq=0, ack=77)
    peer.expect(RST, seq=77)
    assert peer.state is State.SYN_SENT


def test_simultaneous_open() -> None:
    peer = syn_sent()
    peer.expect(SYN, seq=0)
    peer.send(SYN, seq=0, options=emit_options(mss=1460))
    assert peer.state is State.SYN_RECEIVED
    peer.expect(SYN | ACK, seq=0, ack=1)
    peer.send(SYN | ACK, seq=0)
    peer.event(Connected)
    assert peer.state is State.ESTABLISHED


def test_nothing_is_sent_before_the_route_is_known() -> None:
    peer = syn_sent()
    peer.connection.header, mac = None, peer.connection.mac
    peer.expect_nothing()
    assert mac is not None
    peer.connection.resolved(mac, 0)
    peer.expect(SYN)


def test_no_answer_from_arp() -> None:
    peer = syn_sent()
    peer.connection.fail("timeout", peer.now)
    assert peer.event(Closed).reason == "timeout"
    peer.expect_nothing()


def test_closing_before_the_answer() -> None:
    peer = syn_sent()
    peer.expect(SYN)
    peer.connection.close(peer.now)
    assert peer.event(Closed).reason == "aborted"
    peer.expect_nothing()
    assert peer.stack.credit.charged == 0


# ESTABLISHED and on


def test_the_peer_closes_first() -> None:
    peer = established()
    peer.send(FIN | ACK, b"bye")
    peer.event(Readable)
    peer.expect(ACK, ack=5)
    assert peer.state is State.CLOSE_WAIT
    peer.no_event()  # a byte is still queued
    assert peer.connection.eof_received
    assert not peer.connection.read_closed
    assert peer.connection.receive(2, peer.now) == b"by"
    peer.no_event()
    assert peer.connection.receive(2, peer.now) == b"e"
    peer.event(PeerClosed)
    assert peer.connection.read_closed
    peer.connection.send(b"last words", peer.now)
    peer.connection.shutdown(peer.now)
    assert peer.state is State.LAST_ACK
    peer.expect(FIN | ACK, b"last words")
    peer.send()
    assert peer.event(Closed).reason is None
    assert peer.state is State.CLOSED
    assert not peer.stack.connections
    assert peer.stack.credit.charged == 0


def test_we_close_first_and_go_on_receiving() -> None:
    peer = peers.fin_wait_1()
    peer.send()
    assert peer.state is State.FIN_WAIT_2
    for _ in range(3):
        peer.send(ACK, b"more")
    peer.event(Readable)
    assert peer.connection.receive(100, peer.now) == b"more" * 3
    peer.send(FIN | ACK)
    peer.event(PeerClosed)
    assert peer.event(Closed).reason is None
    assert peer.state is State.TIME_WAIT
    assert peer.stack.time_wait == [peer.connection]
    assert peer.stack.credit.charged == 0


def test_simultaneous_close() -> None:
    peer = peers.closing()
    peer.send()
    assert peer.state is State.TIME_WAIT
    assert peer.event(Closed).reason is None


def test_fin_and_ack_of_fin_in_one_segment() -> None:
    peer = peers.fin_wait_1()
    peer.send(FIN | ACK)
    assert peer.state is State.TIME_WAIT


def test_the_end_waits_for_the_reader() -> None:
    peer = established()
    peer.send(FIN | ACK, b"unread")
    peer.connection.shutdown(peer.now)
    peer.expect(FIN | ACK)
    peer.send()
    assert peer.state is State.CLOSED
    peer.event(Readable)
    peer.no_event()
    assert peer.connection.receive(100, peer.now) == b"unread"
    peer.event(PeerClosed)
    peer.event(Closed)
    assert peer.stack.credit.charged == 0


def test_the_owner_may_give_up_on_the_rest() -> None:
    peer = established()
    peer.send(FIN | ACK, b"unread")
    peer.connection.shutdown(peer.now)
    peer.expect(FIN | ACK)
    peer.send()
    peer.event(Readable)
    peer.connection.abort(peer.now)
    assert peer.event(Closed).reason == "aborted"
    peer.connection.abort(peer.now)
    peer.no_event()
    assert peer.stack.credit.charged == 0


def test_abort() -> None:
    peer = established()
    peer.connection.send(b"lost", peer.now)
    peer.connection.abort(peer.now)
    peer.expect(RST | ACK, seq=1, ack=1)
    assert peer.event(Closed).reason == "aborted"
    assert peer.stack.counters.tcp_resets_sent == 1
    assert peer.stack.counters.tcp_current_established == 0
    peer.connection.send(b"ignored", peer.now)
    peer.expect_nothing()


def test_close_with_unread_bytes_is_an_abort() -> None:
    peer = established()
    peer.send(ACK, b"unread")
    peer.connection.close(peer.now)
    peer.expect(RST | ACK)


def test_bytes_after_close_are_answered_with_reset() -> None:
    peer = established()
    peer.connection.close(peer.now)
    peer.expect(FIN | ACK)
    peer.send()
    peer.send(ACK, b"too late")
    peer.expect(RST | ACK)
    assert peer.event(Closed).reason == "aborted"


def test_send_after_shutdown_is_our_own_fault() -> None:
    peer = peers.fin_wait_1()
    with pytest.raises(LocalError):
        peer.connection.send(b"x", peer.now)
    peer.connection.shutdown(peer.now)
    peer.expect_nothing()


def test_time_wait_answers_a_repeated_fin_and_lasts_longer() -> None:
    peer = peers.time_wait(options=TcpOptions(time_wait=10.0))
    peer.wait(6)
    peer.send(FIN | ACK, seq=1)
    peer.expect(ACK, ack=2)
    peer.wait(6)
    assert peer.state is State.TIME_WAIT
    peer.wait(5)
    assert peer.state is State.CLOSED
    assert not peer.stack.connections
    assert peer.stack.poll_at() is None


def test_time_wait_gives_way_to_a_newer_syn() -> None:
    peer = peers.time_wait()
    nxt = peer.connection.rcv.nxt
    newer = Segment(40_000, 80, (nxt + 1) & 0xFFFFFFFF, 0, SYN, 0, 0, 0, 0)
    assert peer.connection.reopens(newer)
    assert not peer.connection.reopens(newer._replace(seq=nxt - 100))
    assert not peer.connection.reopens(newer._replace(flags=SYN | ACK))
    assert not established().connection.reopens(newer)


def test_with_timestamps_time_wait_gives_way_to_a_later_one() -> None:
    """RFC 6191 section 2: the timestamp decides, and only one that is the same leaves it to the sequence number."""
    peer = peers.time_wait(offer=emit_options(mss=1460, timestamps=(1000, 0)))
    nxt = peer.connection.rcv.nxt
    syn = Segment(40_000, 80, nxt - 5000 & 0xFFFFFFFF, 0, SYN, 0, 0, 0, 0, ts_value=1001)
    assert peer.connection.reopens(syn)
    assert not peer.connection.reopens(syn._replace(ts_value=999))
    assert not peer.connection.reopens(syn._replace(ts_value=1000))
    assert peer.connection.reopens(syn._replace(ts_value=1000, seq=nxt + 1))


def test_a_reset_ends_every_synchronized_state() -> None:
    for state in ("established", "close_wait", "last_ack", "fin_wait_1", "fin_wait_2", "closing", "time_wait"):
        peer: Peer = getattr(peers, state)()
        peer.send(RST)
        assert peer.state is State.CLOSED, state
        assert not peer.stack.connections
        assert peer.stack.poll_at() is None
        peer.expect_nothing()
        assert peer.stack.counters.tcp_current_established == 0


@pytest.mark.parametrize("state", ["established", "close_wait", "last_ack", "fin_wait_1", "fin_wait_2", "closing"])
def test_a_lost_port_ends_every_state_silently(state: str) -> None:
    peer: Peer = getattr(peers, state)()
    peer.connection.fail("reset", peer.now)
    assert peer.event(Closed).reason == "reset"
    peer.expect_nothing()
    assert peer.stack.credit.charged == 0
