"""SEGMENT ARRIVES: the numbered checks of RFC 9293 section 3.10.7.4, one function per check, and SYN-SENT (3.10.7.3).

This is the slow path; `TcpConnection.segment_received` has handled what header prediction covers. A check returns
False when the segment ends with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sulla_trio.netstack import tcp_lifecycle, tcp_recovery, tcp_timers
from sulla_trio.netstack.seqnum import MASK, diff
from sulla_trio.netstack.tcp_state import SYNCHRONIZED, State, Trigger
from sulla_trio.wire.tcp import ACK, FIN, RST, SYN, Segment

if TYPE_CHECKING:
    from sulla_trio.netstack.tcp import TcpConnection

_HALF: Final = 0x80000000
PAWS_IDLE: Final = 24 * 86_400.0
"""Seconds after which TS.Recent is no longer trusted (RFC 7323 section 5.5)."""
MAX_RTT: Final = 600_000
"""Milliseconds; an echo that says more is of another clock."""
_NOBODY_THERE: Final = frozenset((2, 3, 9, 10, 13))
"""ICMP unreachable: protocol, port, and three ways to say administratively prohibited."""
_RECEIVING: Final = frozenset({State.ESTABLISHED, State.FIN_WAIT_1, State.FIN_WAIT_2})


def segment_arrives(c: TcpConnection, segment: Segment, view: memoryview, now: float) -> None:
    """Process `segment` in any state but LISTEN and CLOSED, which are the stack's."""
    if c.state is State.SYN_SENT:
        in_syn_sent(c, segment, now)
        return
    if c.state is State.CLOSED:
        return
    if c.state is State.SYN_RECEIVED and segment.flags & SYN:
        stripped = repeated_syn(c, segment)
        if stripped is None:
            return
        segment = stripped
    if not (check_timestamps(c, segment, now) and check_sequence(c, segment, now)):
        return
    if not (check_reset(c, segment, now) and check_syn(c, segment, now) and check_ack(c, segment, now)):
        return
    # The sixth check, URG, has nothing to do: urgent bytes are delivered in line (RFC 6093).
    if check_text(c, segment, view, now):
        check_fin(c, segment, now)


def in_syn_sent(c: TcpConnection, segment: Segment, now: float) -> None:
    """Section 3.10.7.3."""
    flags, snd = segment.flags, c.snd
    if flags & ACK and segment.ack != snd.max:  # only our SYN is out
        if not flags & RST:
            c.send_reset(segment.ack, 0, 0)
        return
    if flags & RST:
        if flags & ACK:
            c.host.counters.tcp_resets_received += 1
            tcp_lifecycle.end(c, Trigger.RCV_RST, "refused")
        return
    if not flags & SYN:
        return
    tcp_lifecycle.synchronize(c, segment, now)
    if flags & ACK:
        tcp_lifecycle.establish(c, segment, Trigger.RCV_SYN_ACK, now)
        c.ack_at_once()
    else:
        tcp_lifecycle.transition(c, Trigger.RCV_SYN)
        c.syn_due = True
        c.touch()


def repeated_syn(c: TcpConnection, segment: Segment) -> Segment | None:
    """In SYN-RECEIVED: the same SYN again means that our SYN-ACK was lost, unless it acknowledges ours (simultaneous
    open, figure 8), then the rest of it counts."""
    if segment.seq != c.rcv.irs:
        return segment
    if segment.flags & ACK:
        return segment._replace(seq=c.rcv.nxt, flags=segment.flags & ~SYN)
    if not segment.flags & RST:
        c.syn_due = True
        c.touch()
    return None


def unreachable(c: TcpConnection, code: int) -> None:
    """An ICMP unreachable about a segment in flight. It ends an attempt to connect when nobody will ever answer; anything
    else is a passing trouble that retransmission is there for (RFC 1122 section 4.2.3.9, RFC 5927 section 5.2)."""
    if c.state is State.SYN_SENT and code in _NOBODY_THERE:
        tcp_lifecycle.end(c, Trigger.ABORT, "refused")
    else:
        c.host.counters.drop("icmp_unreachable")


def path_narrowed(c: TcpConnection, mss: int) -> None:
    """A router on the way takes segments of `mss` bytes, options included, and no longer ones."""
    mss -= tcp_lifecycle.TIMESTAMPS_LENGTH if c.timestamps else 0
    if mss < c.snd.mss and c.state in SYNCHRONIZED:
        tcp_recovery.lower_mss(c.snd, mss)
        c.touch()


