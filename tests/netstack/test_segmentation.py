"""Segmentation in software, octet by octet against segments that scapy builds one at a time."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from sulla_trio.netstack import segmentation
from sulla_trio.wire import inet, ipv4, tcp, udp, virtio
from sulla_trio.wire.virtio import NEEDS_CSUM, SUPPORTED, Virtio

LINK = {"src": "5a:94:ef:e4:0c:ee", "dst": "5a:94:ef:e4:0c:dd"}
ADDRESSES = {"src": "192.168.127.2", "dst": "10.0.0.1"}
STAMPS = [("NOP", None), ("NOP", None), ("Timestamp", (1_000_000, 2_000_000))]
A, B = bytes((192, 168, 127, 2)), bytes((10, 0, 0, 1))


def data(length: int) -> bytes:
    """Bytes that are not periodic in any segment size."""
    return b"".join((at * 2_654_435_761 & 0xFFFF_FFFF).to_bytes(4, "big") for at in range(length // 4 + 1))[:length]


def left_to_hardware(packet: Packet, gso_size: int = 0, ecn: bool = False) -> tuple[memoryview, Virtio]:
    """A frame whose checksum field holds the pseudo header's sum, and its virtio header as read from the wire."""
    frame = bytearray(bytes(packet))
    start = 14 + (frame[14] & 15) * 4
    is_tcp = frame[23] == 6
    offset = 16 if is_tcp else 6
    pseudo = inet.fold(inet.pseudo_sum(bytes(frame[26:30]), bytes(frame[30:34]), frame[23], len(frame) - start))
    frame[start + offset : start + offset + 2] = pseudo.to_bytes(2, "big")
    gso_type = virtio.GSO_NONE
    if gso_size:
        gso_type = virtio.GSO_TCPV4 | (virtio.GSO_ECN if ecn else 0) if is_tcp else virtio.GSO_UDP_L4
    wire = virtio.emit(Virtio(NEEDS_CSUM, gso_type, 0, gso_size, start, offset)) + bytes(frame)
    return memoryview(frame), virtio.parse(wire, offloads=SUPPORTED, mtu=9000)


def joined(pieces: list[segmentation.Pieces]) -> list[bytes]:
    return [bytes(headers) + bytes(payload) for headers, payload in pieces]


def segment_fields(index: int, count: int, flags: str) -> str:
    """The flags of one of `count` segments: CWR on the first alone, FIN and PSH on the last alone."""
    wanted = flags
    if index:
        wanted = wanted.replace("C", "")
    if index < count - 1:
        wanted = wanted.replace("F", "").replace("P", "")
    return wanted


@pytest.mark.parametrize("flags", ["A", "PA", "FPA", "PAC", "FPAEC", "PAU"])
@pytest.mark.parametrize(("length", "size"), [(4344, 1448), (4345, 1448), (1448, 1448), (1, 1448), (0, 1448), (99, 33)])
@pytest.mark.parametrize("options", [[], STAMPS])
def test_tcp(flags: str, length: int, size: int, options: list[tuple[str, object]]) -> None:
    payload, ident, seq = data(length), 0xFFFE, 0xFFFF_F000

    def packet(index: int, piece: bytes, flags: str) -> Packet:
        ip = IP(**ADDRESSES, id=(ident + index) & 0xFFFF, flags="DF", tos=2, ttl=63)
        at = (seq + index * size) & 0xFFFF_FFFF
        head = TCP(sport=40_000, dport=80, seq=at, ack=7, window=502, flags=flags, urgptr=3, options=options)
        return Ether(**LINK) / ip / head / Raw(piece)

    frame, header = left_to_hardware(packet(0, payload, flags), size, ecn="C" in flags)
    pieces = [payload[at : at + size] for at in range(0, length, size)] or [b""]
    wanted = [
        bytes(packet(index, piece, segment_fields(index, len(pieces), flags))) for index, piece in enumerate(pieces)
    ]
    found = segmentation.for_plain_link(frame, header)
    assert joined(found) == wanted
    assert all(payload.obj is frame.obj for _, payload in found if isinstance(payload, memoryview))


def test_a_whole_super_segment() -> None:
    """64 KiB: as many frames as it takes, none beyond the MTU, each with right checksums."""
    payload = data(65_483)
    packet = Ether(**LINK) / IP(**ADDRESSES, id=9, flags="DF") / TCP(flags="PA", options=STAMPS) / Raw(payload)
    frame, header = left_to_hardware(packet, 1448)
    frames = joined(segmentation.for_plain_link(frame, header))
    assert len(frames) == 46
    assert max(map(len, frames)) == 1514
    received = b""
    for at in frames:
        ip = ipv4.parse(at, 14)
        segment = tcp.parse(at, 34, 14 + ip.total_length, A, B)
        assert len(at) == 14 + ip.total_length
        assert segment.seq == len(received)
        received += at[segment.payload_offset : segment.payload_end]
    assert received == payload


