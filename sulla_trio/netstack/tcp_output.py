"""What a connection has to say now, as frames: data, acknowledgments, probes, SYN, FIN and RST (RFC 9293 section 3.8,
3.10.8).

One pass sends all that the windows allow and at most one segment without payload: acknowledgments of a whole batch
are one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sulla_trio.netstack.seqnum import MASK
from sulla_trio.netstack.tcp_header import HeaderTemplate
from sulla_trio.netstack.tcp_options import NEVER
from sulla_trio.netstack.tcp_recovery import recovery_room
from sulla_trio.netstack.tcp_recv import WINDOW_SHIFT
from sulla_trio.netstack.tcp_sack import Scoreboard
from sulla_trio.netstack.tcp_send import Payload
from sulla_trio.netstack.tcp_state import State
from sulla_trio.wire.tcp import ACK, FIN, PSH, RST, SYN, emit_options

if TYPE_CHECKING:
    from sulla_trio.netstack.tcp import TcpConnection

Frames = list[tuple[int, bytes, "bytes | memoryview"]]


def due_frames(c: TcpConnection, now: float, out: Frames) -> None:
    """Append every frame that is due. The connection's route is known."""
    header = c.header
    assert header is not None
    if c.reset is not None:
        _reset(c, header, out)
    state = c.state
    if state is State.SYN_SENT or state is State.SYN_RECEIVED:
        _syn(c, header, now, out)
        return
    if state is State.CLOSED:
        return
    snd, rcv = c.snd, c.rcv
    before = len(out)
    sack_due = rcv.ack_now and c.sack and rcv.has_sack_blocks
    if snd.board is not None and (snd.recovering or snd.nxt != snd.max):
        _data_by_scoreboard(c, header, snd.board, now, out)
    else:
        if snd.resend_first:
            _resend_first(c, header, now, out)
        if snd.unsent:
            if snd.nxt == snd.una and now - snd.rtt_at > snd.rtt.rto:
                snd.cwnd = min(snd.cwnd, snd.initial_window)  # RFC 5681 section 4.1: it was idle
            _data(c, header, now, out)
    if snd.fin_queued and not snd.fin_sent and not snd.unsent:
        flags = ACK | FIN
        _append(c, header, snd.nxt, flags, b"", now, out)
        snd.nxt = (snd.nxt + 1) & MASK
        snd.fin_sent = True
        _sent_up_to(c, snd.nxt, 0)
    if c.probe:
        _probe(c, header, now, out)
    if sack_due or (rcv.ack_now and len(out) == before):
        _pure_ack(c, header, now, out)
        if rcv.out_of_order > 1 and not c.sack:  # RFC 5681 section 4.2: the peer counts them, up to three
            for _ in range(min(rcv.out_of_order, 3) - 1):
                _pure_ack(c, header, now, out)
    rcv.out_of_order = 0
    sent = len(out) - before
    if sent:
        c.host.counters.tcp_segments_sent += sent
        c.delack_at = NEVER
    _arm_after_sending(c, now)


def _arm_after_sending(c: TcpConnection, now: float) -> None:
    """RFC 6298 section 5.1; with a window too small to send anything the persist timer (RFC 9293 section 3.8.6.1)."""
    snd = c.snd
    if snd.retransmit_at != NEVER:
        return
    if snd.nxt == snd.una:
        if not snd.unsent:
            return
        snd.persisting = True
    at = snd.retransmit_at = now + snd.rtt.rto
    if at < c.armed_at:
        c.arm(at)


def _append(
    c: TcpConnection, header: HeaderTemplate, seq: int, flags: int, payload: Payload, now: float, out: Frames
) -> None:
    rcv = c.rcv
    window = rcv.advertise()
    if c.timestamps:
        value = (int(now * 1000) + c.ts_offset) & MASK
        out.append((c.port, header.stamped(seq, rcv.nxt, flags, window, payload, value, rcv.ts_recent), payload))
    else:
        out.append((c.port, header.plain(seq, rcv.nxt, flags, window, payload), payload))


def _data(c: TcpConnection, header: HeaderTemplate, now: float, out: Frames) -> None:
    """New data (or, after a time-out, data again), as much as both windows allow. The hot loop."""
    snd, rcv = c.snd, c.rcv
    seq = snd.nxt
    mss = snd.mss
    payload = snd.take(mss)
    if payload is None:
        return
    window, ack, port = rcv.advertise(), rcv.nxt, c.port
    stamped, plain, append, take = header.stamped, header.plain, out.append, snd.take
    value, echo = (int(now * 1000) + c.ts_offset) & MASK, rcv.ts_recent
    timestamps = c.timestamps
    if snd.rtt_seq is None and seq == snd.max:
        snd.rtt_seq, snd.rtt_at = snd.nxt, now
    sent = 0
    while payload is not None:
        sent += 1
        flags = ACK
        if not snd.unsent:
            flags = ACK | PSH
            if snd.fin_queued:
                flags = ACK | PSH | FIN
                snd.nxt = (snd.nxt + 1) & MASK
                snd.fin_sent = True
        if timestamps:
            append((port, stamped(seq, ack, flags, window, payload, value, echo), payload))
        else:
            append((port, plain(seq, ack, flags, window, payload), payload))
        seq = snd.nxt
        payload = take(mss)
    _sent_up_to(c, seq, sent)


def _sent_up_to(c: TcpConnection, seq: int, segments: int) -> None:
    """Move SND.MAX; what ends at or before it was a retransmission."""
    snd = c.snd
    c.sent_batch = c.host.batch
    if (snd.max - seq) & 0x80000000:
        snd.max = seq
    elif snd.retransmits:
        c.host.counters.tcp_retransmits += segments or 1


