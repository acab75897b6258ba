"""The numbered checks of RFC 9293 section 3.10.7.4 on segments that header prediction does not cover."""

from __future__ import annotations

import pytest

from sulla_trio.netstack.events import Closed, PeerClosed, Readable
from sulla_trio.netstack.tcp_arrival import PAWS_IDLE
from sulla_trio.netstack.tcp_options import TcpOptions
from sulla_trio.netstack.tcp_state import State
from sulla_trio.wire.tcp import ACK, FIN, PSH, RST, SYN, URG, emit_options
from tests.support.peer import CollectingSink, established, fin_wait_2

SCALED = emit_options(mss=1460, window_scale=7)

# First, sequence number


@pytest.mark.parametrize("seq", [-100, 70_000])
def test_outside_the_window(seq: int) -> None:
    peer = established()
    peer.send(ACK, b"data", seq=seq)
    peer.expect(ACK, seq=1, ack=1)
    assert peer.connection.bytes_in == 0


def test_a_keep_alive_probe_is_answered() -> None:
    peer = established()
    peer.send(ACK, seq=0)
    peer.expect(ACK, seq=1, ack=1)


def test_what_has_come_before_is_cut_off() -> None:
    peer = established()
    peer.send(ACK, b"abcdef")
    peer.send(ACK, b"defghi", seq=4)
    assert peer.connection.receive(100, peer.now) == b"abcdefghi"
    peer.expect(ACK, ack=10)


def test_what_passes_the_window_is_cut_off() -> None:
    peer = established()
    peer.send(ACK, bytes(60_000))
    peer.send(ACK, bytes(10_000))
    assert peer.connection.rcv.queued == 65_535
    peer.expect(ACK, ack=65_536, window=0)


def test_old_timestamps_are_dropped() -> None:
    peer = established(emit_options(timestamps=(1000, 0)))
    peer.timestamps = (1005, 0)
    peer.send(ACK, b"new")
    peer.timestamps = (1004, 0)
    peer.send(ACK, b"old")
    assert peer.connection.receive(100, peer.now) == b"new"
    assert peer.stack.counters.drops == {"tcp_paws": 1}
    assert peer.expect(ACK).ts_echo == 1005


def test_a_segment_without_the_agreed_timestamps_is_dropped() -> None:
    peer = established(emit_options(timestamps=(1000, 0)))
    peer.timestamps = None
    peer.send(ACK, b"bare")
    assert peer.connection.bytes_in == 0
    assert peer.stack.counters.drops == {"tcp_no_timestamp": 1}


def test_a_reset_needs_no_timestamp() -> None:
    """RFC 7323 section 5.2: RST segments are not subject to PAWS."""
    peer = established(emit_options(timestamps=(1000, 0)))
    peer.timestamps = None
    peer.send(RST)
    assert peer.event(Closed).reason == "reset"


def test_after_24_days_an_old_timestamp_is_believed() -> None:
    """RFC 7323 section 5.5."""
    peer = established(emit_options(timestamps=(1000, 0)), options=TcpOptions(keepalive_idle=1e9))
    peer.timestamps = (995, 0)
    peer.send(ACK, b"wrapped")
    assert peer.connection.bytes_in == 0
    peer.wait(PAWS_IDLE)
    peer.send(ACK, b"wrapped", seq=1)
    assert peer.connection.receive(100, peer.now) == b"wrapped"


def test_what_is_remembered_of_timestamps_is_of_what_was_acknowledged() -> None:
    """RFC 7323 section 4.3: with a delayed ACK the echo is of the earliest segment that it acknowledges."""
    peer = established(emit_options(timestamps=(1000, 0)))
    for at in range(3):
        peer.timestamps = (1001 + at, 0)
        peer.send(ACK, b"x" * 500)
    peer.wait(0.05)
    assert peer.expect(ACK, ack=1501).ts_echo == 1001


def test_empty_segments_that_are_not_acceptable_are_answered_at_a_limited_rate() -> None:
    """Two ends that each think the other wrong must not answer each other for ever."""
    peer = established()
    for _ in range(100):
        peer.send(ACK, seq=70_000)
    peer.expect(ACK, seq=1, ack=1)
    peer.expect_nothing()
    peer.wait(0.6)
    peer.send(ACK, seq=70_000)
    peer.expect(ACK, seq=1, ack=1)


# Second, RST


def test_reset() -> None:
    peer = established()
    peer.send(RST)
    assert peer.event(Closed).reason == "reset"
    assert peer.stack.counters.tcp_resets_received == 1
    peer.expect_nothing()


def test_a_reset_inside_the_window_is_challenged() -> None:
    peer = established()
    peer.send(RST, seq=100)
    assert peer.state is State.ESTABLISHED
    peer.expect(ACK, seq=1, ack=1)


def test_a_reset_outside_the_window_is_dropped() -> None:
    peer = established()
    peer.send(RST, seq=70_000)
    assert peer.state is State.ESTABLISHED
    peer.expect_nothing()


# Fourth, SYN


@pytest.mark.parametrize("seq", [0, 1, 500])
def test_a_syn_is_challenged(seq: int) -> None:
    peer = established()
    peer.send(SYN, seq=seq)
    assert peer.state is State.ESTABLISHED
    peer.expect(ACK, seq=1, ack=1)


def test_challenges_are_limited() -> None:
    peer = established()
    for _ in range(5):
        peer.send(SYN, seq=500)
    peer.expect(ACK)
    peer.send(SYN, seq=500)
    peer.expect_nothing()
    peer.wait(0.6)
    peer.send(SYN, seq=500)
    peer.expect(ACK)


