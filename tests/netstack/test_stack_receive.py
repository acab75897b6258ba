"""The stack's way of a TCP segment: the path in line equals the long one, and what is unknown is answered."""

from __future__ import annotations

import random
from typing import Any

import pytest

from sulla_trio.config import network_config
from sulla_trio.errors import LocalError
from sulla_trio.netstack import stack as stack_module
from sulla_trio.netstack.events import (
    Closed,
    ConnectionRequest,
    PeerClosed,
)
from sulla_trio.netstack.stack import BROADCAST_PORT, Stack
from sulla_trio.netstack.tcp_options import TcpOptions
from sulla_trio.netstack.tcp_state import State
from sulla_trio.wire import arp, inet, ipv4
from sulla_trio.wire.tcp import ACK, FIN, PSH, RST, SYN
from tests.support.stack_guest import MASK, REMOTE, OpenGuest, StackGuest, ip_of, tcp_of


def fixed(frame: bytes, at: int, value: bytes) -> bytes:
    """`frame` with bytes replaced and the IP checksum put right."""
    out = bytearray(frame)
    out[at : at + len(value)] = value
    out[24:26] = bytes(2)
    out[24:26] = inet.checksum(out[14:34]).to_bytes(2, "big")
    return bytes(out)


# The path in line


def story(guest: OpenGuest) -> list[Any]:
    """A life of a connection, and all that can be seen of it."""
    seen: list[Any] = []
    train = [
        guest.data(b"a" * 1460),
        guest.data(b"c" * 10, seq=2000),
        guest.data(b"b" * 439, seq=1561),
        guest.data(b"d" * 6, seq=2010) + bytes(3),
        guest.data(b"", seq=2016, flags=ACK | PSH),
        guest.tcp(SYN, seq=5000),
        guest.data(b"", seq=2016, flags=ACK | FIN),
    ]
    for frame in train:
        seen.append(guest.send(frame))
        seen.append([type(event) for event in guest.events()])
    seen.append(guest.received())
    counters = guest.stack.counters
    return [*seen, guest.connection.state, guest.drops, counters.ip_datagrams_received, counters.tcp_segments_received]


def test_the_path_in_line_and_the_long_one_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    in_line = story(OpenGuest())
    monkeypatch.setattr(stack_module, "_FRAME_MIN", 1 << 20)
    assert story(OpenGuest()) == in_line
    assert b"a" * 1460 + b"b" * 439 + b"c" * 10 + b"d" * 6 in in_line


@pytest.mark.parametrize(
    ("at", "value", "reason"),
    [
        (16, b"\x05\xdc", "ipv4_length"),
        (16, b"\0\x27", "tcp_short"),
        (46, b"\x40", "tcp_offset"),
        (46, b"\xf0", "tcp_offset"),
        (-1, b"x", "tcp_checksum"),
        (22, b"\x01", "ipv4_ttl"),
        (22, b"\x00", "ipv4_ttl"),
        (30, b"\x7f", "ipv4_martian"),
    ],
)
def test_what_is_wrong_with_a_segment_of_a_connection(at: int, value: bytes, reason: str) -> None:
    guest = OpenGuest()
    frame = guest.data()
    guest.send(fixed(frame, at % len(frame), value))
    assert guest.drops == {reason: 1}
    assert guest.stack.counters.tcp_checksum_errors == (reason == "tcp_checksum")
    assert guest.events() == []
    guest.send(frame)
    assert guest.received() == b"hello"


def test_the_ip_checksum_is_verified() -> None:
    guest = OpenGuest()
    frame = bytearray(guest.data())
    frame[24] ^= 1
    guest.send(bytes(frame))
    assert guest.drops == {"ipv4_checksum": 1}


def test_ethernet_padding_is_not_data() -> None:
    guest = OpenGuest()
    guest.send(guest.data(b"abc") + b"\xaa" * 3)
    assert guest.received() == b"abc"


def test_a_segment_with_ip_options_finds_its_connection() -> None:
    guest = OpenGuest()
    plain = guest.data()
    header = bytearray(plain[14:34] + b"\x94\x04\0\0")
    header[0], header[3] = 0x46, header[3] + 4
    header[10:12] = bytes(2)
    header[10:12] = inet.checksum(header).to_bytes(2, "big")
    guest.send(plain[:14] + bytes(header) + plain[34:])
    assert guest.received() == b"hello"


