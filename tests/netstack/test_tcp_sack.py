"""Selective acknowledgment, both sides: RFC 2018, 2883 and 6675. The scoreboard is compared with the RFC's own words."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sulla_trio.netstack.tcp_sack import MAX_RANGES, Scoreboard
from sulla_trio.wire.tcp import ACK, FIN, emit_options
from tests.support.peer import Peer, established

OFFER = emit_options(mss=1000, sack_permitted=True)
MASK = 0xFFFFFFFF


def flying(count: int = 10, size: int = 10_000, *, fin: bool = False) -> Peer:
    """Established with SACK; `count` segments of 1000 bytes sent and looked at: seq 1, 1001, 2001..."""
    peer = established(OFFER)
    peer.connection.send(bytes(number % 251 for number in range(size)), peer.now)
    if fin:
        peer.connection.shutdown(peer.now)
    for at in range(count):
        peer.expect(ACK | FIN if fin and at == count - 1 else ACK, seq=1 + 1000 * at)
    return peer


def sack(peer: Peer, ack: int, *blocks: tuple[int, int], data: bytes = b"", window: int | None = None) -> None:
    """An ACK with SACK blocks, all numbers counted from the stack's initial one."""
    options = emit_options(sack_blocks=tuple(((peer.iss + a) & MASK, (peer.iss + b) & MASK) for a, b in blocks))
    peer.send(ACK, data, ack=ack, options=options, window=window)


def again(peer: Peer, seq: int, size: int = 1000) -> None:
    """Expect a segment that carries the bytes of the stream at `seq`."""
    peer.expect(ACK, bytes(number % 251 for number in range(seq - 1, seq - 1 + size)), seq=seq)


# Receiving: RFC 2018 section 4


def relative(peer: Peer, blocks: tuple[tuple[int, int], ...]) -> list[tuple[int, int]]:
    return [((start - peer.irs) & MASK, (stop - peer.irs) & MASK) for start, stop in blocks]


def test_the_first_block_has_the_latest_arrival() -> None:
    peer = established(OFFER)
    for seq in (11, 31, 51, 71):
        peer.send(ACK, bytes(10), seq=seq)
        blocks = relative(peer, peer.expect(ACK, ack=1).sack_blocks)
        assert blocks[0] == (seq, seq + 10)
    assert blocks == [(71, 81), (11, 21), (31, 41)]
    peer.send(ACK, bytes(10), seq=21)
    assert relative(peer, peer.expect(ACK).sack_blocks)[0] == (11, 41)


def test_blocks_are_sent_beside_data_too() -> None:
    """RFC 2018 section 4: in all ACKs that do not acknowledge everything received."""
    peer = established(OFFER)
    peer.send(ACK, bytes(10), seq=11)
    peer.connection.send(b"data", peer.now)
    peer.expect(ACK, b"data")
    assert relative(peer, peer.expect(ACK, b"").sack_blocks) == [(11, 21)]


def test_no_blocks_without_the_option() -> None:
    peer = established(emit_options(mss=1000))
    peer.send(ACK, bytes(10), seq=11)
    assert peer.expect(ACK).sack_blocks == ()


# Receiving: D-SACK, RFC 2883 section 4


def test_a_segment_that_came_twice_is_reported_once() -> None:
    peer = established(OFFER)
    peer.send(ACK, bytes(100), seq=1)
    peer.send(ACK, bytes(100), seq=1)
    assert relative(peer, peer.expect(ACK, ack=101).sack_blocks) == [(1, 101)]
    peer.send(ACK, bytes(3000), seq=101)
    assert peer.expect(ACK, ack=3101).sack_blocks == ()


def test_the_part_that_came_twice_is_reported() -> None:
    peer = established(OFFER)
    peer.send(ACK, bytes(100), seq=1)
    peer.send(ACK, bytes(100), seq=51)
    assert relative(peer, peer.expect(ACK, ack=151).sack_blocks) == [(51, 101)]


def test_twice_above_a_hole_is_reported_before_the_block_it_is_in() -> None:
    peer = established(OFFER)
    peer.send(ACK, bytes(300), seq=101)
    peer.expect(ACK)
    peer.send(ACK, bytes(100), seq=201)
    assert relative(peer, peer.expect(ACK, ack=1).sack_blocks) == [(201, 301), (101, 401)]


def test_a_keep_alive_is_no_duplicate() -> None:
    peer = established(OFFER)
    peer.send(ACK, b"x", seq=1)
    peer.send(ACK, b"", seq=1)
    assert peer.expect(ACK).sack_blocks == ()


# Sending: RFC 6675


