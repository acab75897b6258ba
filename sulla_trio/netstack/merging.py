"""Merging, the reverse of segmentation: a train of TCP segments becomes one GSO frame for a tap, as Linux's GRO has it.

For links without offloads: each frame that a tap takes costs a system call and a walk through the guest's stack. No payload
is read or copied. The checksum of the whole is computed from those of the segments, which say what their payloads sum up to,
and the kernel verifies it over the whole: a segment that was damaged on its way is found out as it would have been alone.
"""

from __future__ import annotations

from struct import Struct
from typing import Any, Final, TypeAlias

from sulla_trio.wire import virtio
from sulla_trio.wire.inet import IPPROTO_TCP, Buffer
from sulla_trio.wire.tcp import ACK, PSH

Write: TypeAlias = list[Buffer]
"""What one gathered write gives to a tap: a virtio-net header, alone or with packet headers behind it, then the rest."""

MAX_TOTAL: Final = 65_535
"""Of an IPv4 datagram."""
_HEADERS: Final = Struct("!16sHH4sH12sIIBBHHH")
"""Ethernet, IHL and TOS; total length; identification; fragment, TTL, protocol; checksum; flow; the fields of TCP."""
_HEADERS_LENGTH: Final = 54
_unpack: Final = _HEADERS.unpack_from
_IPV4_PLAIN: Final = b"\x08\x00\x45"
_DONT_FRAGMENT: Final = 0x40
_ACK_PSH: Final = ACK | PSH
_HALF: Final = 0x8000_0000


class _Train:
    """Segments of one flow that follow each other; `write` stands where the first of them stood.

    All sums are modulo 65535 and not folded; `payloads` is what the payloads sum up to if the checksums are right.
    """

    __slots__ = (
        "ack",
        "base",
        "body",
        "fields",
        "flags",
        "hop",
        "identification",
        "ip_base",
        "length",
        "link",
        "next",
        "numbered",
        "offset",
        "options",
        "payloads",
        "size",
        "window",
        "write",
    )

    def __init__(self, frame: memoryview, fields: tuple[Any, ...], body: int, write: Write) -> None:
        self.fields = fields
        self.link, total, self.identification, self.hop, checksum, flow, seq, ack, offset, flags, window, _, _ = fields
        self.offset, self.flags, self.window, self.ack = offset, flags, window, ack
        self.body, self.write = body, write
        self.size = len(frame) - body
        self.next = seq
        self.length = 0
        # With DF the identification means nothing (RFC 6864 section 4); without, a segment's is the one before plus 1.
        self.numbered = not self.hop[0] & _DONT_FRAGMENT
        self.options = frame[_HEADERS_LENGTH:body]
        self.ip_base = -(total + self.identification + checksum)
        options_sum = int.from_bytes(self.options, "big")
        self.base = int.from_bytes(flow, "big") + IPPROTO_TCP + (offset << 8) + options_sum
        self.payloads = 0
        self._add(total, seq, checksum=fields[11], urgent=fields[12])

    def _add(self, total: int, seq: int, checksum: int, urgent: int) -> None:
        """Count one more segment, whose ACK, flags and window are already the train's."""
        payload = self.base + total - 20 + seq + self.ack + self.flags + self.window + checksum + urgent
        # Behind an odd number of bytes high and low halves change places, which is 256 times as much (RFC 1071 section 2).
        self.payloads -= payload << 8 if self.length & 1 else payload
        length = total + 14 - self.body
        self.length += length
        self.next = (seq + length) & 0xFFFF_FFFF

    def take(self, frame: memoryview, fields: tuple[Any, ...]) -> bool:
        """Take a segment of the same flow if it continues the train: like the one before but for numbers that go on."""
        link, total, identification, hop, checksum, _, seq, ack, offset, flags, window, tcp_checksum, urgent = fields
        body = self.body
        if (
            seq != self.next
            or flags | PSH != _ACK_PSH
            or not body < total + 14 == len(frame) <= body + self.size
            or self.length + total > MAX_TOTAL
            or offset != self.offset
            or hop != self.hop
            or link != self.link
            or (self.ip_base + total + identification + checksum) % 65_535
            or (ack - self.ack) & _HALF
            or frame[_HEADERS_LENGTH:body] != self.options
            or (self.numbered and identification != (self.identification + 1) & 0xFFFF)
        ):
            return False
        self.ack, self.flags, self.window, self.identification = ack, flags, window, identification
        self._add(total, seq, tcp_checksum, urgent)
        self.write.append(frame[body:])
        return True

    def finish(self) -> None:
        """Put the headers of the whole in front of what was collected; one segment alone stays as it came."""
        write, body, size = self.write, self.body, self.size
        if len(write) == 2:
            return
        link, _, identification, hop, _, flow, seq, _, offset, _, _, _, urgent = self.fields
        total = body - 14 + self.length
        flags, ack, window = self.flags, self.ack, self.window
        tcp_sum = self.base + total - 20 + seq + ack + flags + window + urgent + self.payloads
        ip_field = -(self.ip_base + total + identification) % 65_535
        headers = _HEADERS.pack(
            link, total, identification, hop, ip_field, flow, seq, ack, offset, flags, window, -tcp_sum % 65_535, urgent
        )
        # No NEEDS_CSUM: the field holds a whole checksum, and a kernel that is told nothing verifies it.
        todo = virtio.emit(virtio.Virtio(0, virtio.GSO_TCPV4, body, size))
        write[:2] = [b"".join((todo, headers, self.options)), write[1][body:]]


def _begins(frame: memoryview, fields: tuple[Any, ...]) -> int:
    """Where the payload of a frame that may begin a train is; 0 for any other frame."""
    link, total, _, hop, _, _, _, _, offset, flags, _, _, _ = fields
    body: int = 34 + (offset >> 4) * 4
    if (
        flags == ACK
        and link[12:15] == _IPV4_PLAIN
        and hop[3] == IPPROTO_TCP
        and not hop[0] & 0x3F
        and not hop[1]
        and offset >= 0x50
        and total + 14 == len(frame) >= body + virtio.MIN_GSO_SIZE
        and not int.from_bytes(frame[14:34], "big") % 65_535
    ):
        return body
    return 0


def merge(frames: list[memoryview]) -> list[Write]:
    """One batch of frames as the writes for a tap opened with IFF_VNET_HDR. Nothing is held back for the next batch.

    Merged are segments with ACK and no other flag (PSH ends a train), the same options and so the same timestamps, the
    same size but for a shorter last one, up to 65,535 bytes of IP. A flow's order is kept: what does not continue
    its train stands behind it. The writes hold views of `frames`.
    """
    writes: list[Write] = []
    trains: dict[bytes, _Train] = {}
    for frame in frames:
        if len(frame) < _HEADERS_LENGTH:
            writes.append([virtio.PLAIN_BYTES, frame])
            continue
        fields = _unpack(frame)
        flow = fields[5]
        train = trains.get(flow)
        if train is not None:
            if train.take(frame, fields):
                if train.flags & PSH or len(frame) - train.body < train.size:
                    train.finish()
                    del trains[flow]
                continue
            train.finish()
            del trains[flow]
        write: Write = [virtio.PLAIN_BYTES, frame]
        writes.append(write)
        if body := _begins(frame, fields):
            trains[flow] = _Train(frame, fields, body, write)
    for train in trains.values():
        train.finish()
    return writes
