"""UDP headers, both ways, and against scapy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.packet import Raw

from sulla_trio.config import format_ip
from sulla_trio.errors import BadPacket
from sulla_trio.wire import inet, udp

A, B = bytes((192, 168, 127, 2)), bytes((192, 168, 127, 1))
IPS = st.binary(min_size=4, max_size=4)
PORTS = st.integers(0, 0xFFFF)


def test_both_ways() -> None:
    header = udp.emit(A, 5353, B, 53, b"abc")
    assert header == bytes.fromhex("14e90035000ba702")
    view = memoryview(b"\xff" * 34 + header + b"abc" + bytes(7))  # Ethernet padding behind
    value = udp.parse(view, 34, len(view), A, B)
    assert value == udp.Udp(5353, 53, 11, 42, 45)
    assert bytes(view[value.payload_offset : value.payload_end]) == b"abc"
    assert udp.format(value) == "UDP 5353 > 53, length 3"


def test_no_checksum_is_taken() -> None:
    assert udp.parse(bytes.fromhex("14e90035000b0000") + b"abc", 0, 11, A, B).payload_end == 11


def test_a_sum_of_zero_is_sent_as_all_ones() -> None:
    """RFC 768: all ones, because zero means that there is none."""
    length = 10
    rest = inet.fold(inet.pseudo_sum(A, B, 17, length) + 1 + 2 + length)
    payload = (0xFFFF - rest).to_bytes(2, "big")
    header = udp.emit(A, 1, B, 2, payload)
    assert header[6:] == b"\xff\xff"
    assert udp.parse(header + payload, 0, length, A, B) == udp.Udp(1, 2, length, 8, 10)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "udp_short"),
        (bytes(7), "udp_short"),
        (bytes.fromhex("0001000200070000"), "udp_length"),
        (bytes.fromhex("0001000200090000"), "udp_length"),
        (bytes.fromhex("14e90035000ba703") + b"abc", "udp_checksum"),
        (bytes.fromhex("14e90035000ba702") + b"abd", "udp_checksum"),
    ],
)
def test_bad_packets(data: bytes, reason: str) -> None:
    with pytest.raises(BadPacket, match=f"^{reason}$"):
        udp.parse(data, 0, len(data), A, B)


@given(IPS, PORTS, IPS, PORTS, st.binary(max_size=1500))
def test_round_trip_and_scapy(source: bytes, sport: int, destination: bytes, dport: int, payload: bytes) -> None:
    header = udp.emit(source, sport, destination, dport, memoryview(payload))
    data = header + payload
    assert udp.parse(data, 0, len(data), source, destination) == udp.Udp(sport, dport, len(data), 8, len(data))
    theirs = IP(src=format_ip(source), dst=format_ip(destination)) / UDP(sport=sport, dport=dport) / Raw(payload)
    assert bytes(theirs)[20:] == data
