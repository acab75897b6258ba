"""What belongs to no connection: SYNs that become requests, everything else that is reset, and floods of both."""

from __future__ import annotations

import pytest

from sulla_trio.config import BROADCAST_MAC
from sulla_trio.errors import LocalError
from sulla_trio.netstack.events import Closed, ConnectionRequest, RequestCancelled
from sulla_trio.netstack.pending import MAX_HALF_OPEN, MAX_PENDING
from sulla_trio.netstack.tcp_state import State
from sulla_trio.wire import icmp
from sulla_trio.wire.tcp import ACK, FIN, PSH, RST, SYN
from tests.support.stack_guest import REMOTE, OpenGuest, StackGuest, icmp_of, ip_of, tcp_of

# Segments of no connection


@pytest.mark.parametrize(
    ("flags", "payload", "expected"),
    [
        (ACK, b"", (RST, 777, 0)),
        (ACK | PSH, b"data", (RST, 777, 0)),
        (SYN | ACK, b"", (RST, 777, 0)),
        (0, b"data", (RST | ACK, 0, 104)),
        (FIN, b"data", (RST | ACK, 0, 105)),
    ],
)
def test_it_is_reset_so_that_its_sender_believes_it(flags: int, payload: bytes, expected: tuple[int, int, int]) -> None:
    guest = StackGuest()
    (frame,) = guest.send(guest.tcp(flags, payload, ack=777 if flags & ACK else 0))
    header, reset = ip_of(frame), tcp_of(frame)
    assert (reset.flags, reset.seq, reset.ack) == expected
    assert (header.source, header.destination) == (REMOTE, guest.ip)
    assert (reset.source_port, reset.destination_port) == (80, 4000)
    assert frame[:6] == guest.mac


def test_groups_have_no_tcp() -> None:
    guest = StackGuest()
    directed = bytes((192, 168, 127, 255))
    assert guest.send(guest.tcp(SYN, destination=bytes((224, 0, 0, 1)))) == []
    assert guest.send(guest.tcp(ACK, destination=b"\xff" * 4)) == []
    assert guest.send(BROADCAST_MAC + guest.tcp(SYN, destination=directed)[6:]) == []
    assert guest.events() == []
    assert guest.drops == {"tcp_group": 3}


# Requests


def test_another_syn_in_place_of_one_that_waits() -> None:
    guest = StackGuest()
    guest.send(guest.tcp(SYN, seq=100))
    guest.send(guest.tcp(SYN, seq=100))
    (old,) = guest.events()
    guest.send(guest.tcp(SYN, seq=900))
    cancelled, new = guest.events()
    assert cancelled == RequestCancelled(old.key)
    assert new.segment.seq == 900
    with pytest.raises(LocalError):
        guest.stack.accept(old, guest.now)
    guest.stack.accept(new, guest.now)
    assert [tcp_of(frame).ack for frame in guest.frames()] == [901]


def test_a_dropped_request_may_come_again() -> None:
    guest = StackGuest()
    guest.send(guest.tcp(SYN))
    (request,) = guest.events()
    guest.stack.drop(request)
    guest.stack.drop(request)
    assert guest.send(guest.tcp(SYN)) == []
    assert len(guest.events()) == 1


def test_unreachable_quotes_the_syn() -> None:
    guest = StackGuest()
    syn = guest.tcp(SYN)
    guest.send(syn)
    (request,) = guest.events()
    guest.stack.unreachable(request, icmp.UNREACHABLE_HOST, guest.now)
    first, second = guest.frames()
    message, quoted = icmp_of(first)
    assert (message.type, message.code, quoted) == (icmp.UNREACHABLE, icmp.UNREACHABLE_HOST, syn[14:42])
    assert tcp_of(second).flags == RST | ACK


def test_answers_go_where_the_syn_came_from() -> None:
    guest = StackGuest()
    guest.mac, guest.port = b"\x02\0\0\0\0\x77", 12
    guest.send(guest.tcp(SYN, source=bytes((192, 168, 143, 2))))
    (request,) = guest.events()
    guest.stack.accept(request, guest.now)
    ((port, frame, _),) = guest.stack.frames_to_send(guest.now)
    assert (port, frame[:6]) == (12, guest.mac)


# Floods: RFC 4987


def test_a_flood_of_syns_waits_in_a_bounded_table() -> None:
    """20,000 SYNs from many addresses to many places, none of them dialled yet."""
    guest = StackGuest()
    for number in range(20_000):
        source = bytes((10, 1, number >> 12, number >> 4 & 255))
        destination = bytes((93, 184, number >> 8, number & 255))
        guest.send(guest.tcp(SYN, source=source, destination=destination, source_port=1024 + number % 60_000))
    assert guest.stack.pending == len(guest.events()) == MAX_PENDING
    assert guest.drops == {"syn_pending_full": 20_000 - MAX_PENDING}
    assert guest.stack.connections == {}


def test_half_open_connections_are_bounded_and_the_oldest_go() -> None:
    """Each is dialled at once and answered with a SYN-ACK that nobody acknowledges (section 3.4)."""
    guest = OpenGuest()
    guest.events()
    closed = 0
    for number in range(2 * MAX_HALF_OPEN):
        guest.send(guest.tcp(SYN, source_port=5000 + number))
        for event in guest.events():
            if isinstance(event, ConnectionRequest):
                guest.stack.accept(event, guest.now)
            else:
                assert isinstance(event, Closed)
                assert event.reason == "timeout"
                closed += 1
        guest.frames()
        assert len(guest.stack.connections) <= MAX_HALF_OPEN + 1
    closed += len(guest.events())
    assert guest.drops == {"syn_half_open_full": closed}
    assert closed > MAX_HALF_OPEN
    assert guest.connection.state is State.ESTABLISHED  # what is established is not touched
    assert guest.stack.credit.charged < (MAX_HALF_OPEN + 2) * guest.stack.options.initial_window
    guest.send(guest.data(b"and goes on"))
    assert guest.received() == b"and goes on"


def test_who_completes_the_handshake_is_no_longer_counted() -> None:
    guest = StackGuest()
    for number in range(MAX_HALF_OPEN + 100):
        OpenGuest.open(guest, 5000 + number)  # type: ignore[arg-type]
    assert len(guest.stack.connections) == MAX_HALF_OPEN + 100
    assert guest.drops == {}
