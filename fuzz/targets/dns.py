"""No message from a guest or an upstream raises, and every answer carries the query's ID and matches it.

The input is one message; it is taken as a guest's query and as an upstream's answer to a fixed query.
"""

from __future__ import annotations

from sulla_trio.config import network_config
from sulla_trio.services import dns

ZONES = dns.Zones.built_in(network_config())
QUERY = b"\x12\x34\x01\x00\x00\x01" + bytes(6) + b"\x07example\x03com\x00\x00\x01\x00\x01"


def fuzz_one(data: bytes) -> None:
    decision = ZONES.decide(data)
    if isinstance(decision, dns.Answer):
        assert decision.message[:2] == data[:2]
        assert decision.message[2] & 0x80
        assert len(dns.fit_udp(decision.message, data)) <= max(512, len(decision.message))
        assert len(decision.message) <= len(data) + 60  # no amplification worth the name
        if dns.question_of(data) is not None:
            assert dns.matches(data, decision.message)
    elif isinstance(decision, dns.Forward):
        assert decision.query == data
        assert dns.matches(data, dns.servfail(data))
        assert dns.question_text(data).isascii()
    if dns.matches(QUERY, data):
        assert data[:2] == QUERY[:2]
        assert len(dns.fit_udp(data, QUERY)) <= 512
    dns.rcode_text(data)