def _data_by_scoreboard(c: TcpConnection, header: HeaderTemplate, board: Scoreboard, now: float, out: Frames) -> None:
    """Data while the scoreboard says what the peer holds: the order of NextSeg (RFC 6675 section 4), as long as the pipe has
    room; or, after a time-out, everything again but that."""
    snd = c.snd
    if snd.recovering:
        mss = snd.mss
        if snd.resend_first:  # section 5, step 4.3: the first goes whatever the pipe
            snd.resend_first = False
            _hole(c, header, board.next_lost(mss) or board.next_hole(mss), now, out)
        while recovery_room(snd) >= mss and _hole(c, header, board.next_lost(mss), now, out):
            pass
        if snd.unsent:
            _data(c, header, now, out)
        while recovery_room(snd) >= mss and _hole(c, header, board.next_hole(mss), now, out):
            pass
        if recovery_room(snd) >= mss:
            _hole(c, header, board.rescue((snd.max - snd.una) & MASK, mss, fin=snd.fin_sent), now, out)
        return
    while snd.nxt != snd.max and (payload := snd.take_unsacked()) is not None:
        _append(c, header, (snd.nxt - len(payload)) & MASK, ACK, payload, now, out)
        _sent_up_to(c, snd.nxt, 1)
    if snd.nxt == snd.max and snd.unsent:
        _data(c, header, now, out)


def _hole(c: TcpConnection, header: HeaderTemplate, hole: tuple[int, int] | None, now: float, out: Frames) -> bool:
    """Send (offset from SND.UNA, octets) again, with the FIN if it is among them; False: there is nothing."""
    if hole is None:
        return False
    snd = c.snd
    offset, size = hole
    payload = snd.sent_again(offset, size)
    flags = ACK | FIN if snd.fin_sent and offset + size > snd.queued else ACK
    _append(c, header, (snd.una + offset) & MASK, flags, payload, now, out)
    snd.gone -= size
    c.sent_batch = c.host.batch
    c.host.counters.tcp_retransmits += 1
    return True


def _resend_first(c: TcpConnection, header: HeaderTemplate, now: float, out: Frames) -> None:
    snd = c.snd
    snd.resend_first = False
    payload = snd.first(snd.mss)
    if payload:
        _append(c, header, snd.una, ACK, payload, now, out)
    elif snd.fin_sent and not snd.fin_acked:
        _append(c, header, snd.una, ACK | FIN, b"", now, out)
    else:
        return
    c.sent_batch = c.host.batch
    c.host.counters.tcp_retransmits += 1


def _probe(c: TcpConnection, header: HeaderTemplate, now: float, out: Frames) -> None:
    """A window probe: one byte beyond a shut window, all that fits into a silly one (RFC 9293 sections 3.8.6.1 and
    3.8.6.2.1); or a keep-alive: the octet before SND.UNA without data (section 3.8.4)."""
    snd = c.snd
    c.probe = False
    c.sent_batch = c.host.batch
    if not snd.persisting:
        _append(c, header, (snd.una - 1) & MASK, ACK, b"", now, out)
        return
    if not snd.queued:
        return
    size = min(max(snd.wnd, 1), snd.mss, snd.queued)
    if (snd.max - snd.una) & MASK < size:
        snd.max = (snd.una + size) & MASK
    _append(c, header, snd.una, ACK, snd.first(size), now, out)
    c.host.counters.tcp_zero_window_probes += 1


def _pure_ack(c: TcpConnection, header: HeaderTemplate, now: float, out: Frames) -> None:
    snd, rcv = c.snd, c.rcv
    if not (c.sack and rcv.has_sack_blocks):
        _append(c, header, snd.max, ACK, b"", now, out)
        return
    stamps = ((int(now * 1000) + c.ts_offset) & MASK, rcv.ts_recent) if c.timestamps else None
    options = emit_options(timestamps=stamps, sack_blocks=rcv.sack_blocks())
    window = rcv.advertise()
    out.append((c.port, header.with_options(snd.max, rcv.nxt, ACK, window, options), b""))


def _syn(c: TcpConnection, header: HeaderTemplate, now: float, out: Frames) -> None:
    """SYN or SYN-ACK, when due, with the options we offer or have agreed to."""
    snd, rcv = c.snd, c.rcv
    if not c.syn_due:
        return
    c.syn_due = False
    opening = c.state is State.SYN_SENT
    stamps = None
    if c.timestamps:
        stamps = ((int(now * 1000) + c.ts_offset) & MASK, 0 if opening else rcv.ts_recent)
    options = emit_options(
        mss=rcv.mss,
        window_scale=WINDOW_SHIFT if opening or rcv.shift else None,
        sack_permitted=c.sack,
        timestamps=stamps,
    )
    flags, ack = (SYN, 0) if opening else (SYN | ACK, rcv.nxt)
    out.append((c.port, header.with_options(snd.iss, ack, flags, rcv.syn_window(), options), b""))
    counters = c.host.counters
    counters.tcp_segments_sent += 1
    if snd.retransmits:
        counters.tcp_retransmits += 1
    elif snd.rtt_seq is None:
        snd.rtt_seq, snd.rtt_at = snd.nxt, now
    rcv.ack_now = False
    at = snd.retransmit_at = now + snd.rtt.rto
    if at < c.armed_at:
        c.arm(at)


def _reset(c: TcpConnection, header: HeaderTemplate, out: Frames) -> None:
    assert c.reset is not None
    seq, ack, flags = c.reset
    c.reset = None
    out.append((c.port, header.plain(seq, ack, flags | RST, 0, b""), b""))
    counters = c.host.counters
    counters.tcp_segments_sent += 1
    counters.tcp_resets_sent += 1
