"""ARP packets, both ways, and against scapy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.l2 import ARP

from sulla_trio.config import format_ip, format_mac
from sulla_trio.errors import BadPacket
from sulla_trio.wire import arp

GUEST, GATEWAY = bytes.fromhex("5a94efe40cee"), bytes.fromhex("5a94efe40cdd")
IP_2, IP_1 = bytes((192, 168, 127, 2)), bytes((192, 168, 127, 1))
TABLE = [
    (
        "0001080006040001 5a94efe40cee c0a87f02 000000000000 c0a87f01",
        arp.Arp(arp.REQUEST, GUEST, IP_2, bytes(6), IP_1),
        "ARP, Request who-has 192.168.127.1 tell 192.168.127.2",
    ),
    (
        "0001080006040002 5a94efe40cdd c0a87f01 5a94efe40cee c0a87f02",
        arp.Arp(arp.REPLY, GATEWAY, IP_1, GUEST, IP_2),
        "ARP, Reply 192.168.127.1 is-at 5a:94:ef:e4:0c:dd",
    ),
    (
        "0001080006040009 5a94efe40cdd c0a87f01 5a94efe40cee c0a87f02",
        arp.Arp(9, GATEWAY, IP_1, GUEST, IP_2),
        "ARP, operation 9",
    ),
]
PACKETS = st.builds(
    arp.Arp,
    st.integers(0, 0xFFFF),
    *(st.binary(min_size=size, max_size=size) for size in (6, 4, 6, 4)),
)


@pytest.mark.parametrize(("wire", "value", "line"), TABLE)
def test_both_ways(wire: str, value: arp.Arp, line: str) -> None:
    data = bytes.fromhex(wire)
    assert arp.parse(data) == value
    assert arp.parse(memoryview(data + bytes(18))) == value  # Ethernet padding
    assert arp.emit(value) == data
    assert arp.format(value) == line


@pytest.mark.parametrize(
    ("wire", "reason"),
    [
        (b"", "arp_short"),
        (bytes.fromhex(TABLE[0][0])[:27], "arp_short"),
        (b"\0\2" + bytes.fromhex(TABLE[0][0])[2:], "arp_type"),
        (bytes.fromhex("000186dd1004") + bytes(30), "arp_type"),
        (bytes.fromhex("000108000604")[:4] + b"\x08\x04" + bytes(30), "arp_type"),
    ],
)
def test_bad_packets(wire: bytes, reason: str) -> None:
    with pytest.raises(BadPacket, match=f"^{reason}$"):
        arp.parse(wire)


@given(PACKETS)
def test_round_trip_and_scapy(value: arp.Arp) -> None:
    wire = arp.emit(value)
    assert arp.parse(wire) == value
    theirs = ARP(
        op=value.operation,
        hwsrc=format_mac(value.sender_mac),
        psrc=format_ip(value.sender_ip),
        hwdst=format_mac(value.target_mac),
        pdst=format_ip(value.target_ip),
    )
    assert bytes(theirs) == wire
