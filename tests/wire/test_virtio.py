"""The virtio-net header: both ways, and every way of lying about the frame behind it."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether

from sulla_trio.errors import BadPacket
from sulla_trio.wire import virtio
from sulla_trio.wire.virtio import NEEDS_CSUM, PLAIN, SUPPORTED, Virtio

MTU = 1500


def tcp_frame(payload: int = 4000, **fields: object) -> bytes:
    """A super-frame with timestamps, 66 bytes of headers."""
    options = [("NOP", None), ("NOP", None), ("Timestamp", (1, 2))]
    packet = Ether() / IP(flags="DF") / TCP(**{"flags": "A", "options": options, **fields}) / bytes(payload)
    return bytes(packet)


def udp_frame(payload: int = 4000) -> bytes:
    return bytes(Ether() / IP() / UDP() / bytes(payload))


TABLE = [
    ("00 00 0000 0000 0000 0000", bytes(14), PLAIN, ""),
    ("02 00 0000 0000 0000 0000", bytes(14), Virtio(virtio.DATA_VALID), "checksum valid"),
    ("01 00 0000 0000 2200 1000", bytes(60), Virtio(1, 0, 0, 0, 34, 16), "checksum from 34 at +16"),
    (
        "01 01 4200 a805 2200 1000",
        tcp_frame(),
        Virtio(1, 1, 66, 1448, 34, 16),
        "GSO TCPv4, 1448 behind 66, checksum from 34 at +16",
    ),
    (
        "01 81 4200 0800 2200 1000",
        tcp_frame(),
        Virtio(1, 0x81, 66, 8, 34, 16),
        "GSO TCPv4 ECN, 8 behind 66, checksum from 34 at +16",
    ),
    (
        "01 05 2a00 c005 2200 0600",
        udp_frame(),
        Virtio(1, 5, 42, 1472, 34, 6),
        "GSO UDP, 1472 behind 42, checksum from 34 at +6",
    ),
]


def parse(header: bytes, frame: bytes, offloads: int = SUPPORTED) -> Virtio:
    return virtio.parse(memoryview(header + frame), offloads=offloads, mtu=MTU)


@pytest.mark.parametrize(("wire", "frame", "value", "line"), TABLE)
def test_both_ways(wire: str, frame: bytes, value: Virtio, line: str) -> None:
    assert parse(bytes.fromhex(wire), frame) == value
    assert virtio.emit(value) == bytes.fromhex(wire)
    assert virtio.format(value) == line
    assert value.needs_csum is bool(value.flags & NEEDS_CSUM)


def test_what_is_not_believed() -> None:
    """Unknown flags, the header length of anybody, and the other fields of a plain frame."""
    assert parse(bytes.fromhex("fc 00 ffff ffff ffff ffff"), bytes(14)) == PLAIN
    assert parse(bytes.fromhex("fd 01 0000 a805 2200 1000"), tcp_frame()).hdr_len == 66
    assert parse(bytes.fromhex("01 01 ffff a805 2200 1000"), tcp_frame()).hdr_len == 66
    assert parse(bytes.fromhex("03 00 0000 0000 2200 1000"), bytes(60)).flags == NEEDS_CSUM


TCP_FRAME, UDP_FRAME = tcp_frame(), udp_frame()
GSO = "01 01 4200 a805 2200 1000"


@pytest.mark.parametrize(
    ("wire", "frame", "reason"),
    [
        ("", b"", "virtio_short"),
        ("00 00 0000 0000 0000 0000", bytes(13), "virtio_short"),
        ("01 00 0000 0000 2200 1000", bytes(34 + 16 + 1), "virtio_csum_start"),
        ("01 00 0000 0000 0d00 1000", bytes(60), "virtio_csum_start"),  # within the Ethernet header
        ("01 00 0000 0000 ffff ffff", bytes(60), "virtio_csum_start"),
        ("01 01 4200 0700 2200 1000", TCP_FRAME, "virtio_gso_size"),
        ("01 01 4200 0000 2200 1000", TCP_FRAME, "virtio_gso_size"),
        ("01 01 4200 a905 2200 1000", TCP_FRAME, "virtio_gso_size"),  # 1449 and 52 of headers: beyond the MTU
        ("01 01 4200 ffff 2200 1000", TCP_FRAME, "virtio_gso_size"),
        ("01 05 2a00 c105 2200 0600", UDP_FRAME, "virtio_gso_size"),
        ("00 01 4200 a805 2200 1000", TCP_FRAME, "virtio_gso_csum"),
        ("02 01 4200 a805 2200 1000", TCP_FRAME, "virtio_gso_csum"),
        ("01 80 0000 0000 2200 1000", TCP_FRAME, "virtio_gso_type"),  # ECN of nothing
        ("01 02 4200 a805 2200 1000", TCP_FRAME, "virtio_gso_type"),
        ("01 03 2a00 a805 2200 0600", UDP_FRAME, "virtio_gso_type"),  # UFO
        ("01 04 4200 a805 2200 1000", TCP_FRAME, "virtio_gso_type"),  # TCPv6
        ("01 85 2a00 a805 2200 0600", UDP_FRAME, "virtio_gso_type"),  # ECN of UDP
        ("01 01 4200 a805 2300 1000", TCP_FRAME, "virtio_gso_frame"),
        ("01 01 4200 a805 2200 0600", TCP_FRAME, "virtio_gso_frame"),
        ("01 01 4200 a805 2200 1000", UDP_FRAME, "virtio_gso_frame"),
        ("01 05 2a00 a805 2200 0600", TCP_FRAME, "virtio_gso_frame"),
        (GSO, TCP_FRAME + b"\0", "virtio_gso_frame"),  # longer than its IP length
        (GSO, TCP_FRAME[:-1], "virtio_gso_frame"),
        ("01 01 4200 a805 0e00 0000", bytes(33), "virtio_gso_frame"),
        (GSO, TCP_FRAME[:12] + b"\x86\xdd" + TCP_FRAME[14:], "virtio_gso_frame"),
        (GSO, TCP_FRAME[:14] + b"\x65" + TCP_FRAME[15:], "virtio_gso_frame"),
        (GSO, TCP_FRAME[:14] + b"\x46" + TCP_FRAME[15:], "virtio_gso_frame"),
        ("01 01 4200 a805 1e00 1000", TCP_FRAME[:14] + b"\x44" + TCP_FRAME[15:], "virtio_gso_frame"),
        (GSO, TCP_FRAME[:20] + b"\x20\x00" + TCP_FRAME[22:], "virtio_gso_frame"),  # a fragment
        (GSO, TCP_FRAME[:46] + b"\x40" + TCP_FRAME[47:], "virtio_gso_frame"),
        (GSO, tcp_frame(flags="SA"), "virtio_gso_frame"),
        (GSO, tcp_frame(flags="RA"), "virtio_gso_frame"),
        (GSO, tcp_frame(0, options=[], dataofs=15), "virtio_gso_frame"),  # its own header is longer than it
    ],
)
def test_bad_packets(wire: str, frame: bytes, reason: str) -> None:
    with pytest.raises(BadPacket, match=f"^{reason}$"):
        parse(bytes.fromhex(wire), frame)


@pytest.mark.parametrize(
    ("wire", "frame", "offloads", "reason"),
    [
        ("01 00 0000 0000 2200 1000", TCP_FRAME, 0, "virtio_csum_type"),
        (GSO, TCP_FRAME, virtio.OFFLOAD_CSUM | virtio.OFFLOAD_USO4, "virtio_gso_type"),
        ("01 05 2a00 c005 2200 0600", UDP_FRAME, virtio.OFFLOAD_CSUM | virtio.OFFLOAD_TSO4, "virtio_gso_type"),
    ],
)
def test_what_was_not_agreed_on(wire: str, frame: bytes, offloads: int, reason: str) -> None:
    with pytest.raises(BadPacket, match=f"^{reason}$"):
        parse(bytes.fromhex(wire), frame, offloads)


@pytest.mark.parametrize(
    ("ours", "theirs", "both"),
    [
        (SUPPORTED, 0x6F, 0x2B),
        (SUPPORTED, 0, 0),
        (SUPPORTED, 0x01, 0x01),
        (SUPPORTED, 0x2A, 0),  # no CSUM, nothing
        (SUPPORTED, 0x29, 0x21),  # ECN needs TSO
        (0xFFFFFFFF, 0x6F, 0x6F),
    ],
)
def test_agree(ours: int, theirs: int, both: int) -> None:
    assert virtio.agree(ours, theirs) == virtio.agree(theirs, ours) == both


@pytest.mark.parametrize(
    ("header", "needed"),
    [
        (PLAIN, 0),
        (Virtio(virtio.DATA_VALID), 0),
        (Virtio(1, 0, 0, 0, 34, 16), virtio.OFFLOAD_CSUM),
        (Virtio(1, 1, 66, 1448, 34, 16), virtio.OFFLOAD_TSO4),
        (Virtio(1, 0x81, 66, 1448, 34, 16), virtio.OFFLOAD_TSO4 | virtio.OFFLOAD_TSO_ECN),
        (Virtio(1, 5, 42, 1472, 34, 6), virtio.OFFLOAD_USO4),
    ],
)
def test_who_takes_it(header: Virtio, needed: int) -> None:
    assert virtio.takes(needed, header)
    assert virtio.takes(SUPPORTED, header)
    for bit in (1, 2, 8, 0x20):
        assert virtio.takes(SUPPORTED & ~bit, header) is not bool(needed & bit)


@settings(deadline=None)
@given(st.integers(21, 1500), st.sampled_from((1, 0x81)), st.integers(8, 1448))
def test_round_trip_of_gso(payload: int, gso_type: int, gso_size: int) -> None:
    frame = tcp_frame(payload)
    value = Virtio(NEEDS_CSUM, gso_type, 66, gso_size, 34, 16)
    assert parse(virtio.emit(value), frame) == value
    assert struct.unpack("<BBHHHH", virtio.emit(value)) == value


@settings(deadline=None)
@given(st.binary(max_size=120), st.integers(0, 0xFF))
def test_any_bytes_are_a_value_or_bad(packet: bytes, offloads: int) -> None:
    try:
        value = virtio.parse(packet, offloads=offloads, mtu=MTU)
    except BadPacket:
        return
    assert virtio.parse(virtio.emit(value) + packet[10:], offloads=offloads, mtu=MTU) == value
    assert virtio.format(value).isprintable()
