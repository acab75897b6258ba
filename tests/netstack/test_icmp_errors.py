"""Which packets may be answered with an ICMP error, and how many errors go out."""

from __future__ import annotations

import pytest

from sulla_trio.netstack.icmp_errors import BURST, RATE, ErrorLimiter, may_answer
from sulla_trio.wire import icmp, inet, ipv4

GUEST, REMOTE = bytes((192, 168, 127, 2)), bytes((8, 8, 8, 8))


def packet(
    source: bytes = GUEST, destination: bytes = REMOTE, protocol: int = inet.IPPROTO_UDP, offset: int = 0
) -> bytes:
    return ipv4.emit(source, destination, protocol, 8, flags_fragment=offset) + bytes(8)


def test_an_ordinary_packet_may() -> None:
    assert may_answer(packet())
    assert may_answer(packet(offset=ipv4.MORE_FRAGMENTS))  # the first fragment


@pytest.mark.parametrize(
    "quoted",
    [
        b"",
        packet()[:19],
        packet(offset=1),
        packet(source=bytes(4)),
        packet(source=bytes((224, 0, 0, 1))),
        packet(source=b"\xff" * 4),
        packet(destination=bytes((224, 0, 0, 1))),
        packet(destination=b"\xff" * 4),
    ],
)
def test_never_about_these(quoted: bytes) -> None:
    assert not may_answer(quoted)


@pytest.mark.parametrize(
    ("kind", "may"),
    [
        (icmp.ECHO_REQUEST, True),
        (icmp.ECHO_REPLY, True),
        (icmp.UNREACHABLE, False),
        (icmp.TIME_EXCEEDED, False),
        (4, False),
        (5, False),
        (12, False),
        (200, False),  # unknown types count as errors (RFC 1812 section 4.3.2.7 is for known ones)
    ],
)
def test_of_icmp_only_queries(kind: int, may: bool) -> None:
    quoted = ipv4.emit(GUEST, REMOTE, inet.IPPROTO_ICMP, 8) + icmp.emit(kind, 0, 0, b"")
    assert may_answer(quoted) is may
    assert not may_answer(quoted[:20])


def test_the_rate() -> None:
    limiter = ErrorLimiter()
    assert [limiter.take(50.0) for _ in range(int(BURST) + 1)] == [True] * int(BURST) + [False]
    assert limiter.take(50.0 + 1.5 / RATE)
    assert not limiter.take(50.0 + 1.5 / RATE)
    assert [limiter.take(1000.0) for _ in range(int(BURST) + 1)].count(True) == BURST
