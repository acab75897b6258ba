"""The table against figure 5 of RFC 9293, typed here a second time from the drawing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sulla_trio.errors import LocalError
from sulla_trio.netstack.tcp_state import ENDINGS, FIGURE_5, SYNCHRONIZED, TRANSITIONS, State, Trigger, next_state

ROOT = Path(__file__).resolve().parents[2]
FIGURE = """
CLOSED       | passive OPEN   | LISTEN
CLOSED       | active OPEN    | SYN-SENT
LISTEN       | delete TCB     | CLOSED
LISTEN       | rcv SYN        | SYN-RECEIVED
LISTEN       | active OPEN    | SYN-SENT
SYN-SENT     | delete TCB     | CLOSED
SYN-SENT     | rcv SYN        | SYN-RECEIVED
SYN-SENT     | rcv SYN,ACK    | ESTABLISHED
SYN-RECEIVED | rcv ACK of SYN | ESTABLISHED
SYN-RECEIVED | CLOSE          | FIN-WAIT-1
ESTABLISHED  | CLOSE          | FIN-WAIT-1
ESTABLISHED  | rcv FIN        | CLOSE-WAIT
FIN-WAIT-1   | rcv ACK of FIN | FIN-WAIT-2
FIN-WAIT-1   | rcv FIN        | CLOSING
FIN-WAIT-2   | rcv FIN        | TIME-WAIT
CLOSING      | rcv ACK of FIN | TIME-WAIT
CLOSE-WAIT   | CLOSE          | LAST-ACK
LAST-ACK     | rcv ACK of FIN | CLOSED
TIME-WAIT    | Timeout=2MSL   | CLOSED
"""


def test_the_table_is_figure_5() -> None:
    rows = [tuple(cell.strip() for cell in line.split("|")) for line in FIGURE.strip().splitlines()]
    table = [(state.value, trigger.value, after.value) for (state, trigger), after in FIGURE_5.items()]
    assert sorted(table) == sorted(rows)


def test_every_state_but_closed_can_be_cut_short() -> None:
    assert {state for state, _ in ENDINGS} == set(State) - {State.CLOSED}
    assert set(ENDINGS.values()) == {State.CLOSED}
    assert len(TRANSITIONS) == len(FIGURE_5) + len(ENDINGS)


def test_every_state_can_be_reached_and_left() -> None:
    assert set(TRANSITIONS.values()) == set(State) == {state for state, _ in TRANSITIONS}
    assert {trigger for _, trigger in TRANSITIONS} == set(Trigger)


def test_a_missing_arrow_is_our_own_fault() -> None:
    assert next_state(State.CLOSED, Trigger.PASSIVE_OPEN) is State.LISTEN
    with pytest.raises(LocalError, match="rcv FIN in state LISTEN"):
        next_state(State.LISTEN, Trigger.RCV_FIN)


def test_synchronized_states() -> None:
    assert len(SYNCHRONIZED) == 7
    assert State.SYN_RECEIVED not in SYNCHRONIZED


def test_the_page_in_the_docs_is_current() -> None:
    done = subprocess.run([sys.executable, ROOT / "tools" / "tcp_diagram", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