def test_three_duplicates_start_a_recovery_with_the_first_hole() -> None:
    """Section 5, steps 1 to 4."""
    peer = flying()
    sack(peer, 1, (1001, 2001))
    sack(peer, 1, (1001, 3001))
    peer.expect_nothing()
    sack(peer, 1, (1001, 4001))
    again(peer, 1)
    peer.expect_nothing()
    snd = peer.connection.snd
    assert snd.recovering
    assert snd.ssthresh == snd.cwnd == 5000
    assert peer.stack.counters.tcp_fast_retransmits == peer.stack.counters.tcp_retransmits == 1
    sack(peer, 10_001)
    assert (snd.recovering, snd.board, snd.gone) == (False, None, 0)
    assert snd.cwnd == 5000
    peer.expect_nothing()


def test_three_ranges_above_it_are_enough() -> None:
    """IsLost, section 4: DupThresh ranges, here in one ACK."""
    peer = flying()
    sack(peer, 1, (1001, 2001), (3001, 4001), (5001, 6001))
    again(peer, 1)
    assert peer.connection.snd.recovering


def test_more_than_two_segments_above_it_are_enough() -> None:
    """IsLost, section 4: (DupThresh - 1) * SMSS octets."""
    peer = flying()
    sack(peer, 1, (1001, 3001))
    assert not peer.connection.snd.recovering
    sack(peer, 1, (1001, 3002))
    again(peer, 1)


def test_the_pipe_has_room_for_each_lost_hole_in_turn() -> None:
    """NextSeg rule 1, with the pipe of section 4."""
    peer = flying()
    sack(peer, 1, (1001, 2001), (3001, 4001), (5001, 6001))  # lost: 1, 2001, 4001 to IsLost's edge
    again(peer, 1)
    peer.expect_nothing()  # pipe: 6 not SACKed and not lost, and the one sent again, is more than 5
    sack(peer, 1, (5001, 9001), (1001, 2001), (3001, 4001))
    again(peer, 2001)
    again(peer, 4001)
    again(peer, 9001)  # the rescue
    peer.expect_nothing()
    assert peer.stack.counters.tcp_retransmits == 4
    sack(peer, 10_001)
    assert peer.connection.snd.board is None


def test_new_data_goes_when_nothing_is_lost() -> None:
    """NextSeg rule 2."""
    peer = flying(size=30_000)
    sack(peer, 1, (1001, 7001))
    again(peer, 1)
    peer.expect(ACK, seq=10_001)
    peer.expect_nothing()
    sack(peer, 1, (1001, 8001))
    peer.expect(ACK, seq=11_001)
    peer.expect_nothing()


def test_a_hole_that_need_not_be_lost_is_last() -> None:
    """NextSeg rule 3, when there is no new data."""
    peer = flying()
    sack(peer, 1, (1001, 5001), (6001, 7001))
    again(peer, 1)
    peer.expect_nothing()
    sack(peer, 1, (6001, 8001))
    again(peer, 5001)  # two segments above it are SACKed: not lost yet
    peer.expect_nothing()


def test_one_rescue_in_a_recovery() -> None:
    """NextSeg rule 4: the last octet that is not SACKed, once."""
    peer = flying()
    sack(peer, 1, (1001, 9001))
    again(peer, 1)
    again(peer, 9001)
    sack(peer, 9001)
    peer.expect_nothing()


def test_a_partial_acknowledgment_goes_on() -> None:
    peer = flying()
    sack(peer, 1, (1001, 2001), (3001, 8001))
    again(peer, 1)
    again(peer, 2001)
    again(peer, 9001)  # the rescue
    sack(peer, 2001, (3001, 8001))
    assert peer.connection.snd.recovering
    peer.expect_nothing()
    sack(peer, 8001)
    assert peer.connection.snd.recovering  # 9001 and 10001 were out when it began
    sack(peer, 10_001)
    assert not peer.connection.snd.recovering


def test_a_lost_fin_goes_with_the_hole_it_is_in() -> None:
    peer = flying(fin=True)
    sack(peer, 1, (1001, 9001))
    again(peer, 1)
    segment = peer.expect(ACK | FIN, seq=9001)
    assert segment.payload_end - segment.payload_offset == 1000


def test_a_lost_fin_is_behind_all_bytes_of_its_segment() -> None:
    """What was two writes is one segment the second time: without the second's bytes the FIN would end the stream early."""
    peer = established(emit_options(mss=9000, sack_permitted=True), mss=9000)
    snd = peer.connection.snd
    snd.cwnd = 60_000
    for size in (9000, 9000, 5000, 4000):
        peer.connection.send(bytes(size), peer.now)
    peer.connection.shutdown(peer.now)
    for seq in (1, 9001, 18_001):
        peer.expect(ACK, seq=seq)
    peer.expect(ACK | FIN, bytes(4000), seq=23_001)
    for edge in (12_001, 15_001, 18_001):
        sack(peer, 1, (9001, edge))
    peer.expect(ACK, bytes(9000), seq=1)
    snd.cwnd = 60_000  # room for the rescue
    sack(peer, 1, (9001, 18_002))
    peer.expect(ACK | FIN, bytes(8999), seq=18_002)


