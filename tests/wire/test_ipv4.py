"""IPv4 headers, both ways, and against scapy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP

from sulla_trio.config import format_ip
from sulla_trio.errors import BadPacket
from sulla_trio.wire import inet, ipv4

SOURCE, DESTINATION = bytes((192, 168, 127, 2)), bytes((10, 0, 0, 1))
HEADER = bytes.fromhex("450000281234400040061fddc0a87f020a000001")
U16 = st.integers(0, 0xFFFF)
U8 = st.integers(0, 0xFF)
IPS = st.binary(min_size=4, max_size=4)


def with_checksum(header: bytes) -> bytes:
    bare = header[:10] + b"\0\0" + header[12:]
    return bare[:10] + inet.checksum(bare).to_bytes(2, "big") + bare[12:]


def changed(at: int, value: int) -> bytes:
    """HEADER with one byte changed, a right checksum, and 20 bytes behind it."""
    return with_checksum(HEADER[:at] + bytes((value,)) + HEADER[at + 1 :]) + bytes(20)


def test_both_ways() -> None:
    header = with_checksum(HEADER)
    value = ipv4.Ipv4(20, 0, 40, 0x1234, 0x4000, 64, 6, SOURCE, DESTINATION)
    assert ipv4.parse(header + bytes(20)) == value
    assert ipv4.parse(memoryview(b"\xee" * 14 + header + bytes(40)), 14) == value
    assert ipv4.emit(SOURCE, DESTINATION, 6, 20, identification=0x1234) == header
    assert ipv4.format(value) == "IP 192.168.127.2 > 10.0.0.1: protocol 6, ttl 64, length 20"


@pytest.mark.parametrize(
    ("flags", "dont", "more", "offset", "text"),
    [
        (0x4000, True, False, 0, ", length"),
        (0x2000, False, True, 0, "fragment 0@0+"),
        (0x00B9, False, False, 1480, "fragment 0@1480,"),
        (0x3FFF, False, True, 65_528, "fragment 0@65528+"),
        (0x8000, False, False, 0, ", length"),  # the reserved bit is nobody's business
    ],
)
def test_fragment_fields(flags: int, dont: bool, more: bool, offset: int, text: str) -> None:
    value = ipv4.parse(ipv4.emit(SOURCE, DESTINATION, 17, 0, flags_fragment=flags))
    assert (value.dont_fragment, value.more_fragments, value.fragment_offset) == (dont, more, offset)
    assert text in ipv4.format(value)


def test_options_are_skipped() -> None:
    header = with_checksum(b"\x46" + HEADER[1:] + b"\x94\x04\0\0")  # router alert
    value = ipv4.parse(header + bytes(16))
    assert (value.header_length, value.total_length, value.protocol) == (24, 40, 6)


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (b"", "ipv4_short"),
        (HEADER[:19], "ipv4_short"),
        (changed(0, 0x65), "ipv4_version"),
        (changed(0, 0x44), "ipv4_header_length"),
        (changed(0, 0x4F), "ipv4_length"),  # 60 bytes of header in a total of 40
        (changed(3, 19), "ipv4_length"),
        (changed(3, 41), "ipv4_length"),
        (with_checksum(HEADER)[:19] + b"\x02" + bytes(20), "ipv4_checksum"),
    ],
)
def test_bad_packets(packet: bytes, reason: str) -> None:
    for offset in (0, 14):
        with pytest.raises(BadPacket, match=f"^{reason}$"):
            ipv4.parse(memoryview(bytes(offset) + packet), offset)


@given(IPS, IPS, U8, st.integers(0, 1480), U16, U8, U8, U16)
def test_round_trip_and_scapy(
    source: bytes, destination: bytes, protocol: int, length: int, ident: int, ttl: int, tos: int, flags: int
) -> None:
    wire = ipv4.emit(
        source, destination, protocol, length, identification=ident, ttl=ttl, tos=tos, flags_fragment=flags
    )
    value = ipv4.Ipv4(20, tos, 20 + length, ident, flags, ttl, protocol, source, destination)
    assert ipv4.parse(wire + bytes(length)) == value
    assert inet.partial_sum(wire) == 0xFFFF
    theirs = IP(
        tos=tos,
        len=20 + length,
        id=ident,
        flags=flags >> 13,
        frag=flags & 0x1FFF,
        ttl=ttl,
        proto=protocol,
        src=format_ip(source),
        dst=format_ip(destination),
    )
    assert bytes(theirs)[:20] == wire