def test_ip_options_are_not_taken_for_ports() -> None:
    """Options that look like a connection's ports, and whose sum is nothing so that 20 bytes have a right checksum too."""
    guest = StackGuest()
    guest.send(guest.tcp(SYN, port=61_535))  # 4000 + 61535 is 0 in ones' complement
    (request,) = guest.events()
    guest.stack.accept(request, guest.now)
    guest.frames()
    plain = guest.tcp(ACK, b"x", source_port=5000, port=81, ack=9)
    header = bytearray(plain[14:34] + request.key[8:])
    header[0], header[3] = 0x46, header[3] + 4
    header[10:12] = bytes(2)
    header[10:12] = inet.checksum(header).to_bytes(2, "big")
    assert inet.checksum(header[:20]) == 0
    (reset,) = guest.send(plain[:14] + bytes(header) + plain[34:])
    assert (tcp_of(reset).flags, tcp_of(reset).destination_port) == (RST, 5000)
    assert guest.drops == {}


def test_a_fragmented_segment_finds_its_connection() -> None:
    guest = OpenGuest()
    body = guest.data(b"x" * 1000)[34:]
    for at, more in ((512, 0), (0, ipv4.MORE_FRAGMENTS)):
        piece = body[at : at + 512] if more else body[at:]
        guest.send(guest.ipv4(REMOTE, inet.IPPROTO_TCP, piece, identification=5, flags_fragment=more | at // 8))
    assert guest.received() == b"x" * 1000


# A SYN of a connection


def test_a_syn_in_a_connection_asks_for_nothing() -> None:
    guest = OpenGuest()
    (challenge,) = guest.send(guest.tcp(SYN, seq=200))
    assert tcp_of(challenge).flags == ACK
    assert guest.events() == []
    assert guest.connection.state is State.ESTABLISHED


def closed_in_order(guest: OpenGuest) -> None:
    """To TIME-WAIT: we close first."""
    guest.connection.close(guest.now)
    (fin,) = guest.frames()
    guest.send(guest.tcp(FIN | ACK, seq=101, ack=tcp_of(fin).seq + 1 & MASK))
    assert guest.connection.state is State.TIME_WAIT
    assert [type(event) for event in guest.events()] == [PeerClosed, Closed]


def test_a_newer_syn_ends_time_wait() -> None:
    guest = OpenGuest()
    closed_in_order(guest)
    guest.send(guest.tcp(SYN, seq=50))  # older
    assert guest.events() == []
    guest.send(guest.tcp(SYN, seq=50_000))
    (request,) = guest.events()
    assert isinstance(request, ConnectionRequest)
    assert guest.stack.connections == {}


def test_time_wait_is_bounded_and_the_oldest_goes() -> None:
    guest = OpenGuest(options=TcpOptions(time_wait_limit=1))
    first = guest.connection
    closed_in_order(guest)
    guest.connection, guest.iss = guest.open(4001)
    guest.connection.close(guest.now)
    (fin,) = guest.frames()
    guest.send(guest.tcp(FIN | ACK, seq=101, ack=tcp_of(fin).seq + 1 & MASK, source_port=4001))
    assert first.state is State.CLOSED
    assert list(guest.stack.connections) == [guest.connection.key]
    guest.wait(100)
    assert guest.stack.connections == {}
    assert guest.stack.poll_at() is None


# Opening


def test_many_connections_wait_for_one_neighbor() -> None:
    guest = StackGuest()
    connections = [guest.stack.connect(guest.ip, 80, guest.now) for _ in range(100)]
    ((port, _, _),) = guest.stack.frames_to_send(guest.now)
    assert port == BROADCAST_PORT
    connections[0].abort(guest.now)
    frames = guest.send(guest.arp(arp.REPLY, guest.network.gateway_ip))
    assert {tcp_of(frame).flags for frame in frames} == {SYN}
    assert len({tcp_of(frame).source_port for frame in frames}) == 99
    assert {ip_of(frame).source for frame in frames} == {guest.network.gateway_ip}


def test_a_local_port_is_taken_once() -> None:
    guest = StackGuest()
    guest.stack.connect(guest.ip, 80, guest.now, local_port=20_000)
    guest.stack.connect(guest.ip, 81, guest.now, local_port=20_000)
    with pytest.raises(LocalError, match="80"):
        guest.stack.connect(guest.ip, 80, guest.now, local_port=20_000)


def test_ports_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack_module, "EPHEMERAL_PORTS", (16_000, 16_004))
    guest = StackGuest()
    ports = {guest.stack.connect(guest.ip, 80, guest.now).local_port for _ in range(4)}
    assert ports == {16_000, 16_001, 16_002, 16_003}
    with pytest.raises(LocalError, match="no free port"):
        guest.stack.connect(guest.ip, 80, guest.now)


def test_initial_sequence_numbers() -> None:
    """RFC 6528: a clock, and a hash of the four-tuple under a secret."""
    one, other = (Stack(network_config(), random.Random(seed)) for seed in (1, 2))
    key, another = bytes(12), bytes(11) + b"\1"
    assert one._isn(key, 5.0) == one._isn(key, 5.0)
    assert one._isn(key, 6.0) - one._isn(key, 5.0) & MASK == 250_000
    assert len({one._isn(key, 5.0), one._isn(another, 5.0), other._isn(key, 5.0)}) == 3