def check_timestamps(c: TcpConnection, segment: Segment, now: float) -> bool:
    """PAWS: RFC 7323 section 5.3, R1."""
    if not c.timestamps or segment.flags & RST:
        return True
    rcv, value = c.rcv, segment.ts_value
    if value is None:
        c.host.counters.drop("tcp_no_timestamp")  # section 3.2: SHOULD be dropped
        return False
    if (value - rcv.ts_recent) & _HALF and now - rcv.ts_recent_at < PAWS_IDLE:
        c.host.counters.drop("tcp_paws")
        answer_unacceptable(c, segment, now)
        return False
    return True


def answer_unacceptable(c: TcpConnection, segment: Segment, now: float) -> None:
    """An ACK, at a limited rate when the segment was empty: two ends that disagree would else answer each other for ever."""
    if segment.payload_offset == segment.payload_end and not segment.flags & (SYN | FIN):
        c.challenge(now)
    else:
        c.ack_at_once()


def check_sequence(c: TcpConnection, segment: Segment, now: float) -> bool:
    """First, sequence number. A segment that begins at the right edge and carries nothing for us is let through for
    its ACK: a peer that has filled the window sends such."""
    rcv = c.rcv
    window = (rcv.edge - rcv.nxt) & MASK
    start = diff(segment.seq, rcv.nxt)
    flags = segment.flags
    length = segment.payload_end - segment.payload_offset + (flags & SYN != 0) + (flags & FIN)
    acceptable = start <= window and (start + length > 0 if length else start >= 0)
    if not acceptable:
        if flags & RST:
            c.host.counters.drop("tcp_reset_outside_window")
        else:
            if length and -length <= start < 0 and segment.payload_end > segment.payload_offset:
                _came_twice(c, segment)
            answer_unacceptable(c, segment, now)
            if c.state is State.TIME_WAIT and flags & FIN:
                tcp_timers.start_life_timer(c, c.last_heard)
        return False
    value = segment.ts_value
    if value is not None and c.timestamps and diff(segment.seq, rcv.last_ack) <= 0:  # RFC 7323 section 4.3
        rcv.ts_recent, rcv.ts_recent_at = value, c.last_heard
    return True


def _came_twice(c: TcpConnection, segment: Segment) -> None:
    """Octets before RCV.NXT came again: to be reported (RFC 2883 section 4), once a repeated segment has an ACK."""
    size = segment.payload_end - segment.payload_offset
    end = (segment.seq + min(size, -diff(segment.seq, c.rcv.nxt))) & MASK
    c.rcv.duplicate = (segment.seq, end)


def check_reset(c: TcpConnection, segment: Segment, now: float) -> bool:
    """Second, RST, as RFC 5961 section 3.2 has it: only the exact sequence number resets."""
    if not segment.flags & RST:
        return True
    if segment.seq != c.rcv.nxt:
        c.challenge(now)
        return False
    c.host.counters.tcp_resets_received += 1
    tcp_lifecycle.end(c, Trigger.RCV_RST, "reset")  # from SYN-RECEIVED too: the listener is the stack's
    return False


def check_syn(c: TcpConnection, segment: Segment, now: float) -> bool:
    """Fourth, SYN (the third check, security, is not implemented by anybody): RFC 5961 section 4.2."""
    if segment.flags & SYN:
        c.challenge(now)
        return False
    return True


def check_ack(c: TcpConnection, segment: Segment, now: float) -> bool:
    """Fifth, ACK."""
    if not segment.flags & ACK:
        return False
    snd = c.snd
    ahead = diff(segment.ack, snd.una)
    outstanding = (snd.max - snd.una) & MASK
    if c.state is State.SYN_RECEIVED:
        if not 0 < ahead <= outstanding:
            c.send_reset(segment.ack, 0, 0)
            return False
        tcp_lifecycle.establish(c, segment, Trigger.RCV_ACK_OF_SYN, now)
        return True
    if ahead > outstanding or ahead < -max(snd.max_wnd, 65_535):  # RFC 5961 section 5.2
        c.host.counters.drop("tcp_unacceptable_ack")
        c.challenge(now)
        return False
    if ahead < 0:
        return True
    _update_send_state(c, segment, ahead, now)
    return _after_ack_of_fin(c)


