"""Recovery from loss without SACK: time-outs (RFC 6298), fast retransmit and NewReno (RFC 5681, 6582); with it: test_tcp_sack."""

from __future__ import annotations

from sulla_trio.wire.tcp import ACK, FIN, emit_options
from tests.support.peer import Peer, established


def flying(mss: int = 1000, count: int = 8, window: int = 60_000) -> Peer:
    """Established, with `count` full segments sent and looked at."""
    peer = established(emit_options(mss=mss))
    peer.connection.send(bytes(range(256)) * 200, peer.now)
    peer._collect()
    for at in range(count):
        assert len(peer.payloads[at]) == mss
    del peer.sent[count:], peer.payloads[count:]
    for _ in range(count):
        peer.expect(ACK)
    return peer


def test_time_out_and_back_off() -> None:
    peer = established()
    peer.connection.send(b"data", peer.now)
    peer.expect(ACK, b"data", seq=1)
    assert peer.times(3.5) == [0.2, 0.6, 1.4, 3.0]
    assert peer.stack.counters.tcp_timeouts == peer.stack.counters.tcp_retransmits == 4
    peer.send()
    peer.wait(100)
    peer.expect_nothing()


def test_after_a_time_out_it_goes_back_and_starts_slowly() -> None:
    peer = flying()
    peer.wait(0.21)
    peer.expect(ACK, seq=1)
    peer.expect_nothing()
    peer.send(ack=1001)
    peer.expect(ACK, seq=1001)
    peer.expect(ACK, seq=2001)
    peer.expect_nothing()


def test_an_ack_beyond_what_was_sent_again() -> None:
    peer = flying()
    peer.wait(0.21)
    peer.expect(ACK, seq=1)
    peer.send(ack=8001)
    assert peer.connection.snd.nxt == peer.connection.snd.una
    peer.expect(ACK, seq=8001)


def test_fast_retransmit_and_recovery() -> None:
    peer = flying()
    for _ in range(2):
        peer.send(ack=1)
    while peer.sent or peer.stack.dirty:
        peer.expect(ACK)  # limited transmit
    peer.send(ack=1)
    peer.expect(ACK, seq=1)
    snd = peer.connection.snd
    assert snd.recovering
    assert peer.stack.counters.tcp_fast_retransmits == 1
    peer.send(ack=3001)  # partial: the next hole
    peer.expect(ACK, seq=3001)
    assert snd.recovering
    peer.send(ack=(snd.max - peer.iss) & 0xFFFFFFFF)
    assert not snd.recovering
    assert snd.cwnd <= snd.ssthresh


def test_acks_with_data_or_a_new_window_are_not_duplicates() -> None:
    peer = flying()
    for at in range(3):
        peer.send(ack=1, window=60_000 + at)
    for _ in range(3):
        peer.send(ACK, b"x", ack=1, window=60_002)
    assert peer.connection.snd.dup_acks == 0
    assert not peer.connection.snd.recovering


def test_the_round_trip_of_what_was_sent_twice_is_not_timed() -> None:
    peer = established()
    before = peer.connection.snd.rtt.srtt
    peer.connection.send(b"data", peer.now)
    peer.expect(ACK)
    peer.wait(0.25)
    peer.expect(ACK)
    peer.send()
    assert peer.connection.snd.rtt.srtt == before
    assert peer.connection.snd.rtt.rto == 0.4


def test_with_timestamps_it_is_timed_all_the_same() -> None:
    """RFC 7323 section 4.1: the echo tells which transmission was answered, so the back-off ends with the first answer."""
    peer = established(emit_options(timestamps=(1000, 0)))
    peer.connection.send(b"data", peer.now)
    peer.expect(ACK)
    peer.wait(1.5)
    peer.expect(ACK)
    peer.expect(ACK)
    last = peer.expect(ACK)
    assert peer.connection.snd.rtt.rto == 1.6
    assert last.ts_value is not None
    peer.timestamps = (1001, last.ts_value)
    peer.send()
    assert peer.connection.snd.rtt.rto < 0.4


def test_an_echo_of_another_clock_is_no_sample() -> None:
    peer = established(emit_options(timestamps=(1000, 0)))
    peer.connection.send(b"data", peer.now)
    peer.wait(0.3)
    peer.sent.clear()
    peer.ack = 5
    peer.timestamps = (1001, 12345)
    peer.send()
    assert peer.connection.snd.rtt.rto == 0.4


def test_a_lost_fin_is_sent_again() -> None:
    peer = established()
    peer.connection.send(b"last", peer.now)
    peer.connection.shutdown(peer.now)
    peer.expect(ACK | FIN, b"last", seq=1)
    peer.send(ack=5)
    peer.wait(1)
    peer.expect(ACK | FIN, b"", seq=5)


def test_limited_transmit_sends_new_data_for_the_first_two_duplicates() -> None:
    """RFC 3042 section 2: one segment each, and cwnd stays as it is."""
    peer = flying(count=10)
    snd = peer.connection.snd
    peer.expect_nothing()
    for number in range(2):
        peer.send(ack=1)
        peer.expect(ACK, seq=10_001 + 1000 * number)
        peer.expect_nothing()
    assert snd.cwnd == 10_000
    peer.send(ack=1)
    peer.expect(ACK, seq=1)


def test_each_further_duplicate_inflates_the_window() -> None:
    """RFC 5681 section 3.2, steps 2 to 6."""
    peer = flying(count=10)
    for _ in range(3):
        peer.send(ack=1)
    snd = peer.connection.snd
    assert (snd.ssthresh, snd.cwnd) == (5000, 8000)
    peer.send(ack=1)
    assert snd.cwnd == 9000
    peer.send(ack=10_001)
    assert (snd.recovering, snd.dup_acks) == (False, 0)
    assert snd.cwnd <= 5000


def test_no_second_recovery_for_the_same_loss() -> None:
    """RFC 6582 section 3.2, step 1: not before what was out when the first began is acknowledged."""
    peer = flying()
    peer.wait(0.21)
    peer.expect(ACK, seq=1)
    for _ in range(5):
        peer.send(ack=1)
    assert not peer.connection.snd.recovering
    assert peer.stack.counters.tcp_fast_retransmits == 0


def test_the_window_grows_by_a_segment_per_ack_then_by_one_per_round_trip() -> None:
    """RFC 5681 section 3.1: slow start, then congestion avoidance, counting bytes (RFC 3465)."""
    peer = flying(count=10)
    snd = peer.connection.snd
    peer.send(ack=1001)
    assert snd.cwnd == 11_000
    snd.ssthresh = 11_000
    for acked in range(2001, 10_002, 1000):
        peer.send(ack=acked)
    assert 11_700 < snd.cwnd < 12_000
