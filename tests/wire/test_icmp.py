"""ICMP messages, both ways, and against scapy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP
from scapy.packet import Raw

from sulla_trio.errors import BadPacket
from sulla_trio.wire import icmp, ipv4

TABLE = [
    ("0800a50012340001 40ca", icmp.Icmp(icmp.ECHO_REQUEST, 0, 0x12340001, 8), "ICMP echo request, id 4660, seq 1"),
    ("0000 ad00 12340001 40ca", icmp.Icmp(icmp.ECHO_REPLY, 0, 0x12340001, 8), "ICMP echo reply, id 4660, seq 1"),
    ("0303 fcfc 00000000", icmp.Icmp(icmp.UNREACHABLE, icmp.UNREACHABLE_PORT, 0, 8), "ICMP type 3 code 3"),
]


@pytest.mark.parametrize(("wire", "value", "line"), TABLE)
def test_both_ways(wire: str, value: icmp.Icmp, line: str) -> None:
    data = icmp.emit(value.type, value.code, value.rest, bytes.fromhex(wire)[8:])
    assert data.hex() == bytes.fromhex(wire).hex()
    assert icmp.parse(data, 0, len(data)) == value
    shifted = icmp.parse(memoryview(b"\xff" * 34 + data + b"\xff"), 34, 34 + len(data))
    assert shifted == value._replace(payload_offset=42)
    assert icmp.format(value) == line


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "icmp_short"),
        (bytes(7), "icmp_short"),
        (bytes(8), "icmp_checksum"),
        (b"\x08" + bytes(20), "icmp_checksum"),
    ],
)
def test_bad_packets(data: bytes, reason: str) -> None:
    with pytest.raises(BadPacket, match=f"^{reason}$"):
        icmp.parse(data, 0, len(data))


@pytest.mark.parametrize("options", [0, 4, 40])
def test_an_error_quotes_the_header_and_eight_bytes(options: int) -> None:
    header = bytes((0x45 + options // 4,)) + ipv4.emit(bytes(4), bytes(4), 17, 100)[1:] + bytes(options)
    packet = header + bytes(range(100))
    message = icmp.emit_error(icmp.UNREACHABLE, icmp.UNREACHABLE_PORT, 0, memoryview(packet))
    assert icmp.parse(message, 0, len(message)) == icmp.Icmp(3, 3, 0, 8)
    assert message[8:] == header + bytes(range(8))


def test_an_error_quotes_what_there_is() -> None:
    assert icmp.emit_error(icmp.TIME_EXCEEDED, 0, 0, b"\x45\0\0")[8:] == b"\x45\0\0"
    assert icmp.emit_error(icmp.TIME_EXCEEDED, 0, 0, b"")[8:] == b""


@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 0xFFFFFFFF), st.binary(max_size=200))
def test_round_trip(kind: int, code: int, rest: int, payload: bytes) -> None:
    data = icmp.emit(kind, code, rest, payload)
    value = icmp.parse(data, 0, len(data))
    assert value == icmp.Icmp(kind, code, rest, 8)
    assert data[8:] == payload


@given(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.binary(max_size=65))
def test_scapy_agrees_on_echo(identifier: int, sequence: int, payload: bytes) -> None:
    theirs = bytes(ICMP(type=8, id=identifier, seq=sequence) / Raw(payload))
    assert icmp.emit(icmp.ECHO_REQUEST, 0, identifier << 16 | sequence, payload) == theirs
