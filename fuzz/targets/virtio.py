"""Only BadPacket escapes, what is accepted stays inside the frame and the MTU, and emit(parse(x)) is stable.

The first byte is the offloads agreed on, the rest a header and its frame.
"""

from __future__ import annotations

from sulla_trio.errors import BadPacket
from sulla_trio.wire import virtio

DICTIONARY = (
    b"\x01\x01",
    b"\x01\x81",
    b"\x01\x05",
    b"\x22\x00\x10\x00",
    b"\x22\x00\x06\x00",
    b"\xff\xff",
    b"\x08\x00\x45",
)
MTU = 1500


def fuzz_one(data: bytes) -> None:
    offloads, packet = data[0] if data else 0, memoryview(data[1:])
    try:
        value = virtio.parse(packet, offloads=offloads, mtu=MTU)
    except BadPacket:
        return
    length = len(packet) - virtio.HEADER_LENGTH
    assert virtio.agree(offloads, virtio.SUPPORTED) & virtio.OFFLOAD_CSUM or not value.needs_csum
    if value.needs_csum:
        assert 14 <= value.csum_start <= value.csum_start + value.csum_offset <= length - 2
    if value.gso_type:
        assert value.needs_csum
        assert 42 <= value.hdr_len <= length
        assert value.gso_size >= virtio.MIN_GSO_SIZE
        assert value.hdr_len + value.gso_size <= MTU + 14
    again = virtio.emit(value) + bytes(packet[virtio.HEADER_LENGTH :])
    assert virtio.parse(again, offloads=offloads, mtu=MTU) == value
    assert virtio.format(value).isprintable()