# Fifth, ACK


def test_no_ack_no_effect() -> None:
    peer = established()
    peer.send(PSH, b"data", seq=1)
    assert peer.connection.bytes_in == 0


@pytest.mark.parametrize("ack", [50, -70_000])
def test_an_ack_of_what_was_never_sent(ack: int) -> None:
    peer = established()
    peer.send(ACK, b"data", ack=ack)
    assert peer.connection.bytes_in == 0
    peer.expect(ACK, seq=1, ack=1)
    assert peer.stack.counters.drops == {"tcp_unacceptable_ack": 1}


def test_an_old_ack_does_not_spoil_the_data() -> None:
    peer = established()
    peer.connection.send(b"x" * 100, peer.now)
    peer.expect(ACK)
    peer.send()
    peer.send(ACK, b"data", ack=50)
    assert peer.connection.receive(100, peer.now) == b"data"


# Sixth, URG


def test_urgent_bytes_are_data() -> None:
    peer = established()
    peer.send(ACK | URG, b"urgent")
    assert peer.connection.receive(100, peer.now) == b"urgent"


# Seventh, text


def test_out_of_order() -> None:
    peer = established()
    peer.send(ACK, b"def", seq=4)
    peer.expect(ACK, ack=1)
    peer.no_event()
    peer.send(ACK, b"jkl", seq=10)
    peer.expect(ACK, ack=1)
    peer.send(ACK, b"abc", seq=1)
    peer.expect(ACK, ack=7)
    peer.event(Readable)
    peer.send(ACK, b"ghi", seq=7)
    peer.expect(ACK, ack=13)
    assert peer.connection.receive(100, peer.now) == b"abcdefghijkl"


def test_without_sack_the_peer_can_count_duplicate_acknowledgments() -> None:
    """RFC 5681 section 4.2: one for each segment out of order; three are enough to be understood."""
    peer = established()
    for at in range(7):
        peer.send(ACK, bytes(100), seq=101 + 100 * at)
    for _ in range(3):
        peer.expect(ACK, b"", seq=1, ack=1, window=65_535)
    peer.expect_nothing()
    peer.send(ACK, bytes(100), seq=1)
    peer.expect(ACK, ack=801)
    peer.expect_nothing()


def test_with_sack_one_says_it_all() -> None:
    peer = established(emit_options(sack_permitted=True))
    for at in range(7):
        peer.send(ACK, bytes(100), seq=101 + 100 * at)
    assert len(peer.expect(ACK, ack=1).sack_blocks) == 1
    peer.expect_nothing()


def test_a_segment_that_covers_what_is_stored() -> None:
    peer = established()
    peer.send(ACK, b"cd", seq=3)
    peer.send(ACK, b"fg", seq=6)
    peer.send(ACK, b"abCDeFGh", seq=1)
    assert peer.connection.receive(100, peer.now) == b"abcdefgh"  # what came first stays
    peer.expect(ACK, ack=9)


def test_sack_blocks_name_what_is_stored() -> None:
    peer = established(emit_options(sack_permitted=True))
    first = (peer.irs + 11) & 0xFFFFFFFF
    peer.send(ACK, b"x" * 10, seq=11)
    assert peer.expect(ACK).sack_blocks == ((first, first + 10),)
    peer.send(ACK, b"x" * 10, seq=31)
    assert peer.expect(ACK).sack_blocks == ((first + 20, first + 30), (first, first + 10))
    peer.send(ACK, b"x" * 30, seq=1)
    assert peer.expect(ACK, ack=41).sack_blocks == ()


def test_pieces_are_bounded() -> None:
    peer = established(SCALED)
    for at in range(3, 2003, 2):
        peer.send(ACK, b"x", seq=at)
    assert 0 < len(peer.connection.rcv._pieces) <= 65_536 // 256


def test_out_of_order_bytes_reach_the_sink_in_order() -> None:
    peer = established()
    sink = peer.connection.sink = CollectingSink()
    peer.send(ACK, b"def", seq=4)
    peer.send(ACK, b"abc", seq=1)
    assert sink.data == b"abcdef"


# Eighth, FIN


def test_a_fin_before_its_time_is_remembered() -> None:
    peer = established()
    peer.send(FIN | ACK, b"def", seq=4)
    assert peer.state is State.ESTABLISHED
    peer.send(ACK, b"abc", seq=1)
    assert peer.state is State.CLOSE_WAIT
    peer.expect(ACK, ack=8)
    assert peer.connection.receive(100, peer.now) == b"abcdef"
    peer.event(Readable)
    peer.event(PeerClosed)


def test_a_fin_needs_no_room() -> None:
    peer = established()
    peer.send(ACK, bytes(60_000))
    peer.send(ACK, bytes(5_535))
    peer.expect(ACK, window=0)
    peer.send(FIN | ACK)
    peer.expect(ACK, ack=65_537, window=0)
    assert peer.state is State.CLOSE_WAIT


def test_a_repeated_fin_is_acknowledged_again() -> None:
    peer = established()
    peer.send(FIN | ACK, seq=1)
    peer.expect(ACK, ack=2)
    peer.send(FIN | ACK, seq=1)
    peer.expect(ACK, ack=2)


def test_text_behind_the_fin_is_ignored() -> None:
    peer = fin_wait_2()
    peer.send(FIN | ACK)
    peer.send(ACK, b"more", seq=2)
    assert peer.connection.bytes_in == 0
