"""What routers inside a guest's own networks let through: path MTU discovery (RFC 1191, checked as RFC 5927 asks)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, NamedTuple

from sulla_trio.wire.inet import IPPROTO_TCP, Buffer

MIN_MTU: Final = 552
"""A smaller report is taken for this, as Linux does: below it one could make us send little but headers."""
LIFETIME: Final = 600.0
"""Seconds after which the path is tried again (RFC 1191 section 6.3)."""
MAX_PATHS: Final = 256
"""Addresses remembered; the oldest goes."""
PLATEAUS: Final = (65_535, 32_000, 17_914, 8166, 4352, 2002, 1492, 1006, 508)
"""RFC 1191 section 7.1: what to try when a router does not say."""


class Quoted(NamedTuple):
    """What an ICMP error quotes of a TCP segment of ours."""

    key: bytes
    """Of its connection, as the guest's segments carry it."""
    remote_ip: bytes
    length: int
    """Total length of the datagram."""
    seq: int


def quoted_segment(quoted: Buffer) -> Quoted | None:
    """The segment that an ICMP error is about; None: it is about something else."""
    data = bytes(quoted[:68])
    at = (data[0] & 15) * 4 if data else 0
    if at < 20 or len(data) < at + 8 or data[0] >> 4 != 4 or data[9] != IPPROTO_TCP or data[6] & 0x1F or data[7]:
        return None
    source, destination = data[12:16], data[16:20]
    key = destination + source + data[at + 2 : at + 4] + data[at : at + 2]
    return Quoted(key, destination, int.from_bytes(data[2:4], "big"), int.from_bytes(data[at + 4 : at + 8], "big"))


def next_mtu(reported: int, length: int) -> int | None:
    """The MTU to use after a datagram of `length` bytes did not get through; None: the report cannot be true.

    A router that reports 0 is older than RFC 1191; the next plateau below is tried then.
    """
    if not reported:
        reported = next((plateau for plateau in PLATEAUS if plateau < length), MIN_MTU)
    return max(reported, MIN_MTU) if reported < length else None


class PathMtus:
    """Addresses that less than the link's MTU leads to."""

    __slots__ = ("_paths",)

    def __init__(self) -> None:
        self._paths: OrderedDict[bytes, tuple[int, float]] = OrderedDict()

    def lower(self, address: bytes, mtu: int, now: float) -> None:
        """`mtu` bytes is all that gets through to `address`."""
        self._paths[address] = (mtu, now + LIFETIME)
        self._paths.move_to_end(address)
        if len(self._paths) > MAX_PATHS:
            self._paths.popitem(last=False)

    def get(self, address: bytes, default: int, now: float) -> int:
        """The MTU to begin with: `default`, or what is known to be less."""
        if not self._paths or (known := self._paths.get(address)) is None:
            return default
        mtu, until = known
        if now >= until:
            del self._paths[address]
            return default
        return min(mtu, default)
