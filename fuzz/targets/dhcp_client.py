"""No datagram raises, a lease is only ever a usable address, and the client never asks to be woken in the past.

The input is a train of payloads, each a two-byte length in front; the xid and MAC of each are set right so that it gets in.
"""

from __future__ import annotations

import random

from sulla_trio.config import GUEST_MAC
from sulla_trio.services.dhcp_client import DhcpClient, LeaseAcquired
from sulla_trio.wire import dhcp


def fuzz_one(data: bytes) -> None:
    now, offset, xid, sent = 0.0, 0, bytes(4), 0
    client = DhcpClient(GUEST_MAC, random.Random(0), now)
    while offset + 2 <= len(data):
        for payload in client.messages_to_send(now):
            xid, sent = dhcp.parse(payload).xid.to_bytes(4, "big"), sent + 1
        end = offset + 2 + int.from_bytes(data[offset : offset + 2], "big")
        payload, offset = data[offset + 2 : end], end
        client.receive(payload, now)
        client.receive(payload[:4] + xid + payload[8:28] + GUEST_MAC + payload[34:], now)
        while event := client.next_event():
            if isinstance(event, LeaseAcquired):
                assert 0 < event.ip[0] < 224
                assert 1 <= event.prefix <= 32
        due = client.poll_at()
        if due is not None:
            assert due > now
            now = due
            client.handle_timer(now)
    assert sent <= 2 * len(data) + 2
