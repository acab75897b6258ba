"""Segmented and merged again a frame carries the same octets; no frame is beyond the MTU; every checksum holds.

The input is a virtio-net header and its frame.
"""

from __future__ import annotations

from sulla_trio.errors import BadPacket
from sulla_trio.netstack import merging, segmentation
from sulla_trio.wire import inet, ipv4, tcp, udp, virtio

DICTIONARY = (
    b"\x01\x01",
    b"\x01\x81",
    b"\x01\x05",
    b"\x22\x00\x10\x00",
    b"\x08\x00\x00\x00",
    b"\x46",
    b"\x80",
    b"\xff",
)
MTU = 1500


def payload_of(frame: bytes) -> bytes:
    """The octets of a frame of TCP or UDP; raises BadPacket where a length or a checksum is wrong."""
    ip = ipv4.parse(frame, 14)
    assert ip.total_length == len(frame) - 14
    at = 14 + ip.header_length
    if ip.protocol == inet.IPPROTO_TCP:
        segment = tcp.parse(frame, at, len(frame), ip.source, ip.destination)
        return frame[segment.payload_offset : segment.payload_end]
    datagram = udp.parse(frame, at, len(frame), ip.source, ip.destination)
    return frame[datagram.payload_offset : datagram.payload_end]


def fuzz_one(data: bytes) -> None:
    try:
        header = virtio.parse(data, offloads=virtio.SUPPORTED, mtu=MTU)
    except BadPacket:
        return
    before = data[virtio.HEADER_LENGTH :]
    pieces = segmentation.for_plain_link(memoryview(bytearray(before)), header)
    frames = [bytes(headers) + bytes(payload) for headers, payload in pieces]
    if not header.gso_type:
        (frame,) = frames
        at = header.csum_start + header.csum_offset
        assert frame[:at] + frame[at + 2 :] == before[:at] + before[at + 2 :]
        if header.needs_csum and not header.csum_offset % 2:
            total = inet.partial_sum(frame[header.csum_start :]) + int.from_bytes(before[at : at + 2], "big")
            assert not total % 65_535
        return
    assert len(frames) == max(1, -(-(len(before) - header.hdr_len) // header.gso_size))
    assert all(len(frame) <= min(MTU + 14, header.hdr_len + header.gso_size) for frame in frames)
    octets = b"".join(payload_of(frame) for frame in frames)
    assert octets == before[header.hdr_len :]
    merged = [b"".join(write)[virtio.HEADER_LENGTH :] for write in merging.merge([memoryview(each) for each in frames])]
    assert b"".join(payload_of(frame) for frame in merged) == octets
    assert all(len(frame) <= 14 + merging.MAX_TOTAL for frame in merged)
