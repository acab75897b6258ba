"""Segmentation in software: what is left to do on a frame, done, for a link or a tap that cannot be told of it.

A TCP super-segment (TSO) or a train of datagrams (USO) becomes frames no larger than the MTU, as Linux's own software
segmentation makes them (net/ipv4/tcp_offload.c, udp_offload.c); a checksum that was left to the hardware is filled in. The
headers are taken apart once per super-frame: what a segment costs is the sum over its payload and one `Struct.pack`.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, TypeAlias

from sulla_trio.wire import virtio
from sulla_trio.wire.inet import IPPROTO_TCP, IPPROTO_UDP, Buffer, partial_sum
from sulla_trio.wire.tcp import CWR, FIN, PSH
from sulla_trio.wire.virtio import Virtio

Pieces: TypeAlias = tuple[Buffer, Buffer]
"""One frame in two parts: headers, and a view of its payload where it lies."""

_ADDRESSES: Final = 26
"""Of the IPv4 addresses in a frame."""
_ip_fields: Final = Struct("!16xHH4xH").unpack_from
"""Total length, identification, checksum."""
_tcp_fields: Final = Struct("!4xI5xB2xH").unpack_from
"""Sequence number, flags, checksum."""
_SEQ_MASK: Final = 0xFFFF_FFFF


def for_plain_link(frame: memoryview, header: Virtio) -> list[Pieces]:
    """`frame`, read with `header` (`virtio.parse` accepted it), as frames on which nothing is left to do.

    The payloads are views of `frame`, which must be writable: a checksum of a frame that stays whole is filled in place.
    """
    kind = header.gso_type & ~virtio.GSO_ECN
    if kind == virtio.GSO_TCPV4:
        return _segment_tcp(frame, header)
    if kind == virtio.GSO_UDP_L4:
        return _segment_udp(frame, header)
    if header.needs_csum:
        complete_checksum(frame, header.csum_start, header.csum_offset)
    return [(frame, b"")]


def complete_checksum(frame: bytearray | memoryview, start: int, offset: int) -> None:
    """Fill in the checksum of ``frame[start:]``, whose field at `offset` holds the sum of the pseudo header."""
    # All ones and zero are the same number, but to UDP zero is "no checksum" (RFC 768).
    field = partial_sum(frame[start:]) ^ 0xFFFF or 0xFFFF
    frame[start + offset : start + offset + 2] = field.to_bytes(2, "big")


def _ip_base(frame: memoryview, start: int, total: int, identification: int, checksum: int) -> int:
    """Sum of the IP header without the three fields that differ from segment to segment."""
    return int.from_bytes(frame[14:start], "big") - total - identification - checksum


def _segment_tcp(frame: memoryview, header: Virtio) -> list[Pieces]:
    """FIN and PSH belong to the last segment, CWR (RFC 3168 section 6.1.2) to the first; options are all segments'."""
    start, body, size, end = header.csum_start, header.hdr_len, header.gso_size, len(frame)
    total, identification, checksum = _ip_fields(frame)
    ip_base = _ip_base(frame, start, total, identification, checksum)
    seq, all_flags, checksum = _tcp_fields(frame, start)
    # Sums are modulo 65535, where 65536 is 1: a field of 32 bits is added (or taken away) whole.
    tcp_base = int.from_bytes(frame[start:body], "big") - seq - all_flags - checksum
    tcp_base = (tcp_base + int.from_bytes(frame[_ADDRESSES : _ADDRESSES + 8], "big") + IPPROTO_TCP) % 65_535
    pack = Struct(f"!16sHH4sH{start + 4 - _ADDRESSES}sI5sB2sH{body - start - 18}s").pack
    link, hop, flow = bytes(frame[:16]), bytes(frame[20:24]), bytes(frame[_ADDRESSES : start + 4])
    ack_offset, window = bytes(frame[start + 8 : start + 13]), bytes(frame[start + 14 : start + 16])
    urgent_options = bytes(frame[start + 18 : body])
    ip_length, tcp_length = start - 14, body - start
    flags = all_flags & ~(FIN | PSH)
    pieces: list[Pieces] = []
    at = body
    while True:
        stop = at + size
        if stop >= end:
            stop = end
            flags |= all_flags & (FIN | PSH)
        payload = frame[at:stop]
        length = tcp_length + stop - at
        total = ip_length + length
        headers = pack(
            link,
            total,
            identification,
            hop,
            -(ip_base + total + identification) % 65_535,
            flow,
            seq,
            ack_offset,
            flags,
            window,
            -(tcp_base + seq + flags + length + partial_sum(payload)) % 65_535,
            urgent_options,
        )
        pieces.append((headers, payload))
        if stop == end:
            return pieces
        at = stop
        seq = (seq + size) & _SEQ_MASK
        identification = (identification + 1) & 0xFFFF
        flags &= ~CWR


def _segment_udp(frame: memoryview, header: Virtio) -> list[Pieces]:
    """Each piece of the payload is a datagram of its own."""
    start, body, size, end = header.csum_start, header.hdr_len, header.gso_size, len(frame)
    total, identification, checksum = _ip_fields(frame)
    ip_base = _ip_base(frame, start, total, identification, checksum)
    udp_base = int.from_bytes(frame[_ADDRESSES : _ADDRESSES + 8], "big") + IPPROTO_UDP
    udp_base = (udp_base + int.from_bytes(frame[start : start + 4], "big")) % 65_535
    pack = Struct(f"!16sHH4sH{start + 4 - _ADDRESSES}sHH").pack
    link, hop, flow = bytes(frame[:16]), bytes(frame[20:24]), bytes(frame[_ADDRESSES : start + 4])
    ip_length = start - 14
    pieces: list[Pieces] = []
    for at in range(body, end, size) or (body,):
        payload = frame[at : at + size]
        length = 8 + len(payload)
        total = ip_length + length
        field = -(udp_base + 2 * length + partial_sum(payload)) % 65_535 or 0xFFFF
        ip_field = -(ip_base + total + identification) % 65_535
        pieces.append((pack(link, total, identification, hop, ip_field, flow, length, field), payload))
        identification = (identification + 1) & 0xFFFF
    return pieces
