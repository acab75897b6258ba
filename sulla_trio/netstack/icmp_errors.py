"""Which ICMP errors may be sent, and how many (RFC 1122 section 3.2.2, RFC 1812 section 4.3.2.8)."""

from __future__ import annotations

from typing import Final

from sulla_trio.wire import icmp
from sulla_trio.wire.inet import IPPROTO_ICMP, Buffer

RATE: Final = 1000.0
"""Errors per second (gvproxy's number)."""
BURST: Final = 50.0
_ERRORS: Final = frozenset((3, 4, 5, 11, 12))


class ErrorLimiter:
    """A token bucket: `RATE` per second, `BURST` at once."""

    __slots__ = ("_at", "_tokens")

    def __init__(self) -> None:
        self._tokens = BURST
        self._at = 0.0

    def take(self, now: float) -> bool:
        """Whether one more may go now."""
        self._tokens = min(BURST, self._tokens + max(0.0, now - self._at) * RATE)
        self._at = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


def may_answer(quoted: Buffer) -> bool:
    """Whether an error about the IP packet `quoted` is allowed: never about an ICMP error, a later fragment, or a packet that
    went to or came from a group or nobody."""
    if len(quoted) < 20:
        return False
    fragment_offset = (quoted[6] << 8 | quoted[7]) & 0x1FFF
    source, destination = quoted[12], quoted[16]
    if fragment_offset or source >= 224 or source == 0 or destination >= 224:
        return False
    if quoted[9] == IPPROTO_ICMP:
        at = (quoted[0] & 15) * 4
        return (
            len(quoted) > at
            and quoted[at] not in _ERRORS
            and quoted[at] in (icmp.ECHO_REQUEST, icmp.ECHO_REPLY, 13, 14)
        )
    return True
