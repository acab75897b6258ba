"""The retransmission time-out from round-trip samples: RFC 6298."""

from __future__ import annotations

from sulla_trio.netstack.tcp_options import TcpOptions

_GRANULARITY = 0.001
"""G of RFC 6298: seconds that a sample may be off by."""
AFTER_SYN_LOSS = 3.0
"""RFC 6298 section 5.7: the RTO when the SYN had to be sent again."""


class RttEstimator:
    """SRTT, RTTVAR and RTO, in seconds. `rto` stays backed off until the next sample (Karn's algorithm)."""

    __slots__ = ("_max_rto", "_min_rto", "rto", "rttvar", "srtt")

    def __init__(self, options: TcpOptions) -> None:
        self._min_rto = options.min_rto
        self._max_rto = options.max_rto
        self.srtt: float | None = None
        self.rttvar = 0.0
        self.rto = options.initial_rto

    def sample(self, rtt: float) -> None:
        """Take the round trip of a segment that was sent once (section 2; alpha 1/8, beta 1/4)."""
        if self.srtt is None:
            self.srtt, self.rttvar = rtt, rtt / 2
        else:
            self.rttvar += (abs(self.srtt - rtt) - self.rttvar) / 4
            self.srtt += (rtt - self.srtt) / 8
        rto = self.srtt + max(_GRANULARITY, 4 * self.rttvar)
        self.rto = min(max(rto, self._min_rto), self._max_rto)

    def back_off(self) -> None:
        """The timer expired (section 5.5)."""
        self.rto = min(self.rto * 2, self._max_rto)

    def syn_was_lost(self) -> None:
        """The handshake needed a retransmission, so there is no sample (section 5.7)."""
        self.rto = min(max(self.rto, AFTER_SYN_LOSS), self._max_rto) if self.srtt is None else self.rto
