"""ARP, IPv4, ICMP and UDP of the stack: what is answered, what is dropped and under which name."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP  # type: ignore[import-untyped]
from scapy.layers.l2 import Ether  # type: ignore[import-untyped]

from sulla_trio.config import BROADCAST_MAC, network_config
from sulla_trio.errors import LocalError
from sulla_trio.netstack.events import DatagramReceived, EchoRequested
from sulla_trio.netstack.icmp_errors import BURST
from sulla_trio.netstack.ip import BROADCAST_IP, BROADCAST_PORT, MAX_DATAGRAM
from sulla_trio.wire import arp, icmp, inet, ipv4, udp
from tests.support.stack_guest import REMOTE, StackGuest, icmp_of, ip_of

OTHER_MAC = b"\x02\0\0\0\0\x09"
VETH = bytes((192, 168, 143, 2))


@pytest.fixture
def guest() -> StackGuest:
    return StackGuest()


def ip(text: str) -> bytes:
    return ipaddress.IPv4Address(text).packed


# ARP


@pytest.mark.parametrize("target", ["192.168.127.1", "192.168.127.254"])
def test_arp_is_answered_for_our_addresses(guest: StackGuest, target: str) -> None:
    (frame,) = guest.send(guest.arp(arp.REQUEST, ip(target)))
    assert frame[:14] == guest.mac + guest.network.gateway_mac + b"\x08\x06"
    assert arp.parse(frame[14:]) == arp.Arp(arp.REPLY, guest.network.gateway_mac, ip(target), guest.mac, guest.ip)


@pytest.mark.parametrize("target", ["192.168.127.2", "192.168.127.77", "8.8.8.8"])
def test_arp_is_not_answered_for_others(guest: StackGuest, target: str) -> None:
    assert guest.send(guest.arp(arp.REQUEST, ip(target))) == []


def test_a_probe_for_our_address_is_answered_and_teaches_nothing(guest: StackGuest) -> None:
    (frame,) = guest.send(guest.arp(arp.REQUEST, guest.network.gateway_ip, sender_ip=bytes(4)))
    assert arp.parse(frame[14:]).target_ip == bytes(4)
    assert len(guest.stack._neighbors) == 0


@pytest.mark.parametrize("operation", [arp.REQUEST, arp.REPLY])
@pytest.mark.parametrize(
    "sender", ["192.168.127.1", "192.168.127.254", "127.0.0.1", "224.0.0.1", "255.255.255.255", "192.168.127.255"]
)
def test_arp_from_an_address_no_guest_has(guest: StackGuest, operation: int, sender: str) -> None:
    assert guest.send(guest.arp(operation, guest.network.gateway_ip, sender_ip=ip(sender))) == []
    assert guest.drops == {"arp_sender": 1}
    assert len(guest.stack._neighbors) == 0


def test_a_group_mac_is_never_believed(guest: StackGuest) -> None:
    guest.send(guest.arp(arp.REPLY, guest.network.gateway_ip, sender_mac=BROADCAST_MAC))
    assert guest.drops == {"arp_sender": 1}
    assert len(guest.stack._neighbors) == 0


def test_arp_of_another_kind(guest: StackGuest) -> None:
    assert guest.send(guest.arp(3, guest.network.gateway_ip)) == []
    assert guest.send(guest.arp(arp.REPLY, guest.network.gateway_ip)[:30]) == []
    assert guest.drops == {"arp_operation": 1, "arp_short": 1}


def test_we_ask_from_the_gateway_and_what_waited_goes(guest: StackGuest) -> None:
    guest.stack.send_datagram(REMOTE, 53, guest.ip, 5000, b"late", guest.now)
    ((port, request, _),) = guest.stack.frames_to_send(guest.now)
    assert port == BROADCAST_PORT
    assert request[:6] == BROADCAST_MAC
    asked = arp.parse(request[14:])
    # the datagram is from a spoofed address, the question never is
    assert asked == arp.Arp(arp.REQUEST, guest.network.gateway_mac, guest.network.gateway_ip, bytes(6), guest.ip)
    (frame,) = guest.send(guest.arp(arp.REPLY, guest.network.gateway_ip))
    assert frame[:6] == guest.mac
    assert frame.endswith(b"late")


def test_nobody_answers(guest: StackGuest) -> None:
    guest.stack.send_datagram(REMOTE, 53, guest.ip, 5000, b"lost", guest.now)
    assert [frame[12:14] for frame in guest.wait(10)] == [b"\x08\x06"] * 3
    assert guest.drops == {"neighbor_unresolved": 1}
    assert guest.stack.poll_at() is None


# IPv4


@pytest.mark.parametrize(
    "source",
    ["127.0.0.1", "0.1.2.3", "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.168.127.1", "192.168.127.254"]
    + ["192.168.127.255", "192.168.127.0"],
)
@pytest.mark.parametrize("protocol", [inet.IPPROTO_UDP, inet.IPPROTO_TCP, 132])
def test_sources_no_guest_has(guest: StackGuest, source: str, protocol: int) -> None:
    assert guest.send(guest.ipv4(REMOTE, protocol, bytes(32), ip(source))) == []
    assert guest.drops == {"ipv4_source": 1}
    assert guest.events() == []


def test_from_nobody_only_dhcp(guest: StackGuest) -> None:
    guest.send(guest.udp(BROADCAST_IP, b"discover", 67, bytes(4), 68))
    (event,) = guest.events()
    assert (event.source_ip, event.destination_port, event.payload) == (bytes(4), 67, b"discover")
    guest.send(guest.udp(REMOTE, b"query", 53, bytes(4)))
    guest.send(guest.tcp(2, source=bytes(4)))
    assert guest.events() == []
    assert guest.drops == {"ipv4_source": 2}


@pytest.mark.parametrize("destination", ["127.0.0.1", "127.255.0.1", "0.0.0.0"])
def test_martians(guest: StackGuest, destination: str) -> None:
    assert guest.send(guest.udp(ip(destination), b"x")) == []
    assert guest.drops == {"ipv4_martian": 1}


@pytest.mark.parametrize("source", [VETH, ip("10.1.2.3"), ip("203.0.113.9")])
def test_any_unicast_source_is_served(guest: StackGuest, source: bytes) -> None:
    guest.mac, guest.port = OTHER_MAC, 9
    guest.send(guest.udp(REMOTE, b"hello", source=source))
    (event,) = guest.events()
    assert (event.source_ip, event.mac, event.port) == (source, OTHER_MAC, 9)
    guest.stack.send_datagram(REMOTE, 53, source, 5000, b"answer", guest.now, mac=event.mac, port=event.port)
    ((port, frame, _),) = guest.stack.frames_to_send(guest.now)
    assert (port, frame[:6]) == (9, OTHER_MAC)


def test_ethernet_padding_is_not_data(guest: StackGuest) -> None:
    guest.send(guest.udp(REMOTE, b"x") + b"\xaa" * 17)
    assert guest.events()[0].payload == b"x"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ((16, b"\xff\xff"), "ipv4_length"),
        ((16, b"\0\x13"), "ipv4_length"),
        ((14, b"\x65"), "ipv4_version"),
        ((14, b"\x44"), "ipv4_header_length"),
        ((22, b"\x01"), "ipv4_checksum"),
        ((12, b"\x86\xdd"), "ethertype_ipv6"),
        ((12, b"\x88\xb5"), "ethertype_unknown"),
        ((38, b"\0\x05"), "udp_length"),
        ((42, b"y"), "udp_checksum"),
    ],
)
def test_what_does_not_parse_is_counted(guest: StackGuest, change: tuple[int, bytes], reason: str) -> None:
    frame = bytearray(guest.udp(REMOTE, b"x"))
    at, value = change
    frame[at : at + len(value)] = value
    assert guest.send(bytes(frame)) == []
    assert guest.drops == {reason: 1}
    assert guest.events() == []


@pytest.mark.parametrize("size", range(14, 43))
def test_truncated_anywhere(guest: StackGuest, size: int) -> None:
    assert guest.send(guest.udp(REMOTE, b"x")[:size]) == []
    assert sum(guest.drops.values()) == 1


def test_options_are_skipped(guest: StackGuest) -> None:
    plain = guest.udp(REMOTE, b"x")
    header = bytearray(plain[14:34] + b"\x94\x04\0\0")  # router alert
    header[0], header[3] = 0x46, header[3] + 4
    header[10:12] = bytes(2)
    header[10:12] = inet.checksum(header).to_bytes(2, "big")
    guest.send(plain[:14] + bytes(header) + plain[34:])
    (event,) = guest.events()
    assert event.payload == b"x"
    assert len(event.header) == 24 + 8


@pytest.mark.parametrize("ttl", [0, 1])
def test_the_gateway_is_a_hop(guest: StackGuest, ttl: int) -> None:
    sent = guest.udp(REMOTE, b"traceroute", ttl=ttl)
    (frame,) = guest.send(sent)
    header, (message, quoted) = ip_of(frame), icmp_of(frame)
    assert (header.source, header.destination) == (guest.network.gateway_ip, guest.ip)
    assert (message.type, message.code) == (icmp.TIME_EXCEEDED, 0)
    assert quoted == sent[14 : 14 + 28]
    assert guest.events() == []
    assert guest.drops == {"ipv4_ttl": 1}


def test_ttl_1_reaches_our_own_addresses(guest: StackGuest) -> None:
    assert len(guest.send(guest.echo(guest.network.gateway_ip, ttl=1))) == 1
    guest.send(guest.udp(guest.network.gateway_ip, b"x", ttl=1))
    assert [event.ttl for event in guest.events()] == [1]


def test_unknown_protocol_is_unreachable(guest: StackGuest) -> None:
    sent = guest.ipv4(REMOTE, 132, bytes(1000))
    (frame,) = guest.send(sent)
    message, quoted = icmp_of(frame)
    assert (message.type, message.code) == (icmp.UNREACHABLE, icmp.UNREACHABLE_PROTOCOL)
    assert sent[14:].startswith(quoted)
    assert len(quoted) >= 28
    assert len(frame) - 14 <= 576
    assert guest.drops == {"ipv4_protocol": 1}


def test_never_an_error_about_a_broadcast(guest: StackGuest) -> None:
    sent = guest.ipv4(ip("192.168.127.255"), 132, bytes(8))
    assert guest.send(BROADCAST_MAC + sent[6:]) == []
    assert guest.send(guest.ipv4(BROADCAST_IP, 132, bytes(8))) == []


def test_errors_are_limited(guest: StackGuest) -> None:
    sent = guest.ipv4(REMOTE, 132, bytes(8))
    assert sum(len(guest.send(sent)) for _ in range(100)) == BURST
    assert guest.drops == {"ipv4_protocol": 100, "icmp_rate_limited": 100 - BURST}
    guest.now += 1
    assert len(guest.send(sent)) == 1


# Fragments


def fragments_of(guest: StackGuest, frame: bytes, step: int = 1480) -> list[bytes]:
    """What a kernel with a small MTU makes of it."""
    header, body = ipv4.parse(frame, 14), frame[34:]
    pieces = []
    for at in range(0, len(body), step):
        more = ipv4.MORE_FRAGMENTS if at + step < len(body) else 0
        piece = body[at : at + step]
        flags = more | at // 8
        pieces.append(guest.ipv4(header.destination, header.protocol, piece, identification=77, flags_fragment=flags))
    return pieces


@pytest.mark.parametrize("backwards", [False, True])
def test_fragments_become_one_datagram(guest: StackGuest, backwards: bool) -> None:
    payload = bytes(range(256)) * 20
    pieces = fragments_of(guest, guest.udp(REMOTE, payload))
    for piece in reversed(pieces) if backwards else pieces:
        assert guest.send(piece) == []
    (event,) = guest.events()
    assert event.payload == payload
    assert len(event.header) == 28
    assert guest.stack.counters.ip_fragments_received == len(pieces)
    assert guest.stack.counters.ip_reassembled == 1


def test_a_fragmented_syn_is_a_request(guest: StackGuest) -> None:
    for piece in fragments_of(guest, guest.tcp(2), step=8):
        guest.send(piece)
    (request,) = guest.events()
    assert (request.remote_port, request.local_port, request.local_ip) == (4000, 80, REMOTE)


def test_what_is_not_completed_is_counted(guest: StackGuest) -> None:
    guest.send(fragments_of(guest, guest.udp(REMOTE, bytes(3000)))[0])
    assert guest.stack.poll_at() == guest.now + 30
    guest.wait(31)
    assert guest.drops == {"ipv4_reassembly_timeout": 1}
    assert guest.stack.poll_at() is None


@pytest.mark.parametrize("mtu", [576, 1500, 9000, 65_520])
@pytest.mark.parametrize("size", [0, 1, 1472, 1473, 8000, MAX_DATAGRAM])
def test_we_fragment_to_the_mtu_and_scapy_puts_it_together(mtu: int, size: int) -> None:
    guest = StackGuest(network_config(mtu=mtu))
    payload = bytes(size)
    guest.stack.send_datagram(REMOTE, 53, guest.ip, 5000, payload, guest.now, mac=guest.mac, port=3, ttl=9, tos=0x10)
    frames = guest.frames()
    assert all(len(frame) <= 14 + mtu for frame in frames)
    assert len(frames) == max(1, -(-(size + 8) // ((mtu - 20) & ~7))) or size + 28 <= mtu
    body, idents = b"", set()
    for number, frame in enumerate(frames):
        header, oracle = ip_of(frame), Ether(frame)[IP]
        assert (header.ttl, header.tos, oracle.frag * 8) == (9, 0x10, len(body))
        assert bool(oracle.flags.MF) == (number + 1 < len(frames))
        body += frame[34:]
        idents.add(header.identification)
    assert len(idents) == 1
    assert body[8:] == payload
    assert udp.parse(body, 0, len(body), REMOTE, guest.ip).destination_port == 5000


# ICMP


@pytest.mark.parametrize("address", ["192.168.127.1", "192.168.127.254"])
def test_our_addresses_answer_ping(guest: StackGuest, address: str) -> None:
    (frame,) = guest.send(guest.echo(ip(address), b"payload"))
    header, (message, payload) = ip_of(frame), icmp_of(frame)
    assert (header.source, header.destination, header.ttl) == (ip(address), guest.ip, 64)
    assert (message.type, message.rest, payload) == (icmp.ECHO_REPLY, 0x0102_0003, b"payload")
    assert guest.events() == []


def test_a_large_ping_comes_back_in_fragments(guest: StackGuest) -> None:
    payload = bytes(range(250)) * 16
    answers: list[bytes] = []
    for piece in fragments_of(guest, guest.echo(guest.network.gateway_ip, payload)):
        answers += guest.send(piece)
    assert len(answers) == 3
    body = b"".join(frame[34:] for frame in answers)
    assert body[8:] == payload


def test_ping_to_the_outside_is_an_event(guest: StackGuest) -> None:
    sent = guest.echo(REMOTE)
    assert guest.send(sent) == []
    (event,) = guest.events()
    assert event == EchoRequested(guest.ip, REMOTE, 0x0102, 3, b"ping", guest.mac, guest.port, 64, sent[14:42])
    guest.stack.send_echo_reply(event, b"pong", guest.now, ttl=57)
    (frame,) = guest.frames()
    assert (ip_of(frame).source, ip_of(frame).ttl, icmp_of(frame)[1]) == (REMOTE, 57, b"pong")


def test_an_error_of_the_outside_comes_from_its_sender(guest: StackGuest) -> None:
    sent, router = guest.echo(REMOTE), ip("10.0.0.1")
    guest.stack.send_icmp_error(
        icmp.TIME_EXCEEDED, 0, 0, sent[14:42], guest.ip, guest.mac, guest.port, guest.now, sender=router, ttl=60
    )
    (frame,) = guest.frames()
    header, (message, quoted) = ip_of(frame), icmp_of(frame)
    assert (header.source, header.destination, header.ttl) == (router, guest.ip, 60)
    assert (message.type, quoted) == (icmp.TIME_EXCEEDED, sent[14:42])


def test_other_icmp_is_dropped(guest: StackGuest) -> None:
    for message in (icmp.emit(13, 0, 0, b""), icmp.emit(icmp.ECHO_REPLY, 0, 0, b""), icmp.emit(8, 1, 0, b"")):
        assert guest.send(guest.ipv4(REMOTE, inet.IPPROTO_ICMP, message)) == []
    guest.send(guest.echo(ip("224.0.0.1")))
    damaged = bytearray(guest.echo(REMOTE))
    damaged[-1] ^= 1
    guest.send(bytes(damaged))
    assert guest.drops == {"icmp_type": 3, "icmp_group": 1, "icmp_checksum": 1}
    assert guest.events() == []


# UDP


def test_a_datagram_owns_its_bytes(guest: StackGuest) -> None:
    sent = guest.udp(REMOTE, b"query", 5353, ttl=7)
    guest.send(sent)
    expected: tuple[Any, ...] = (guest.ip, 5000, REMOTE, 5353, b"query", guest.mac, guest.port, 7, sent[14:42])
    assert guest.events() == [DatagramReceived(*expected)]


def test_broadcast_needs_no_arp(guest: StackGuest) -> None:
    guest.stack.send_datagram(guest.network.gateway_ip, 67, BROADCAST_IP, 68, b"offer", guest.now)
    ((port, frame, _),) = guest.stack.frames_to_send(guest.now)
    assert (port, frame[:6]) == (BROADCAST_PORT, BROADCAST_MAC)


def test_too_long_a_datagram_is_our_fault(guest: StackGuest) -> None:
    with pytest.raises(LocalError):
        guest.stack.send_datagram(REMOTE, 1, guest.ip, 2, bytes(MAX_DATAGRAM + 1), guest.now)


@given(st.binary(min_size=14, max_size=100))
def test_nothing_is_raised_for_any_bytes(data: bytes) -> None:
    for prefix in (b"", StackGuest().udp(REMOTE, b"")[:34], StackGuest().tcp(16)[:34]):
        StackGuest().send(prefix + data)
