"""Ethernet headers, and the one-line decode of whole frames made by scapy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from sulla_trio.config import format_mac
from sulla_trio.errors import BadPacket
from sulla_trio.wire import ethernet

LINK = Ether(src="5a:94:ef:e4:0c:ee", dst="5a:94:ef:e4:0c:dd")
NET = LINK / IP(src="192.168.127.2", dst="192.168.127.1")
MACS = st.binary(min_size=6, max_size=6)


@given(MACS, MACS, st.integers(0x0600, 0xFFFF))
def test_round_trip_and_scapy(destination: bytes, source: bytes, ethertype: int) -> None:
    wire = ethernet.emit(destination, source, ethertype)
    assert ethernet.parse(memoryview(wire + b"payload")) == ethernet.Ethernet(destination, source, ethertype)
    assert wire == bytes(Ether(dst=format_mac(destination), src=format_mac(source), type=ethertype))


@pytest.mark.parametrize("length", [0, 1, 13])
def test_short_frames(length: int) -> None:
    with pytest.raises(BadPacket, match=r"^ethernet_short$"):
        ethernet.parse(bytes(length))
    assert ethernet.format(bytes(length)) == f"bad packet (ethernet_short), length {length}"


@pytest.mark.parametrize(
    ("packet", "line"),
    [
        (
            LINK / ARP(psrc="192.168.127.2", pdst="192.168.127.1"),
            "ARP, Request who-has 192.168.127.1 tell 192.168.127.2",
        ),
        (
            NET / TCP(sport=40000, dport=80, seq=7, flags="S", window=64240, options=[("MSS", 1460), ("WScale", 7)]),
            "IP 192.168.127.2 > 192.168.127.1: TCP 40000 > 80: Flags [S], seq 7, win 64240, mss 1460, wscale 7, length 0",
        ),
        (NET / UDP(sport=5353, dport=53) / Raw(b"abc"), "IP 192.168.127.2 > 192.168.127.1: UDP 5353 > 53, length 3"),
        (NET / ICMP(id=7, seq=1), "IP 192.168.127.2 > 192.168.127.1: ICMP echo request, id 7, seq 1"),
        (
            NET
            / UDP(sport=68, dport=67)
            / BOOTP(chaddr=b"\x5a\x94\xef\xe4\x0c\xee", xid=1)
            / DHCP(options=[("message-type", 1), "end"]),
            "IP 192.168.127.2 > 192.168.127.1: BOOTP/DHCP, Request from 5a:94:ef:e4:0c:ee, Discover, xid 0x00000001",
        ),
        (
            LINK / IP(src="10.0.0.1", dst="10.0.0.2", proto=17, id=9, flags="MF", frag=185) / Raw(bytes(8)),
            "IP 10.0.0.1 > 10.0.0.2: protocol 17, ttl 64, fragment 9@1480+, length 8",
        ),
        (
            LINK / IP(src="10.0.0.1", dst="10.0.0.2", proto=47) / Raw(bytes(8)),
            "IP 10.0.0.1 > 10.0.0.2: protocol 47, ttl 64, length 8",
        ),
        (NET / UDP(sport=1, dport=2, chksum=1), "bad packet (udp_checksum), length 42"),
        (
            Ether(src="5a:94:ef:e4:0c:ee", dst="33:33:00:00:00:01", type=0x86DD) / Raw(bytes(40)),
            "5a:94:ef:e4:0c:ee > 33:33:00:00:00:01, ethertype 0x86dd, length 54",
        ),
    ],
)
def test_format(packet: Packet, line: str) -> None:
    assert ethernet.format(memoryview(bytes(packet))) == line


@given(st.sampled_from((0x0800, 0x0806, 0x86DD)), st.binary(max_size=100))
def test_format_never_raises(ethertype: int, payload: bytes) -> None:
    assert "\n" not in ethernet.format(bytes(12) + ethertype.to_bytes(2, "big") + payload)
