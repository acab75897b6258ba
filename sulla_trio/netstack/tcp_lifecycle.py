"""From the first SYN to the last event of a connection: opening, state changes, ending, and what the owner is told
when.

Every change of `TcpConnection.state` goes through `transition` and so through the table of `tcp_state`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sulla_trio.netstack import tcp_timers
from sulla_trio.netstack.events import Closed, Connected, PeerClosed
from sulla_trio.netstack.tcp_options import NEVER
from sulla_trio.netstack.tcp_state import State, Trigger, next_state
from sulla_trio.wire.tcp import ACK, Segment

if TYPE_CHECKING:
    from sulla_trio.netstack.tcp import TcpConnection

DEFAULT_MSS: Final = 536
"""RFC 9293 section 3.7.1: what a peer takes that does not say."""
MIN_MSS: Final = 64
"""A smaller offer is taken for this: it could only be meant to make us send headers."""
MAX_WINDOW_SHIFT: Final = 14
"""RFC 7323 section 2.3."""
TIMESTAMPS_LENGTH: Final = 12
_COUNTED: Final = frozenset({State.ESTABLISHED, State.CLOSE_WAIT})
"""tcpCurrEstab of RFC 4022."""


def transition(c: TcpConnection, trigger: Trigger) -> None:
    """Follow one arrow of the table."""
    before, after = c.state, next_state(c.state, trigger)
    c.state = after
    c.host.counters.tcp_current_established += (after in _COUNTED) - (before in _COUNTED)


def synchronize(c: TcpConnection, segment: Segment, now: float) -> None:
    """Take the peer's SYN: its sequence number, its window (never scaled in a SYN) and its options."""
    snd, rcv = c.snd, c.rcv
    scale = segment.window_scale
    rcv.synchronize(segment.seq, scaled=scale is not None)
    snd.shift = min(scale, MAX_WINDOW_SHIFT) if scale is not None else 0
    snd.wnd = snd.max_wnd = segment.window
    snd.wl1, snd.wl2 = segment.seq, segment.ack
    c.sack = segment.sack_permitted
    c.timestamps = segment.ts_value is not None
    if segment.ts_value is not None:
        rcv.ts_recent, rcv.ts_recent_at = segment.ts_value, now
    snd.mss = min(max(DEFAULT_MSS if segment.mss is None else segment.mss, MIN_MSS), snd.mss)
    if c.timestamps:
        snd.mss -= TIMESTAMPS_LENGTH  # RFC 6691: the MSS does not count options


def establish(c: TcpConnection, segment: Segment, trigger: Trigger, now: float) -> None:
    """Our SYN is acknowledged: the handshake is complete."""
    snd = c.snd
    if snd.rtt_seq is not None and not snd.retransmits:
        snd.rtt.sample(now - snd.rtt_at)
    else:
        snd.rtt.syn_was_lost()
    snd.established()
    snd.wnd = segment.window if trigger is Trigger.RCV_SYN_ACK else segment.window << snd.shift
    snd.max_wnd = max(snd.max_wnd, snd.wnd)
    snd.wl1, snd.wl2 = segment.seq, segment.ack
    transition(c, trigger)
    c.host.raise_event(Connected(c))
    tcp_timers.start_life_timer(c, now)
    if snd.fin_queued:
        transition(c, Trigger.CLOSE)
    if snd.queued or snd.fin_queued:
        c.touch()


def enter_time_wait(c: TcpConnection) -> None:
    """The state is TIME-WAIT now: nothing but the timer is left to do."""
    c.snd.discard()
    c.delack_at = NEVER
    tcp_timers.start_life_timer(c, c.last_heard)
    c.host.entered_time_wait(c)
    surface_end(c)


def surface_end(c: TcpConnection) -> None:
    """Raise `PeerClosed`, then `Closed`, as far as they are true and everything received was delivered."""
    if c.rcv.queued and not c.owner_closed:
        return
    if c.rcv.fin_received and not c.eof_raised:
        c.eof_raised = True
        c.host.raise_event(PeerClosed(c))
    if (c.state is State.TIME_WAIT or c.state is State.CLOSED) and c.error is None:
        _finish(c)


def _finish(c: TcpConnection) -> None:
    if not c.closed_raised:
        c.closed_raised = True
        c.rcv.release()
        c.host.raise_event(Closed(c, c.error))


def end(c: TcpConnection, trigger: Trigger, reason: str | None, *, reset: bool = False) -> None:
    """To CLOSED. `reason` None: in order, and `Closed` waits for the owner to take what is queued; else what is
    queued is flushed. With `reset` the peer is told by RST."""
    if c.state is State.CLOSED or c.state is State.TIME_WAIT:
        if not c.closed_raised and reason is not None:  # the owner gave up on bytes it had not taken
            c.error = reason
            _finish(c)
        if c.state is State.CLOSED:
            return
        if trigger is Trigger.ABORT:
            return  # TIME-WAIT runs its course without an owner (section 3.10.5)
    snd = c.snd
    if reset:
        c.reset = (snd.max, c.rcv.nxt, ACK)
        c.touch()
    if c.error is None and not c.closed_raised:
        c.error = reason
    forget(c, trigger)
    if reason is None:
        surface_end(c)
    else:
        _finish(c)


def forget(c: TcpConnection, trigger: Trigger) -> None:
    """CLOSED: no timer runs, nothing is queued for sending, the stack does not know it any more."""
    c.snd.discard()
    c.delack_at = c.life_at = c.armed_at = NEVER
    transition(c, trigger)
    c.host.forget(c)
