"""A port that takes nothing more: connections wait unsaid, the newest acknowledgment is kept, nothing queued is repeated."""

from __future__ import annotations

import pytest

from sulla_trio.netstack import stack as stack_module
from sulla_trio.netstack.events import Closed
from sulla_trio.netstack.held import HeldPorts
from sulla_trio.netstack.tcp_state import State
from sulla_trio.wire.tcp import ACK, FIN, RST
from tests.support.peer import established
from tests.support.stack_guest import OpenGuest, tcp_of


def test_order_is_kept_and_each_waits_once() -> None:
    held = HeldPorts()
    one, two = established().connection, established().connection
    held.hold(0, 1)
    for connection in (two, one, two):
        held.add(connection)
    assert held.release(0) == [two, one]
    assert not held
    assert held.release(0) == []


def test_only_the_batch_that_filled_the_queue_is_in_it() -> None:
    held = HeldPorts()
    connection = established().connection
    connection.sent_batch = 6
    assert not held.is_queued(connection)
    held.hold(0, 6)
    held.hold(0, 7)  # a port is held once
    assert held.is_queued(connection)
    connection.sent_batch = 5
    assert not held.is_queued(connection)


def test_acknowledgments_collapse_to_the_newest() -> None:
    guest = OpenGuest()
    guest.stack.hold(guest.port)
    for at in range(50):
        assert guest.send(guest.data(bytes(1000), seq=101 + 1000 * at)) == []
    guest.stack.release(guest.port)
    (frame,) = guest.frames()
    assert tcp_of(frame).ack == 101 + 50_000


def test_no_acknowledgment_is_lost_however_many_connections_wait() -> None:
    guest = OpenGuest()
    opened = {4000: guest.iss} | {5000 + number: guest.open(5000 + number)[1] for number in range(200)}
    guest.stack.hold(guest.port)
    for port, iss in opened.items():
        assert guest.send(guest.tcp(ACK | FIN, b"x", seq=101, ack=iss + 1 & 0xFFFFFFFF, source_port=port)) == []
    guest.stack.release(guest.port)
    frames = guest.frames()
    assert sorted(tcp_of(frame).destination_port for frame in frames) == sorted(opened)
    assert {tcp_of(frame).ack for frame in frames} == {103}


def test_another_port_is_not_held() -> None:
    guest = OpenGuest()
    guest.stack.hold(guest.port + 1)
    assert len(guest.send(guest.data(bytes(3000)))) == 1


def test_what_is_still_queued_is_not_sent_again() -> None:
    guest = OpenGuest()
    guest.connection.send(b"queued", guest.now)
    assert len(guest.frames()) == 1
    guest.stack.hold(guest.port)  # and it still is in the out-queue
    assert guest.wait(3600) == []
    assert guest.stack.counters.tcp_timeouts == guest.stack.counters.tcp_retransmits == 0
    assert guest.connection.snd.rtt.rto == 0.2  # nothing was lost: no back-off
    guest.stack.release(guest.port)
    assert guest.frames() == []
    (again,) = guest.wait(0.25)  # it has left, and there is no answer
    assert again.endswith(b"queued")


def test_what_had_left_before_is_sent_again_once_there_is_room() -> None:
    guest = OpenGuest()
    guest.connection.send(b"lost", guest.now)
    assert len(guest.frames()) == 1
    guest.frames()
    guest.stack.hold(guest.port)  # for another's frames
    assert guest.wait(600) == []
    assert guest.stack.counters.tcp_timeouts == 1  # nothing was sent, so no timer runs
    guest.stack.release(guest.port)
    (again,) = guest.frames()
    assert again.endswith(b"lost")


def test_probes_and_keep_alives_wait_and_are_not_counted_as_unanswered() -> None:
    guest = OpenGuest()
    guest.stack.hold(guest.port)
    assert guest.wait(100_000) == []  # hours past the keep-alive
    assert guest.connection.state is State.ESTABLISHED
    guest.stack.release(guest.port)
    (probe,) = guest.frames()
    assert tcp_of(probe).seq == guest.iss


def test_a_reset_does_not_wait_for_room() -> None:
    """A connection that is gone would wait without a bound."""
    guest = OpenGuest()
    guest.stack.hold(guest.port)
    guest.connection.send(b"never", guest.now)
    assert guest.frames() == []
    guest.connection.abort(guest.now)
    (frame,) = guest.frames()
    assert tcp_of(frame).flags == RST | ACK
    guest.stack.release(guest.port)
    assert guest.frames() == []


def test_a_lost_port_forgets_its_hold() -> None:
    guest = OpenGuest()
    guest.stack.hold(guest.port)
    guest.connection.send(b"never", guest.now)
    guest.frames()
    guest.stack.port_removed(guest.port, guest.now)
    assert guest.events()[-1] == Closed(guest.connection, "reset")
    assert guest.frames() == []
    assert not guest.stack._held


def test_a_batch_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack_module, "BATCH_BYTES", 20_000)
    guest = OpenGuest()
    for number in range(9):
        guest.open(5000 + number)
    for connection in guest.stack.connections.values():
        connection.send(bytes(14_600), guest.now)
    batches = []
    while frames := guest.stack.frames_to_send(guest.now):
        batches.append(sum(len(payload) for _, _, payload in frames))
    assert batches == [29_200] * 5
