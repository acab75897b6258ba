"""The stack as one machine: requests, bounds, timers, and two of them joined by a lossy wire are in their own files."""

from __future__ import annotations

import random

import pytest

from sulla_trio.config import GATEWAY_MAC, GUEST_MAC, network_config, parse_ip
from sulla_trio.errors import LocalError
from sulla_trio.netstack import events, pending
from sulla_trio.netstack.stack import Stack
from sulla_trio.wire import ethernet, ipv4, tcp

GUEST = parse_ip("192.168.127.2")
OUTSIDE = parse_ip("203.0.113.7")


@pytest.fixture
def stack() -> Stack:
    return Stack(network_config(), random.Random(1))


def segment(
    flags: int, *, sport: int = 40_000, dport: int = 80, seq: int = 1000, ack: int = 0, to: bytes = OUTSIDE
) -> memoryview:
    header = tcp.emit(GUEST, sport, to, dport, seq, ack, flags, 65_000)
    packet = ipv4.emit(GUEST, to, 6, len(header)) + header
    return memoryview(ethernet.emit(GATEWAY_MAC, GUEST_MAC, 0x0800) + packet)


def sent(stack: Stack, now: float = 0.0) -> list[tcp.Segment]:
    out = []
    for _, header, payload in stack.frames_to_send(now):
        frame = header + bytes(payload)
        packet = ipv4.parse(frame, 14)
        if packet.protocol == 6:
            out.append(
                tcp.parse(frame, 14 + packet.header_length, 14 + packet.total_length, packet.source, packet.destination)
            )
    return out


def request(stack: Stack) -> events.ConnectionRequest:
    event = stack.next_event()
    assert isinstance(event, events.ConnectionRequest)
    return event


def test_syn_asks_and_nothing_is_sent_before_the_answer(stack: Stack) -> None:
    stack.receive(segment(tcp.SYN), 0, 0.0)
    asked = request(stack)
    assert (asked.remote_ip, asked.local_ip, asked.local_port) == (GUEST, OUTSIDE, 80)
    assert sent(stack) == []
    stack.receive(segment(tcp.SYN), 0, 1.0)
    assert stack.next_event() is None, "a retransmitted SYN asks again only when it is a new one"


def test_accept_answers_syn_ack_and_connects(stack: Stack) -> None:
    stack.receive(segment(tcp.SYN), 0, 0.0)
    connection = stack.accept(request(stack), 0.0)
    (syn_ack,) = sent(stack)
    assert syn_ack.flags == tcp.SYN | tcp.ACK
    assert (syn_ack.ack, syn_ack.mss) == (1001, 1460)
    stack.receive(segment(tcp.ACK, seq=1001, ack=syn_ack.seq + 1 & 0xFFFFFFFF), 0, 0.1)
    assert stack.next_event() == events.Connected(connection)


def test_reject_resets(stack: Stack) -> None:
    stack.receive(segment(tcp.SYN), 0, 0.0)
    asked = request(stack)
    stack.reject(asked, 0.0)
    (reset,) = sent(stack)
    assert (reset.flags, reset.seq, reset.ack) == (tcp.RST | tcp.ACK, 0, 1001)
    with pytest.raises(LocalError, match="no longer pending"):
        stack.accept(asked, 0.0)


def test_unreachable_is_icmp_and_a_reset_in_one_flush(stack: Stack) -> None:
    stack.receive(segment(tcp.SYN), 0, 0.0)
    stack.unreachable(request(stack), 1, 0.0)
    protocols = [ipv4.parse(header, 14).protocol for _, header, _ in stack.frames_to_send(0.0)]
    assert protocols == [1, 6]


def test_guest_reset_cancels_the_request(stack: Stack) -> None:
    stack.receive(segment(tcp.SYN), 0, 0.0)
    asked = request(stack)
    stack.receive(segment(tcp.RST, seq=1001), 0, 0.1)
    assert stack.next_event() == events.RequestCancelled(asked.key)
    assert stack.pending == 0


def test_segment_of_no_connection_is_reset_but_a_reset_is_not(stack: Stack) -> None:
    stack.receive(segment(tcp.ACK, ack=77), 0, 0.0)
    assert [(reset.flags, reset.seq) for reset in sent(stack)] == [(tcp.RST, 77)]
    stack.receive(segment(tcp.RST, ack=77), 0, 0.0)
    assert sent(stack) == []


def test_pending_requests_are_bounded_per_destination(stack: Stack) -> None:
    for port in range(200):
        stack.receive(segment(tcp.SYN, sport=1024 + port), 0, 0.0)
    assert stack.pending == pending.MAX_PER_DESTINATION
    assert stack.counters.drops["syn_pending_destination_full"] == 200 - pending.MAX_PER_DESTINATION
    stack.receive(segment(tcp.SYN, dport=81), 0, 0.0)
    assert stack.pending == pending.MAX_PER_DESTINATION + 1, "another destination still gets through"


def test_connect_asks_arp_first(stack: Stack) -> None:
    connection = stack.connect(GUEST, 80, 0.0)
    frames = stack.frames_to_send(0.0)
    assert [ethernet.parse(header).ethertype for _, header, _ in frames] == [0x0806]
    assert frames[0][0] == -1
    for now in (1.0, 2.0, 3.1):
        stack.handle_timer(now)
    assert stack.next_event() == events.Closed(connection, "timeout")
    assert stack.connections == {}


def test_port_removed_ends_its_connections(stack: Stack) -> None:
    stack.receive(segment(tcp.SYN), 3, 0.0)
    connection = stack.accept(request(stack), 0.0)
    stack.receive(segment(tcp.SYN, sport=5), 3, 0.0)
    asked = request(stack)
    stack.port_removed(3, 1.0)
    assert {stack.next_event(), stack.next_event()} == {
        events.RequestCancelled(asked.key),
        events.Closed(connection, "reset"),
    }
    assert stack.connections == {}


def test_work_of_a_batch_does_not_grow_with_idle_connections(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts calls with 10,000 connections that have nothing to do (DESIGN section 2)."""
    for number in range(10_000):
        stack.receive(segment(tcp.SYN, sport=1024 + number), 0, 0.0)
        stack.accept(request(stack), 0.0)
        (syn_ack,) = sent(stack)
        stack.receive(segment(tcp.ACK, sport=1024 + number, seq=1001, ack=syn_ack.seq + 1 & 0xFFFFFFFF), 0, 0.0)
        stack.next_event()
    assert len(stack.connections) == 10_000
    calls = {"frames": 0, "timer": 0}
    kind = type(next(iter(stack.connections.values())))
    frames, timer = kind.frames, kind.handle_timer

    def counted_frames(self, now, out):  # type: ignore[no-untyped-def]
        calls["frames"] += 1
        frames(self, now, out)

    def counted_timer(self, now):  # type: ignore[no-untyped-def]
        calls["timer"] += 1
        timer(self, now)

    monkeypatch.setattr(kind, "frames", counted_frames)
    monkeypatch.setattr(kind, "handle_timer", counted_timer)
    stack.receive(segment(tcp.SYN, sport=900), 0, 0.5)
    stack.accept(request(stack), 0.5)
    stack.frames_to_send(0.5)
    stack.handle_timer(0.6)
    assert calls["frames"] == 1
    assert calls["timer"] <= 1
    assert len(stack._timers) <= 2 * len(stack.connections) + 64