def test_ip_options_are_in_every_segment() -> None:
    options = b"\x94\x04\x00\x00"  # router alert
    packet = Ether(**LINK) / IP(**ADDRESSES, ihl=6, options=options) / TCP(flags="A") / Raw(data(300))
    frame, header = left_to_hardware(packet, 100)
    for index, at in enumerate(joined(segmentation.for_plain_link(frame, header))):
        ip = IP(**ADDRESSES, ihl=6, id=1 + index, options=options)
        piece = data(300)[index * 100 : index * 100 + 100]
        assert at == bytes(Ether(**LINK) / ip / TCP(flags="A", seq=index * 100) / Raw(piece))


@pytest.mark.parametrize(("length", "size"), [(3600, 1200), (3601, 1200), (1199, 1200), (0, 1200), (40, 8)])
def test_udp(length: int, size: int) -> None:
    payload = data(length)

    def packet(index: int, piece: bytes) -> Packet:
        return Ether(**LINK) / IP(**ADDRESSES, id=0xFFFF + index & 0xFFFF) / UDP(sport=40_000, dport=443) / Raw(piece)

    frame, header = left_to_hardware(packet(0, payload), size)
    pieces = [payload[at : at + size] for at in range(0, length, size)] or [b""]
    wanted = [bytes(packet(index, piece)) for index, piece in enumerate(pieces)]
    assert joined(segmentation.for_plain_link(frame, header)) == wanted


@pytest.mark.parametrize("transport", [TCP(flags="A", options=STAMPS), UDP()])
@pytest.mark.parametrize("length", [0, 1, 2, 1447, 1448])
def test_checksum_completion(transport: Packet, length: int) -> None:
    packet = Ether(**LINK) / IP(**ADDRESSES) / transport / Raw(data(length))
    frame, header = left_to_hardware(packet)
    assert bytes(frame) != bytes(packet)
    ((whole, nothing),) = segmentation.for_plain_link(frame, header)
    assert bytes(whole) == bytes(packet)
    assert nothing == b""


def test_a_udp_sum_of_zero_is_sent_as_all_ones() -> None:
    """RFC 768: zero would mean that there is no checksum."""
    length = 10
    rest = inet.fold(inet.pseudo_sum(A, B, 17, length) + 1 + 2 + length)
    payload = (0xFFFF - rest).to_bytes(2, "big")
    packet = Ether(**LINK) / IP(**ADDRESSES) / UDP(sport=1, dport=2) / Raw(payload)
    for gso_size in (0, 8):
        frame, header = left_to_hardware(packet, gso_size)
        (only,) = joined(segmentation.for_plain_link(frame, header))
        assert only[40:42] == b"\xff\xff"
        assert udp.parse(only, 34, 44, A, B).length == length


def test_a_plain_frame_is_left_alone() -> None:
    frame = memoryview(bytes(60))  # and need not be writable
    assert segmentation.for_plain_link(frame, virtio.PLAIN) == [(frame, b"")]
    assert segmentation.for_plain_link(frame, Virtio(virtio.DATA_VALID)) == [(frame, b"")]


@settings(deadline=None)
@given(st.binary(min_size=0, max_size=700), st.integers(8, 300), st.integers(0, 2**32 - 1), st.integers(0, 0xFFFF))
def test_any_tcp_segments_are_whole_and_valid(payload: bytes, size: int, seq: int, ident: int) -> None:
    packet = Ether(**LINK) / IP(**ADDRESSES, id=ident) / TCP(seq=seq, flags="FPAC") / Raw(payload)
    frame, header = left_to_hardware(packet, size)
    received, flags = b"", []
    for at in joined(segmentation.for_plain_link(frame, header)):
        ip = ipv4.parse(at, 14)
        segment = tcp.parse(at, 34, 14 + ip.total_length, A, B)
        assert segment.seq == (seq + len(received)) & 0xFFFF_FFFF
        received += at[segment.payload_offset : segment.payload_end]
        flags.append(segment.flags)
    assert received == payload
    assert [bool(each & tcp.CWR) for each in flags] == [True] + [False] * (len(flags) - 1)
    assert [bool(each & tcp.FIN) for each in flags] == [False] * (len(flags) - 1) + [True]
