"""No batch raises; each flow keeps its octets in their order; a whole of valid parts is valid.

The input is a train of frames, each a two-byte length in front: tried as it is and with checksums put right.
"""

from __future__ import annotations

from collections.abc import Sequence

from sulla_trio.errors import BadPacket
from sulla_trio.netstack import merging
from sulla_trio.wire import inet, ipv4, tcp, virtio

DICTIONARY = (b"\x50\x10", b"\x80\x10", b"\x80\x18", b"\x00\x42", b"\x40\x00", b"\x01\x01\x08\x0a")


def split(data: bytes) -> list[bytes]:
    frames, at = [], 0
    while at + 2 <= len(data):
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        if end - at >= 16:
            frames.append(data[at + 2 : end].ljust(14, b"\0"))
        at = end
    return frames


def repaired(frame: bytes) -> bytes:
    """The frame with right IP length and checksums, where it has room for IPv4 and TCP."""
    if len(frame) < 54 or frame[14] != 0x45:
        return frame
    ip = frame[14:16] + (len(frame) - 14).to_bytes(2, "big") + frame[18:24] + b"\0\0" + frame[26:34]
    ip = ip[:10] + inet.checksum(ip).to_bytes(2, "big") + ip[12:]
    bare = frame[34:50] + b"\0\0" + frame[52:]
    pseudo = inet.pseudo_sum(frame[26:30], frame[30:34], inet.IPPROTO_TCP, len(bare))
    return frame[:14] + ip + bare[:16] + inet.checksum(bare, pseudo).to_bytes(2, "big") + bare[18:]


def streams(frames: Sequence[bytes]) -> dict[bytes, list[tuple[int, bytes]]]:
    """Of each flow whose segments parse: (sequence number, octet) in order of arrival."""
    found: dict[bytes, list[tuple[int, bytes]]] = {}
    for frame in frames:
        try:
            ip = ipv4.parse(frame, 14)
            end = 14 + ip.total_length
            segment = tcp.parse(frame, 14 + ip.header_length, end, ip.source, ip.destination)
        except BadPacket:
            continue
        flow = frame[:15] + frame[26:38]
        found.setdefault(flow, []).extend(
            ((segment.seq + at - segment.payload_offset) & 0xFFFF_FFFF, frame[at : at + 1])
            for at in range(segment.payload_offset, segment.payload_end)
        )
    return found


def fuzz_one(data: bytes) -> None:
    raw = split(data)
    for frames in (raw, [repaired(frame) for frame in raw]):
        writes = merging.merge([memoryview(frame) for frame in frames])
        merged = [b"".join(write)[virtio.HEADER_LENGTH :] for write in writes]
        assert len(merged) <= len(frames)
        assert sum(map(len, merged)) <= sum(map(len, frames))
        assert all(len(frame) <= max(14 + merging.MAX_TOTAL, *map(len, frames)) for frame in merged)
        assert [frame for frame in merged if frame not in frames] or sorted(merged) == sorted(frames)
        if frames is not raw:
            assert streams(merged) == streams(frames)
