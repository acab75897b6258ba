"""Ethernet II headers, and the one-line decode of a whole frame."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from sulla_trio.config import format_ip, format_mac
from sulla_trio.errors import BadPacket
from sulla_trio.wire import arp, control, dhcp, icmp, inet, ipv4, tcp, udp
from sulla_trio.wire.inet import Buffer

HEADER_LENGTH: Final = 14
ETHERTYPE_IPV4: Final = 0x0800
ETHERTYPE_ARP: Final = 0x0806
ETHERTYPE_IPV6: Final = 0x86DD
ETHERTYPE_CONTROL: Final = control.ETHERTYPE  # link negotiation, never switched
_DHCP_PORTS: Final = (dhcp.SERVER_PORT, dhcp.CLIENT_PORT)
_HEADER: Final = struct.Struct("!6s6sH")


class Ethernet(NamedTuple):
    """One header."""

    destination: bytes
    source: bytes
    ethertype: int


def parse(frame: Buffer) -> Ethernet:
    """Read the header. Raises BadPacket and nothing else."""
    if len(frame) < HEADER_LENGTH:
        raise BadPacket("ethernet_short")
    return Ethernet._make(_HEADER.unpack_from(frame))


def emit(destination: bytes, source: bytes, ethertype: int) -> bytes:
    """The 14 bytes in front of a payload."""
    return _HEADER.pack(destination, source, ethertype)


def format(frame: Buffer) -> str:
    """One line for a whole frame, as deep as it parses; never raises."""
    try:
        header = parse(frame)
        if header.ethertype == ETHERTYPE_ARP:
            return arp.format(arp.parse(frame[HEADER_LENGTH:]))
        if header.ethertype == ETHERTYPE_IPV4:
            return _format_ipv4(frame)
        if header.ethertype == ETHERTYPE_CONTROL:
            return control.format(control.parse(frame[HEADER_LENGTH:]))
    except BadPacket as error:
        return f"bad packet ({error.reason}), length {len(frame)}"
    source, destination = format_mac(header.source), format_mac(header.destination)
    return f"{source} > {destination}, ethertype 0x{header.ethertype:04x}, length {len(frame)}"


def _format_ipv4(frame: Buffer) -> str:
    header = ipv4.parse(frame, HEADER_LENGTH)
    start = HEADER_LENGTH + header.header_length
    end = HEADER_LENGTH + header.total_length
    way = f"IP {format_ip(header.source)} > {format_ip(header.destination)}: "
    if header.fragment_offset or header.more_fragments:
        return ipv4.format(header)
    if header.protocol == inet.IPPROTO_TCP:
        # The checksum of a frame from a tap may be left to the hardware that is not there.
        return way + tcp.format(tcp.parse(frame, start, end, header.source, header.destination, verify=False))
    if header.protocol == inet.IPPROTO_UDP:
        datagram = udp.parse(frame, start, end, header.source, header.destination)
        if datagram.source_port in _DHCP_PORTS and datagram.destination_port in _DHCP_PORTS:
            return way + dhcp.format(dhcp.parse(frame[datagram.payload_offset : datagram.payload_end]))
        return way + udp.format(datagram)
    if header.protocol == inet.IPPROTO_ICMP:
        return way + icmp.format(icmp.parse(frame, start, end))
    return ipv4.format(header)
