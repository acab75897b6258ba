"""What a connection remembers, and how little that is."""

from __future__ import annotations

import sys

from sulla_trio.netstack.tcp_state import State
from tests.support.bare_stack import GATEWAY_IP, GUEST_IP
from tests.support.peer import established, syn_sent


def test_the_key_is_what_the_guests_segments_carry() -> None:
    connection = established().connection
    assert connection.key == GUEST_IP + GATEWAY_IP + (40_000).to_bytes(2, "big") + (80).to_bytes(2, "big")
    assert (connection.remote_ip, connection.remote_port) == (GUEST_IP, 40_000)
    assert (connection.local_ip, connection.local_port) == (GATEWAY_IP, 80)


def test_no_part_has_a_dict() -> None:
    connection = established().connection
    for part in (connection, connection.snd, connection.rcv, connection.snd.rtt, connection.header):
        assert not hasattr(part, "__dict__")


def test_an_idle_connection_is_small() -> None:
    connection = established().connection
    parts = (connection, connection.snd, connection.rcv, connection.snd.rtt, connection.header, connection.snd.chunks)
    assert sum(sys.getsizeof(part) for part in parts) < 3000
    assert connection.rcv.queue is None


def test_a_new_connection_waits_for_its_syn_ack() -> None:
    connection = syn_sent().connection
    assert connection.state is State.SYN_SENT
    assert connection.poll_at() == 51.0
    assert connection.error is None
