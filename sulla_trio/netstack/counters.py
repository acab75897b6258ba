"""Counters of the stack and the switch: plain ints, read by ``/stats``, never reset.

Everybody adds to them in place (``counters.tcp_retransmits += 1``); nobody reads a clock or takes a lock for it. The
stack counts `tcp_segments_received` and `tcp_checksum_errors`, the connections everything else of TCP.
"""

from __future__ import annotations


class Counters:
    """Totals since start. `drops` maps a reason name (``tcp_checksum``, ``arp_short``...) to how often it happened."""

    __slots__ = (
        "arp_replies_received",
        "arp_replies_sent",
        "arp_requests_received",
        "arp_requests_sent",
        "bytes_received",
        "bytes_sent",
        "drops",
        "frames_received",
        "frames_sent",
        "icmp_echo_replies_sent",
        "icmp_echo_requests_received",
        "icmp_errors_sent",
        "icmp_received",
        "ip_datagrams_received",
        "ip_datagrams_sent",
        "ip_fragments_received",
        "ip_fragments_sent",
        "ip_reassembled",
        "tcp_active_opens",
        "tcp_checksum_errors",
        "tcp_current_established",
        "tcp_fast_retransmits",
        "tcp_passive_opens",
        "tcp_resets_received",
        "tcp_resets_sent",
        "tcp_retransmits",
        "tcp_segments_received",
        "tcp_segments_sent",
        "tcp_timeouts",
        "tcp_zero_window_probes",
        "udp_datagrams_received",
        "udp_datagrams_sent",
    )

    def __init__(self) -> None:
        self.drops: dict[str, int] = {}
        self.frames_received = 0
        self.frames_sent = 0
        self.bytes_received = 0
        self.bytes_sent = 0
        self.arp_requests_received = 0
        self.arp_requests_sent = 0
        self.arp_replies_received = 0
        self.arp_replies_sent = 0
        self.ip_datagrams_received = 0
        self.ip_datagrams_sent = 0
        self.ip_fragments_received = 0
        self.ip_fragments_sent = 0
        self.ip_reassembled = 0
        self.icmp_received = 0
        self.icmp_echo_requests_received = 0
        self.icmp_echo_replies_sent = 0
        self.icmp_errors_sent = 0
        self.udp_datagrams_received = 0
        self.udp_datagrams_sent = 0
        self.tcp_active_opens = 0
        self.tcp_passive_opens = 0
        self.tcp_current_established = 0
        self.tcp_segments_received = 0
        self.tcp_segments_sent = 0
        self.tcp_retransmits = 0
        self.tcp_fast_retransmits = 0
        self.tcp_timeouts = 0
        self.tcp_zero_window_probes = 0
        self.tcp_resets_sent = 0
        self.tcp_resets_received = 0
        self.tcp_checksum_errors = 0

    def drop(self, reason: str, count: int = 1) -> None:
        """Count `count` dropped things under `reason`."""
        drops = self.drops
        drops[reason] = drops.get(reason, 0) + count

    def as_dict(self) -> dict[str, int | dict[str, int]]:
        """All of them by name, for ``/stats``; `drops` is a copy."""
        values: dict[str, int | dict[str, int]] = {
            name: getattr(self, name) for name in self.__slots__ if name != "drops"
        }
        values["drops"] = dict(self.drops)
        return values
