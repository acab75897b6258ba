"""Path MTU discovery: RFC 1191, and what RFC 5927 asks before an ICMP error is believed."""

from __future__ import annotations

import pytest

from sulla_trio.netstack.events import Closed
from sulla_trio.netstack.path_mtu import LIFETIME, MAX_PATHS, MIN_MTU, PathMtus, next_mtu, quoted_segment
from sulla_trio.netstack.tcp_state import State
from sulla_trio.wire import arp, icmp, inet, ipv4, tcp
from tests.support.stack_guest import OpenGuest, StackGuest, tcp_of

MASK = 0xFFFFFFFF


class NarrowGuest(OpenGuest):
    """A guest with a router behind it, and eight segments of ours on their way through."""

    def __init__(self) -> None:
        super().__init__()
        self.connection.send(bytes(8 * 1460), self.now)
        self.flying = self.frames()
        assert len(self.flying) == 8

    def unreachable(
        self, about: bytes, mtu: int, code: int = icmp.UNREACHABLE_FRAG_NEEDED, **fields: int
    ) -> list[bytes]:
        """A router says that the frame `about` did not get through; our answer."""
        message = icmp.emit_error(icmp.UNREACHABLE, code, mtu, about[14:])
        return self.send(self.ipv4(about[26:30], inet.IPPROTO_ICMP, message, **fields))


# Numbers


@pytest.mark.parametrize(
    ("reported", "length", "used"),
    [
        (1400, 1500, 1400),
        (1500, 1500, None),  # it was no longer than that
        (2000, 1500, None),
        (300, 1500, MIN_MTU),
        (0, 1500, 1492),  # section 7.1: the next plateau
        (0, 1492, 1006),
        (0, 600, MIN_MTU),
        (0, 65_000, 32_000),
        (0, 500, None),
    ],
)
def test_what_a_report_means(reported: int, length: int, used: int | None) -> None:
    assert next_mtu(reported, length) == used


def test_paths_are_forgotten_in_time() -> None:
    paths = PathMtus()
    assert paths.get(b"abcd", 1500, 0.0) == 1500
    paths.lower(b"abcd", 1400, 0.0)
    assert paths.get(b"abcd", 1500, LIFETIME - 1) == 1400
    assert paths.get(b"abcd", 1300, LIFETIME - 1) == 1300
    assert paths.get(b"abcd", 1500, LIFETIME) == 1500
    assert paths._paths == {}


def test_paths_are_bounded_and_the_oldest_goes() -> None:
    paths = PathMtus()
    for number in range(MAX_PATHS + 10):
        paths.lower(number.to_bytes(4, "big"), 1400, 0.0)
    assert len(paths._paths) == MAX_PATHS
    assert paths.get((9).to_bytes(4, "big"), 1500, 0.0) == 1500
    assert paths.get((10).to_bytes(4, "big"), 1500, 0.0) == 1400


def test_what_is_quoted() -> None:
    local, remote = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
    segment = tcp.emit(local, 80, remote, 4000, 77, 0, tcp.ACK, 0)
    packet = ipv4.emit(local, remote, inet.IPPROTO_TCP, 1480) + segment
    quoted = quoted_segment(packet[:28])
    assert quoted is not None
    assert quoted.key == remote + local + bytes((4000 >> 8, 4000 & 255, 0, 80))
    assert (quoted.remote_ip, quoted.length, quoted.seq) == (remote, 1500, 77)
    for bad in (b"", packet[:27], b"\x44" + packet[1:], b"\x65" + packet[1:], packet[:6] + b"\0\1" + packet[8:]):
        assert quoted_segment(bad) is None
    assert quoted_segment(packet[:9] + b"\x11" + packet[10:]) is None


# Connections


def test_fragmentation_needed_lowers_the_path() -> None:
    """Section 6.4: what was too long goes again at once, shorter, and cwnd is as it was."""
    guest = NarrowGuest()
    snd = guest.connection.snd
    before = snd.cwnd
    again = guest.unreachable(guest.flying[0], 1400)
    assert [len(frame) - 14 for frame in again] == [1400] * 8 + [40 + 8 * 1460 - 8 * 1360]
    assert tcp_of(again[0]).seq == guest.iss + 1 & MASK
    assert (snd.mss, snd.cwnd) == (1360, before)
    # The other seven were too long as well: their errors change nothing more.
    for frame in guest.flying[1:]:
        assert guest.unreachable(frame, 1400) == []


