"""TCP states and every transition between them: one table, from RFC 9293 figure 5.

Nothing else in this package assigns a state: `TcpConnection` asks `next_state`. The diagram ``docs/tcp-states.md`` is
generated from the table, and a test compares the table with the figure.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final

from sulla_trio.errors import LocalError


class State(Enum):
    """RFC 9293 section 3.3.2; the values are the RFC's spellings."""

    CLOSED = "CLOSED"
    LISTEN = "LISTEN"
    SYN_SENT = "SYN-SENT"
    SYN_RECEIVED = "SYN-RECEIVED"
    ESTABLISHED = "ESTABLISHED"
    FIN_WAIT_1 = "FIN-WAIT-1"
    FIN_WAIT_2 = "FIN-WAIT-2"
    CLOSE_WAIT = "CLOSE-WAIT"
    CLOSING = "CLOSING"
    LAST_ACK = "LAST-ACK"
    TIME_WAIT = "TIME-WAIT"


class Trigger(Enum):
    """What moves a connection from one state to another; the values are the labels of figure 5."""

    PASSIVE_OPEN = "passive OPEN"
    ACTIVE_OPEN = "active OPEN"
    CLOSE = "CLOSE"
    DELETE = "delete TCB"
    RCV_SYN = "rcv SYN"
    RCV_SYN_ACK = "rcv SYN,ACK"
    RCV_ACK_OF_SYN = "rcv ACK of SYN"
    RCV_FIN = "rcv FIN"
    RCV_ACK_OF_FIN = "rcv ACK of FIN"
    TWO_MSL = "Timeout=2MSL"
    RCV_RST = "rcv RST"
    ABORT = "ABORT"
    USER_TIMEOUT = "USER TIMEOUT"


FIGURE_5: Final[Mapping[tuple[State, Trigger], State]] = MappingProxyType(
    {
        (State.CLOSED, Trigger.PASSIVE_OPEN): State.LISTEN,
        (State.CLOSED, Trigger.ACTIVE_OPEN): State.SYN_SENT,
        (State.LISTEN, Trigger.RCV_SYN): State.SYN_RECEIVED,
        (State.LISTEN, Trigger.ACTIVE_OPEN): State.SYN_SENT,  # the figure's SEND
        (State.LISTEN, Trigger.DELETE): State.CLOSED,
        (State.SYN_SENT, Trigger.RCV_SYN): State.SYN_RECEIVED,  # simultaneous open
        (State.SYN_SENT, Trigger.RCV_SYN_ACK): State.ESTABLISHED,
        (State.SYN_SENT, Trigger.DELETE): State.CLOSED,
        (State.SYN_RECEIVED, Trigger.RCV_ACK_OF_SYN): State.ESTABLISHED,
        (State.SYN_RECEIVED, Trigger.CLOSE): State.FIN_WAIT_1,
        (State.ESTABLISHED, Trigger.CLOSE): State.FIN_WAIT_1,
        (State.ESTABLISHED, Trigger.RCV_FIN): State.CLOSE_WAIT,
        (State.FIN_WAIT_1, Trigger.RCV_ACK_OF_FIN): State.FIN_WAIT_2,
        (State.FIN_WAIT_1, Trigger.RCV_FIN): State.CLOSING,
        (State.FIN_WAIT_2, Trigger.RCV_FIN): State.TIME_WAIT,
        (State.CLOSE_WAIT, Trigger.CLOSE): State.LAST_ACK,
        (State.CLOSING, Trigger.RCV_ACK_OF_FIN): State.TIME_WAIT,
        (State.LAST_ACK, Trigger.RCV_ACK_OF_FIN): State.CLOSED,
        (State.TIME_WAIT, Trigger.TWO_MSL): State.CLOSED,
    }
)
"""The arrows of the figure. What its note 2 adds, from FIN-WAIT-1 to TIME-WAIT, is two of them taken for one
segment."""

ENDINGS: Final[Mapping[tuple[State, Trigger], State]] = MappingProxyType(
    {
        (state, trigger): State.CLOSED
        for state in State
        if state is not State.CLOSED
        for trigger in (Trigger.RCV_RST, Trigger.ABORT, Trigger.USER_TIMEOUT)
    }
)
"""What the figure leaves to the text: a reset, an abort or a time-out ends every state (sections 3.10.5, 3.10.7,
3.10.8)."""

TRANSITIONS: Final[Mapping[tuple[State, Trigger], State]] = MappingProxyType({**FIGURE_5, **ENDINGS})

SYNCHRONIZED: Final = frozenset(set(State) - {State.CLOSED, State.LISTEN, State.SYN_SENT, State.SYN_RECEIVED})
"""Section 3.5.2, group 3: the handshake is complete."""


def next_state(state: State, trigger: Trigger) -> State:
    """The state after `trigger`.

    Raises:
        LocalError: the table has no such arrow; the caller is wrong, whatever the peer sent.
    """
    try:
        return TRANSITIONS[state, trigger]
    except KeyError:
        raise LocalError(f"TCP: {trigger.value} in state {state.value}") from None