def test_blocks_on_data_count_like_others() -> None:
    peer = flying()
    sack(peer, 1, (1001, 5001), data=b"from the peer")
    again(peer, 1)
    assert peer.connection.receive(100, peer.now) == b"from the peer"


def test_without_news_an_ack_is_no_duplicate() -> None:
    """Section 2: a duplicate ACK has SACK information that was not there before."""
    peer = flying()
    for _ in range(5):
        sack(peer, 1, (1001, 2001))
    peer.send(ack=1)
    peer.expect_nothing()
    assert not peer.connection.snd.recovering


def test_nonsense_and_d_sack_blocks_are_not_heard() -> None:
    """RFC 2883 section 4: what lies below SND.UNA; RFC 2018: what was never sent."""
    peer = flying()
    peer.send(ack=5001)
    peer.expect_nothing()
    for block in ((1, 1001), (4001, 6001), (5001, 6001), (9001, 90_001), (8001, 7001), (7001, 7001)):
        sack(peer, 5001, block)
        sack(peer, 5001, block, (1, 101))
    assert peer.connection.snd.board is None
    peer.expect_nothing()


def test_a_time_out_forgets_what_was_sacked() -> None:
    """RFC 2018 section 8: the receiver may have dropped it. What is SACKed after that is not sent again."""
    peer = flying()
    sack(peer, 1, (3001, 5001))
    peer.wait(0.21)
    again(peer, 1)
    snd = peer.connection.snd
    assert (snd.board, snd.gone, snd.cwnd) == (None, 0, 1000)
    sack(peer, 1001, (3001, 5001), (8001, 9501))
    again(peer, 1001)
    again(peer, 2001)
    peer.expect_nothing()
    sack(peer, 5001, (8001, 9501))
    for seq, size in ((5001, 1000), (6001, 1000), (7001, 1000), (9501, 500)):
        again(peer, seq, size)
    peer.expect_nothing()
    assert not snd.recovering
    sack(peer, 10_001)
    assert (snd.board, snd.gone) == (None, 0)


def test_no_recovery_before_what_a_time_out_saw_is_acknowledged() -> None:
    """Section 5.1."""
    peer = flying()
    peer.wait(0.21)
    again(peer, 1)
    sack(peer, 1001, (2001, 3001), (4001, 5001), (6001, 7001))
    again(peer, 1001)
    assert not peer.connection.snd.recovering


def test_ranges_are_bounded() -> None:
    peer = flying()
    for at in range(2, 4 * MAX_RANGES, 8):
        sack(peer, 1, (at, at + 1), (at + 2, at + 3), (at + 4, at + 5), (at + 6, at + 7))
    board = peer.connection.snd.board
    assert board is not None
    assert len(board._sacked) == MAX_RANGES


# The scoreboard beside the RFC's definitions, octet by octet


class Words:
    """Section 4 as it is written, on sets of octets."""

    def __init__(self, flight: int, mss: int) -> None:
        self.octets = range(flight)
        self.mss = mss
        self.sacked: set[int] = set()
        self.high_rxt = 0

    def is_lost(self, octet: int) -> bool:
        above = [number for number in sorted(self.sacked) if number > octet]
        ranges = sum(1 for number in above if number - 1 not in self.sacked)
        return ranges >= 3 or len(above) > 2 * self.mss

    def pipe(self) -> int:
        missing = [octet for octet in self.octets if octet not in self.sacked]
        return sum((not self.is_lost(octet)) + (octet < self.high_rxt) for octet in missing)

    def next_lost(self) -> int | None:
        for octet in range(self.high_rxt, max(self.sacked, default=0)):
            if octet not in self.sacked and self.is_lost(octet):
                return octet
        return None


@given(
    flight=st.integers(20, 60),
    mss=st.integers(1, 8),
    steps=st.lists(st.tuples(st.booleans(), st.integers(1, 58), st.integers(1, 12)), max_size=25),
)
def test_the_scoreboard_does_what_the_rfc_says(flight: int, mss: int, steps: list[tuple[bool, int, int]]) -> None:
    board, words = Scoreboard(), Words(flight, mss)
    board.enter_recovery()
    for is_block, start, size in steps:
        if is_block:
            stop = min(start + size, flight)
            news = board.update(((start, stop),), 0, flight, mss)
            fresh = set(range(start, stop)) - words.sacked
            assert news == len(fresh)
            words.sacked |= fresh
        else:
            expected = words.next_lost()
            found = board.next_lost(mss)
            assert (found[0] if found else None) == expected
            if found is not None:
                assert not words.sacked & set(range(found[0], sum(found)))
                words.high_rxt = sum(found)
        assert board.is_lost == (0 not in words.sacked and words.is_lost(0))
        assert flight - board.gone(flight, recovering=True) == words.pipe()
        assert board.gone(flight, recovering=False) == len(words.sacked)
