"""The virtio-net header in front of a frame: what is left to do on it (virtio 1.2 section 5.1.6; linux/virtio_net.h).

offset  size  field
     0     1  flags: 1 NEEDS_CSUM, 2 DATA_VALID
     1     1  gso_type: 0 none, 1 TCPv4, 5 UDP; 0x80 ECN
     2     2  hdr_len: headers of a GSO frame, Ethernet included; only a hint, and never believed
     4     2  gso_size: payload bytes of each segment
     6     2  csum_start: where the sum begins, from the start of the frame
     8     2  csum_offset: where it is stored, from csum_start

Little-endian on the link. A tap speaks the machine's own order, or this one after TUNSETVNETLE.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from sulla_trio.errors import BadPacket
from sulla_trio.wire.inet import IPPROTO_TCP, IPPROTO_UDP, Buffer

HEADER_LENGTH: Final = 10
NEEDS_CSUM: Final = 1
DATA_VALID: Final = 2
GSO_NONE: Final = 0
GSO_TCPV4: Final = 1
GSO_UDP_L4: Final = 5
GSO_ECN: Final = 0x80

# What a receiver takes: the bits of TUNSETOFFLOAD (linux/if_tun.h), and of the link's capabilities.
OFFLOAD_CSUM: Final = 0x01
OFFLOAD_TSO4: Final = 0x02
OFFLOAD_TSO6: Final = 0x04
OFFLOAD_TSO_ECN: Final = 0x08
OFFLOAD_USO4: Final = 0x20
OFFLOAD_USO6: Final = 0x40
SUPPORTED: Final = OFFLOAD_CSUM | OFFLOAD_TSO4 | OFFLOAD_TSO_ECN | OFFLOAD_USO4
"""What this package can take and make: all of IPv4."""

MIN_GSO_SIZE: Final = 8
"""Less is no sender's doing: 65,535 bytes in pieces of one would be a flood out of one frame."""
TCP_CSUM_OFFSET: Final = 16
UDP_CSUM_OFFSET: Final = 6
_ETHERNET: Final = 14
_HEADER: Final = struct.Struct("<BBHHHH")
_KNOWN_FLAGS: Final = NEEDS_CSUM | DATA_VALID
_GSO_FRAME: Final = struct.Struct("!12xHBxH2xHxB")
"""EtherType, version and IHL, total length, flags and fragment offset, protocol."""
_IPV4: Final = 0x0800
_FRAGMENT: Final = 0x3FFF
_SYN_RST: Final = 0x06
_make: Final = tuple.__new__  # half the time of the constructor


class Virtio(NamedTuple):
    """One header. `hdr_len` is what the frame itself says: all headers of a GSO frame, else 0."""

    flags: int = 0
    gso_type: int = GSO_NONE
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0

    @property
    def needs_csum(self) -> bool:
        """The checksum field holds the sum of the pseudo header only, and cannot be verified."""
        return bool(self.flags & NEEDS_CSUM)


PLAIN: Final = Virtio()
"""Nothing is left to do: the frame goes as it is."""
PLAIN_BYTES: Final = bytes(HEADER_LENGTH)
_VALID: Final = Virtio(DATA_VALID)


def parse(packet: Buffer, *, offloads: int, mtu: int) -> Virtio:
    """Read the header of `packet`, a header and its frame. Raises BadPacket and nothing else.

    `offloads` are the OFFLOAD bits agreed on; a segment of a GSO frame fits in `mtu` (for TCP: gso_size <= MSS).
    Unknown flags are ignored.
    """
    length = len(packet) - HEADER_LENGTH
    if length < _ETHERNET:
        raise BadPacket("virtio_short")
    flags, gso_type, _, gso_size, csum_start, csum_offset = _HEADER.unpack_from(packet)
    flags &= _KNOWN_FLAGS
    if gso_type == GSO_NONE:
        if not flags & NEEDS_CSUM:
            return _VALID if flags else PLAIN
        _check_csum(length, csum_start, csum_offset, offloads)
        return _make(Virtio, (NEEDS_CSUM, GSO_NONE, 0, 0, csum_start, csum_offset))
    kind = gso_type & ~GSO_ECN
    if not (kind == GSO_TCPV4 and offloads & OFFLOAD_TSO4) and not (gso_type == GSO_UDP_L4 and offloads & OFFLOAD_USO4):
        raise BadPacket("virtio_gso_type")
    if not flags & NEEDS_CSUM:
        raise BadPacket("virtio_gso_csum")
    _check_csum(length, csum_start, csum_offset, offloads)
    hdr_len = _gso_headers(packet, length, kind == GSO_TCPV4, csum_start, csum_offset)
    if gso_size < MIN_GSO_SIZE or hdr_len - _ETHERNET + gso_size > mtu:
        raise BadPacket("virtio_gso_size")
    return _make(Virtio, (NEEDS_CSUM, gso_type, hdr_len, gso_size, csum_start, csum_offset))


