"""ARP for IPv4 over Ethernet (RFC 826)."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from sulla_trio.config import format_ip, format_mac
from sulla_trio.errors import BadPacket
from sulla_trio.wire.inet import Buffer

REQUEST: Final = 1
REPLY: Final = 2
_PACKET: Final = struct.Struct("!HHBBH6s4s6s4s")
_ETHERNET_IPV4: Final = (1, 0x0800, 6, 4)


class Arp(NamedTuple):
    """One ARP packet."""

    operation: int
    sender_mac: bytes
    sender_ip: bytes
    target_mac: bytes
    target_ip: bytes


def parse(payload: Buffer) -> Arp:
    """Read a packet; what follows it is Ethernet padding. Raises BadPacket and nothing else."""
    if len(payload) < _PACKET.size:
        raise BadPacket("arp_short")
    fields = _PACKET.unpack_from(payload)
    if fields[:4] != _ETHERNET_IPV4:
        raise BadPacket("arp_type")
    return Arp._make(fields[4:])


def emit(arp: Arp) -> bytes:
    """The 28 bytes of `arp`."""
    return _PACKET.pack(*_ETHERNET_IPV4, *arp)


def format(arp: Arp) -> str:
    """One line, as tcpdump has it."""
    if arp.operation == REQUEST:
        return f"ARP, Request who-has {format_ip(arp.target_ip)} tell {format_ip(arp.sender_ip)}"
    if arp.operation == REPLY:
        return f"ARP, Reply {format_ip(arp.sender_ip)} is-at {format_mac(arp.sender_mac)}"
    return f"ARP, operation {arp.operation}"
