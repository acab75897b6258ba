"""No request raises, what is leased is inside the pool and never reserved, and no guest's text gets into an event.

The input is a train of requests, each a two-byte length in front, against one server with three addresses to give.
"""

from __future__ import annotations

import ipaddress

from sulla_trio.config import NetworkConfig
from sulla_trio.errors import BadPacket
from sulla_trio.services.dhcp import DhcpServer
from sulla_trio.services.events import EventLog
from sulla_trio.services.leases import LeaseTable
from sulla_trio.wire import dhcp

DICTIONARY = (b"\x3c\x23sulla-vm-switch subnet=", b"10.9.0.0/16", b"/33")
NETWORK = NetworkConfig(ipaddress.IPv4Network("10.0.0.0/29"), *(bytes((10, 0, 0, last)) for last in (1, 2, 6)))


def fuzz_one(data: bytes) -> None:
    leases = LeaseTable(NETWORK)
    events = EventLog(lambda: 0.0)
    server = DhcpServer(NETWORK, leases, events)
    now, offset = 0.0, 0
    while offset + 2 <= len(data):
        end = offset + 2 + int.from_bytes(data[offset : offset + 2], "big")
        payload, offset, now = data[offset + 2 : end], end, now + 700.0
        try:
            request = dhcp.parse(payload)
        except BadPacket:
            continue
        reply = server.handle(request, bytes(4), now)
        if reply is None:
            continue
        message = dhcp.parse(dhcp.emit(reply.message))
        assert (message.op, message.xid, message.chaddr) == (dhcp.BOOTREPLY, request.xid, request.chaddr)
        if any(message.yiaddr):
            assert message.yiaddr[:3] == bytes((10, 0, 0))
            assert 2 <= message.yiaddr[3] <= 5
            assert message.yiaddr[3] != 2 or message.chaddr == NETWORK.guest_mac
    assert len(leases.all(now)) <= 5
    for event in events.since(0):
        if event["type"] == "lease.subnet_mismatch":
            assert str(ipaddress.IPv4Network(event["guest_subnet"])) == event["guest_subnet"] != event["subnet"]
