"""The timers of a connection: retransmission, persist, delayed ACK, and what ends an idle one (RFC 9293 section
3.10.8).

`retransmit_at` (the sender's), `delack_at` and `life_at` are plain deadlines; moving one later is one assignment, and
the stack's timer heap finds out when the old deadline comes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sulla_trio.netstack import tcp_lifecycle, tcp_recovery
from sulla_trio.netstack.tcp_options import NEVER
from sulla_trio.netstack.tcp_state import State, Trigger

if TYPE_CHECKING:
    from sulla_trio.netstack.tcp import TcpConnection

_OPENING: Final = frozenset({State.SYN_SENT, State.SYN_RECEIVED})


def timers_due(c: TcpConnection, now: float) -> None:
    """Act on each timer that is due."""
    if c.delack_at <= now:
        c.delack_at = NEVER
        c.ack_at_once()
    if c.snd.retransmit_at <= now:
        if c.state in _OPENING:
            _syn_timed_out(c, now)
        elif c.host.is_queued(c) or (c.snd.persisting and c.dirty):
            c.snd.retransmit_at = NEVER  # it has not left this machine: the timer starts again when the link takes more
            c.touch()
        elif c.snd.persisting:
            _probe_window(c, now)
        else:
            _retransmission_timed_out(c)
    if c.life_at <= now:
        _life_timed_out(c, now)


def _syn_timed_out(c: TcpConnection, now: float) -> None:
    snd, host = c.snd, c.host
    host.counters.tcp_timeouts += 1
    if snd.retransmits >= host.options.max_syn_retransmits:
        tcp_lifecycle.end(c, Trigger.USER_TIMEOUT, "timeout")
        return
    snd.retransmits += 1
    snd.rtt_seq = None
    snd.rtt.back_off()
    snd.retransmit_at = now + snd.rtt.rto
    c.syn_due = True
    c.touch()


def _retransmission_timed_out(c: TcpConnection) -> None:
    """RFC 6298 section 5.4-5.7; after R2 (RFC 9293 section 3.8.3) the connection ends."""
    host = c.host
    host.counters.tcp_timeouts += 1
    if c.snd.retransmits >= host.options.max_retransmits:
        tcp_lifecycle.end(c, Trigger.USER_TIMEOUT, "timeout", reset=True)
        return
    tcp_recovery.timed_out(c.snd)
    c.touch()


def _probe_window(c: TcpConnection, now: float) -> None:
    """RFC 9293 section 3.8.6.1: at growing intervals, for ever while the peer answers."""
    snd = c.snd
    if _unanswered(c, now) > c.host.options.max_retransmits:
        tcp_lifecycle.end(c, Trigger.USER_TIMEOUT, "timeout", reset=True)
        return
    snd.retransmits += 1
    options = c.host.options
    snd.retransmit_at = now + min(snd.rtt.rto * 2.0 ** min(snd.retransmits, 16), options.max_rto)
    c.probe = True
    c.touch()


def _unanswered(c: TcpConnection, now: float) -> int:
    """Count a probe that is about to be sent; how many before it were not answered."""
    if c.last_heard >= c.probed_at:
        c.unanswered = 0
    missed = c.unanswered
    c.unanswered += 1
    c.probed_at = now
    return missed


def start_life_timer(c: TcpConnection, now: float) -> None:
    """What limits the present state: 2 MSL, a closed owner's FIN-WAIT-2, else keep-alive."""
    options = c.host.options
    if c.state is State.TIME_WAIT:
        c.life_at = now + options.time_wait
    elif c.state is State.FIN_WAIT_2 and c.owner_closed:
        c.life_at = now + options.fin_wait_2
    elif c.state is State.CLOSED:
        c.life_at = NEVER
    else:
        c.life_at = now + options.keepalive_idle
    if c.life_at < c.armed_at:
        c.arm(c.life_at)


def _life_timed_out(c: TcpConnection, now: float) -> None:
    if c.state is State.TIME_WAIT:
        c.expire()
    elif c.state is State.FIN_WAIT_2 and c.owner_closed:
        tcp_lifecycle.end(c, Trigger.USER_TIMEOUT, "timeout")
    elif c.state not in _OPENING and c.state is not State.CLOSED:
        _keep_alive(c, now)


def _keep_alive(c: TcpConnection, now: float) -> None:
    """RFC 9293 section 3.8.4. Data under way is its own probe; one that waits for the link is not repeated."""
    options = c.host.options
    idle_until = c.last_heard + options.keepalive_idle
    if idle_until > now:
        c.life_at = idle_until
    elif c.snd.retransmit_at != NEVER or c.dirty:
        c.life_at = now + options.keepalive_interval
    elif _unanswered(c, now) >= options.keepalive_probes:
        tcp_lifecycle.end(c, Trigger.USER_TIMEOUT, "timeout", reset=True)
    else:
        c.probe = True
        c.life_at = now + options.keepalive_interval
        c.touch()