def test_the_next_connection_knows() -> None:
    guest = NarrowGuest()
    guest.unreachable(guest.flying[0], 1400)
    other, _ = guest.open(4001)
    assert (other.snd.mss, other.rcv.mss) == (1360, 1460)
    guest.now += LIFETIME
    assert guest.open(4002)[0].snd.mss == 1460


def test_with_timestamps_the_option_is_counted() -> None:
    guest = OpenGuest()
    guest.send(guest.tcp(tcp.SYN, options=tcp.emit_options(mss=1460, timestamps=(1, 0)), source_port=4001))
    connection = guest.stack.accept(guest.events()[0], guest.now)
    isn = tcp_of(guest.frames()[0]).seq
    options = tcp.emit_options(timestamps=(2, 0))
    guest.send(guest.tcp(tcp.ACK, seq=101, ack=isn + 1 & MASK, source_port=4001, options=options))
    connection.send(bytes(1448), guest.now)
    (frame,) = guest.frames()
    message = icmp.emit_error(icmp.UNREACHABLE, icmp.UNREACHABLE_FRAG_NEEDED, 1400, frame[14:])
    again = guest.send(guest.ipv4(frame[26:30], inet.IPPROTO_ICMP, message))
    assert [len(each) - 14 for each in again] == [1400, 52 + 1448 - 1348]


def test_a_report_about_nothing_in_flight_is_not_believed() -> None:
    """RFC 5927 section 4.1."""
    guest = NarrowGuest()
    guest.send(guest.tcp(tcp.ACK, seq=101, ack=guest.iss + 1 + 8 * 1460 & MASK))
    assert guest.unreachable(guest.flying[0], 1400) == []
    assert guest.connection.snd.mss == 1460
    assert guest.drops == {"icmp_unreachable": 1}


def test_a_report_from_another_port_is_not_believed() -> None:
    guest = NarrowGuest()
    guest.port += 1
    assert guest.unreachable(guest.flying[0], 1400) == []
    assert guest.drops == {"icmp_unreachable": 1}


def test_a_report_that_cannot_be_true_changes_nothing() -> None:
    guest = NarrowGuest()
    for mtu in (1500, 9000, 65_535):
        assert guest.unreachable(guest.flying[0], mtu) == []
    assert guest.unreachable(bytes(26) + guest.flying[0][26:30] + bytes(12), 1400) == []
    assert guest.drops == {"icmp_unreachable": 4}
    assert guest.connection.snd.mss == 1460


def test_the_smallest_path() -> None:
    guest = NarrowGuest()
    again = guest.unreachable(guest.flying[0], 68)
    assert {len(frame) - 14 for frame in again[:-1]} == {MIN_MTU}


# Other errors: RFC 1122 section 4.2.3.9, RFC 5927 section 5.2


def test_unreachable_does_not_end_a_connection() -> None:
    guest = NarrowGuest()
    for code in (0, 1, 2, 3, 5, 13):
        assert guest.unreachable(guest.flying[0], 0, code) == []
    assert guest.connection.state is State.ESTABLISHED
    assert guest.drops == {"icmp_unreachable": 6}


@pytest.mark.parametrize(("code", "refused"), [(3, True), (2, True), (13, True), (0, False), (1, False)])
def test_nobody_there_ends_an_attempt(code: int, refused: bool) -> None:
    guest = StackGuest()
    guest.send(guest.arp(arp.REQUEST, guest.network.gateway_ip))
    connection = guest.stack.connect(guest.ip, 80, guest.now)
    (syn,) = guest.frames()
    message = icmp.emit_error(icmp.UNREACHABLE, code, 0, syn[14:])
    assert guest.send(guest.ipv4(syn[26:30], inet.IPPROTO_ICMP, message)) == []
    assert guest.events() == ([Closed(connection, "refused")] if refused else [])