def _check_csum(length: int, start: int, offset: int, offloads: int) -> None:
    if not offloads & OFFLOAD_CSUM:
        raise BadPacket("virtio_csum_type")
    if start < _ETHERNET or start + offset + 2 > length:
        raise BadPacket("virtio_csum_start")


def _gso_headers(packet: Buffer, length: int, is_tcp: bool, start: int, offset: int) -> int:
    """Length of the headers of a GSO frame, which must be the kind of frame that its virtio header says."""
    if length < _ETHERNET + 20:
        raise BadPacket("virtio_gso_frame")
    ethertype, first, total, fragment, protocol = _GSO_FRAME.unpack_from(packet, HEADER_LENGTH)
    if (
        ethertype != _IPV4
        or first >> 4 != 4
        or first & 15 < 5
        or start != _ETHERNET + (first & 15) * 4
        or total != length - _ETHERNET
        or fragment & _FRAGMENT
        or (protocol, offset) != ((IPPROTO_TCP, TCP_CSUM_OFFSET) if is_tcp else (IPPROTO_UDP, UDP_CSUM_OFFSET))
    ):
        raise BadPacket("virtio_gso_frame")
    if not is_tcp:
        return start + 8
    words = packet[HEADER_LENGTH + start + 12] >> 4
    # SYN and RST occupy or end the sequence space: no sender makes a train of them.
    if words < 5 or start + words * 4 > length or packet[HEADER_LENGTH + start + 13] & _SYN_RST:
        raise BadPacket("virtio_gso_frame")
    return start + words * 4


def emit(header: Virtio) -> bytes:
    """The 10 bytes of `header`."""
    return _HEADER.pack(*header)


def agree(ours: int, theirs: int) -> int:
    """The offloads that both sides have, less those that are nothing without another (linux/if_tun.h: all need CSUM)."""
    both = ours & theirs
    if not both & OFFLOAD_CSUM:
        return 0
    if not both & (OFFLOAD_TSO4 | OFFLOAD_TSO6):
        both &= ~OFFLOAD_TSO_ECN
    return both


def takes(offloads: int, header: Virtio) -> bool:
    """Whether a receiver with these OFFLOAD bits takes a frame with `header` as it is."""
    if not header.gso_type:
        return not header.needs_csum or bool(offloads & OFFLOAD_CSUM)
    needed = OFFLOAD_USO4 if header.gso_type == GSO_UDP_L4 else OFFLOAD_TSO4
    if header.gso_type & GSO_ECN:
        needed |= OFFLOAD_TSO_ECN
    return not needed & ~offloads


def format(header: Virtio) -> str:
    """One line: what is left to do, nothing for a plain frame."""
    text = []
    if header.gso_type & ~GSO_ECN:
        kind = {GSO_TCPV4: "TCPv4", GSO_UDP_L4: "UDP"}.get(header.gso_type & ~GSO_ECN, f"type {header.gso_type}")
        ecn = " ECN" if header.gso_type & GSO_ECN else ""
        text.append(f"GSO {kind}{ecn}, {header.gso_size} behind {header.hdr_len}")
    if header.needs_csum:
        text.append(f"checksum from {header.csum_start} at +{header.csum_offset}")
    if header.flags & DATA_VALID:
        text.append("checksum valid")
    return ", ".join(text)
