"""Tunable numbers of the TCP machine: sizes in bytes, times in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

NEVER: Final = float("inf")
"""A deadline that does not come."""


@dataclass(frozen=True, slots=True)
class TcpOptions:
    """Defaults are for a guest one stream away: short minimum RTO, small first window, RFC values elsewhere."""

    initial_window: int = 64 << 10
    """First receive window; it doubles each time the owner has drained a full one."""
    max_window: int = 4 << 20
    """Largest receive window: 4 MiB carries 3 Gbit/s over 10 ms."""
    budget: int = 256 << 20
    """Receive windows of all connections together, see `CreditBudget`."""
    send_bound: int = 1 << 20
    """Bytes one connection may hold for sending, sent or not."""
    min_rto: float = 0.2
    """Below RFC 6298's 1 s, as every deployed stack."""
    initial_rto: float = 1.0
    """RFC 6298 section 2.1."""
    max_rto: float = 60.0
    """RFC 6298 section 2.5."""
    max_retransmits: int = 15
    """Unanswered retransmissions before the connection ends with reason timeout (RFC 9293 section 3.8.3, R2)."""
    max_syn_retransmits: int = 6
    """The same for SYN and SYN-ACK: about two minutes."""
    delayed_ack: float = 0.040
    """RFC 9293 section 3.8.6.3 allows 0.5 s."""
    keepalive_idle: float = 7200.0
    """RFC 1122 section 4.2.3.6."""
    keepalive_interval: float = 75.0
    keepalive_probes: int = 9
    time_wait: float = 60.0
    """2 MSL."""
    time_wait_limit: int = 4096
    """Connections kept in TIME-WAIT; beyond it the oldest goes."""
    fin_wait_2: float = 60.0
    """How long FIN-WAIT-2 lasts once the owner has closed both directions."""
    challenge_interval: float = 0.5
    """At least this long between two challenge ACKs of a connection (RFC 5961 section 7)."""