def _update_send_state(c: TcpConnection, segment: Segment, ahead: int, now: float) -> None:
    snd = c.snd
    seq, ack = segment.seq, segment.ack
    wnd = segment.window << snd.shift
    if ahead:
        if snd.retransmits and c.timestamps:  # RFC 7323 section 4.1: a sample although it was sent twice
            elapsed = (int(now * 1000) + c.ts_offset - segment.ts_echo) & MASK
            if segment.ts_echo and elapsed < MAX_RTT:
                snd.rtt.sample(elapsed / 1000)
        c.acknowledged(ahead, now)
    if c.sack:
        if segment.sack_blocks and tcp_recovery.sacked(snd, segment.sack_blocks, duplicate=not ahead):
            c.host.counters.tcp_fast_retransmits += 1
        if snd.recovering or snd.unsent:
            c.touch()
    elif (
        not ahead
        and snd.max != snd.una  # RFC 5681 section 2: what a duplicate ACK is
        and segment.payload_offset == segment.payload_end
        and not segment.flags & FIN
        and wnd == snd.wnd
        and not snd.persisting
        and tcp_recovery.duplicate_ack(snd)
    ):
        if snd.resend_first:
            c.host.counters.tcp_fast_retransmits += 1
        c.touch()
    if diff(snd.wl1, seq) < 0 or (snd.wl1 == seq and diff(snd.wl2, ack) <= 0):
        c.update_window(seq, ack, segment.window)


def _after_ack_of_fin(c: TcpConnection) -> bool:
    if not c.snd.fin_acked:
        return True
    if c.state is State.FIN_WAIT_1:
        tcp_lifecycle.transition(c, Trigger.RCV_ACK_OF_FIN)
        tcp_timers.start_life_timer(c, c.last_heard)
    elif c.state is State.CLOSING:
        tcp_lifecycle.transition(c, Trigger.RCV_ACK_OF_FIN)
        tcp_lifecycle.enter_time_wait(c)
    elif c.state is State.LAST_ACK:
        tcp_lifecycle.end(c, Trigger.RCV_ACK_OF_FIN, None)
        return False
    return True


def check_text(c: TcpConnection, segment: Segment, view: memoryview, now: float) -> bool:
    """Seventh, segment text: in order to the owner, out of order to reassembly, the rest trimmed to the window."""
    start, end = segment.payload_offset, segment.payload_end
    if start == end:
        return True
    if c.state not in _RECEIVING:
        return False  # "This should not occur, since a FIN has been received"
    if c.owner_closed:
        tcp_lifecycle.end(c, Trigger.ABORT, "aborted", reset=True)  # section 3.10.4: nobody will read it
        return False
    rcv = c.rcv
    offset = diff(segment.seq, rcv.nxt)
    if offset < 0:
        _came_twice(c, segment)
        start = min(start - offset, end)
        offset = 0
        rcv.ack_now = True  # part of it has come before: our ACK was lost
    room = ((rcv.edge - rcv.nxt) & MASK) - offset
    if end - start > room:
        end = start + room
        rcv.ack_now = True
    if rcv.is_full:
        c.ack_at_once()
        return False
    if start < end:
        if offset:
            rcv.store(rcv.position + offset, view[start:end])
            rcv.ack_now = True
        else:
            in_order(c, view[start:end], now)
    if rcv.ack_now:
        c.touch()
    return True


def in_order(c: TcpConnection, view: memoryview, now: float) -> None:
    """Bytes that begin at RCV.NXT, and whatever was waiting behind them."""
    rcv = c.rcv
    if not rcv.is_reassembling:
        c.deliver(view, now)
        return
    base = rcv.position
    stop = base + len(view)
    while True:
        piece = rcv.next_piece()
        if piece is not None:
            taken = c.deliver(memoryview(piece), now)
            wanted = len(piece)
        elif rcv.position < stop:
            at = rcv.position - base
            wanted = rcv.missing(rcv.position, stop)
            taken = c.deliver(view[at : at + wanted], now)
        else:
            break
        if not wanted or taken < wanted:
            return
    rcv.ack_now = True  # RFC 5681 section 4.2: at once when a gap is filled


def check_fin(c: TcpConnection, segment: Segment, now: float) -> None:
    """Eighth, FIN; one that came before its time is remembered until the gap before it is filled."""
    rcv = c.rcv
    if segment.flags & FIN and not rcv.fin_received:
        length = segment.payload_end - segment.payload_offset
        rcv.fin_at = rcv.position + diff(segment.seq + length, rcv.nxt)
        c.ack_at_once()
    if rcv.fin_at is None or rcv.fin_at != rcv.position or rcv.fin_received:
        return
    rcv.fin_received = True
    rcv.nxt = (rcv.nxt + 1) & MASK
    if (rcv.edge - rcv.nxt) & _HALF:  # a FIN needs no room, so it may come just past the window
        rcv.edge = rcv.nxt
    c.ack_at_once()
    tcp_lifecycle.transition(c, Trigger.RCV_FIN)
    if c.state is State.TIME_WAIT:
        tcp_lifecycle.enter_time_wait(c)
    tcp_lifecycle.surface_end(c)
