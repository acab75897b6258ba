"""Only BadPacket escapes, the payload stays inside the buffer, and emit(parse(x)) is stable on the second round."""

from __future__ import annotations

from sulla_trio.errors import BadPacket
from sulla_trio.wire import udp

DICTIONARY = (b"\x00\x08\x00\x00", b"\x00\x35", b"\x00\x00", b"\xff\xff")


def fuzz_one(data: bytes) -> None:
    """4 bytes source address, 4 destination, then the datagram: tried as it is and with no checksum."""
    source, destination, datagram = data[:4].ljust(4, b"\0"), data[4:8].ljust(4, b"\0"), data[8:]
    for packet in (datagram, datagram[:6] + b"\0\0" + datagram[8:]):
        try:
            value = udp.parse(memoryview(packet), 0, len(packet), source, destination)
        except BadPacket:
            continue
        assert 8 == value.payload_offset <= value.payload_end <= len(packet)
        assert udp.format(value).isprintable()
        payload = packet[8 : value.payload_end]
        first = udp.emit(source, value.source_port, destination, value.destination_port, payload)
        assert udp.parse(first + payload, 0, value.length, source, destination) == value
