"""The counters in the nested shape of gvproxy's ``/stats`` (specs/gvproxy.md section 2.1); what we do not count is 0."""

from __future__ import annotations

from typing import Any, Final

from sulla_trio.netstack.counters import Counters

_ICMP4: Final = (
    "EchoRequest EchoReply DstUnreachable SrcQuench Redirect TimeExceeded ParamProblem Timestamp TimestampReply"
    " InfoRequest InfoReply"
)
_ICMP6: Final = (
    "EchoRequest EchoReply DstUnreachable PacketTooBig TimeExceeded ParamProblem RouterSolicit RouterAdvert NeighborSolicit"
    " NeighborAdvert RedirectMsg MulticastListenerQuery MulticastListenerReport MulticastListenerReportV2 MulticastListenerDone"
)
_IGMP: Final = "MembershipQuery V1MembershipReport V2MembershipReport V3MembershipReport LeaveGroup"
_ARP: Final = (
    "PacketsReceived DisabledPacketsReceived MalformedPacketsReceived RequestsReceived RequestsReceivedUnknownTargetAddress"
    " OutgoingRequestInterfaceHasNoLocalAddressErrors OutgoingRequestBadLocalAddressErrors OutgoingRequestsDropped"
    " OutgoingRequestsSent RepliesReceived OutgoingRepliesDropped OutgoingRepliesSent"
)
_IP: Final = (
    "PacketsReceived ValidPacketsReceived DisabledPacketsReceived InvalidDestinationAddressesReceived"
    " InvalidSourceAddressesReceived PacketsDelivered PacketsSent OutgoingPacketErrors MalformedPacketsReceived"
    " MalformedFragmentsReceived IPTablesPreroutingDropped IPTablesInputDropped IPTablesForwardDropped IPTablesOutputDropped"
    " IPTablesPostroutingDropped OptionTimestampReceived OptionRecordRouteReceived OptionRouterAlertReceived"
    " OptionUnknownReceived"
)
_FORWARDING: Final = (
    "Unrouteable ExhaustedTTL InitializingSource LinkLocalSource LinkLocalDestination PacketTooBig HostUnreachable"
    " ExtensionHeaderProblem UnexpectedMulticastInputInterface UnknownOutputEndpoint NoMulticastPendingQueueBufferSpace"
    " OutgoingDeviceNoBufferSpace Errors OutgoingDeviceClosedForSend"
)
_TCP: Final = (
    "ActiveConnectionOpenings PassiveConnectionOpenings CurrentEstablished CurrentConnected EstablishedResets EstablishedClosed"
    " EstablishedTimedout ListenOverflowSynDrop ListenOverflowAckDrop ListenOverflowSynCookieSent ListenOverflowSynCookieRcvd"
    " ListenOverflowInvalidSynCookieRcvd FailedConnectionAttempts ValidSegmentsReceived InvalidSegmentsReceived SegmentsSent"
    " SegmentSendErrors ResetsSent ResetsReceived Retransmits FastRecovery SACKRecovery TLPRecovery SlowStartRetransmits"
    " FastRetransmit Timeouts ChecksumErrors FailedPortReservations SegmentsAckedWithDSACK SpuriousRecovery SpuriousRTORecovery"
    " ForwardMaxInFlightDrop"
)
_UDP: Final = (
    "PacketsReceived UnknownPortErrors ReceiveBufferErrors MalformedPacketsReceived PacketsSent PacketSendErrors"
    " ChecksumErrors"
)


def _zeros(names: str) -> dict[str, Any]:
    return dict.fromkeys(names.split(), 0)


def statistics(counters: Counters) -> dict[str, Any]:
    """All keys of the peer, integer leaves. `drops` by reason are under our own key ``Drops``."""
    c, drops = counters, counters.drops
    packets = {"Packets": 0, "Bytes": 0}
    bad = {name: sum(n for reason, n in drops.items() if reason.startswith(name)) for name in ("arp_", "ipv4_", "udp_")}
    return {
        "ARP": _zeros(_ARP)
        | {
            "PacketsReceived": c.arp_requests_received + c.arp_replies_received,
            "MalformedPacketsReceived": bad["arp_"],
            "RequestsReceived": c.arp_requests_received,
            "OutgoingRequestsSent": c.arp_requests_sent,
            "RepliesReceived": c.arp_replies_received,
            "OutgoingRepliesSent": c.arp_replies_sent,
        },
        "BytesReceived": c.bytes_received,
        "BytesSent": c.bytes_sent,
        "DroppedPackets": sum(drops.values()),
        "Drops": dict(drops),
        "ICMP": _icmp(c),
        "IGMP": {
            "PacketsReceived": {"IGMPPacketStats": _zeros(_IGMP), "Invalid": 0, "ChecksumErrors": 0, "Unrecognized": 0},
            "PacketsSent": {"IGMPPacketStats": _zeros(_IGMP), "Dropped": 0},
        },
        "IP": _zeros(_IP)
        | {
            "PacketsReceived": c.ip_datagrams_received,
            "ValidPacketsReceived": c.ip_datagrams_received - bad["ipv4_"],
            "PacketsDelivered": c.ip_datagrams_received - bad["ipv4_"],
            "PacketsSent": c.ip_datagrams_sent,
            "MalformedPacketsReceived": bad["ipv4_"],
            "InvalidSourceAddressesReceived": drops.get("ipv4_source", 0),
            "Forwarding": _zeros(_FORWARDING) | {"ExhaustedTTL": drops.get("ipv4_ttl", 0)},
        },
        "NICs": {
            "MalformedL4RcvdPackets": 0,
            "TxPacketsDroppedNoBufferSpace": drops.get("link_queue_full", 0),
            "Tx": {"Packets": c.frames_sent, "Bytes": c.bytes_sent},
            "Rx": {"Packets": c.frames_received, "Bytes": c.bytes_received},
            "DisabledRx": packets,
            "Neighbor": _zeros(
                "UnreachableEntryLookups DroppedConfirmationForNoninitiatedNeighbor DroppedInvalidLinkAddressConfirmations"
            ),
        },
        "TCP": _zeros(_TCP)
        | {
            "ActiveConnectionOpenings": c.tcp_active_opens,
            "PassiveConnectionOpenings": c.tcp_passive_opens,
            "CurrentEstablished": c.tcp_current_established,
            "CurrentConnected": c.tcp_current_established,
            "ValidSegmentsReceived": c.tcp_segments_received,
            "SegmentsSent": c.tcp_segments_sent,
            "ResetsSent": c.tcp_resets_sent,
            "ResetsReceived": c.tcp_resets_received,
            "Retransmits": c.tcp_retransmits,
            "FastRetransmit": c.tcp_fast_retransmits,
            "Timeouts": c.tcp_timeouts,
            "ChecksumErrors": c.tcp_checksum_errors,
            "ForwardMaxInFlightDrop": sum(n for reason, n in drops.items() if reason.startswith("syn_pending")),
        },
        "UDP": _zeros(_UDP)
        | {
            "PacketsReceived": c.udp_datagrams_received,
            "PacketsSent": c.udp_datagrams_sent,
            "MalformedPacketsReceived": bad["udp_"],
            "ChecksumErrors": drops.get("udp_checksum", 0),
        },
    }


def _icmp(c: Counters) -> dict[str, Any]:
    received = _zeros(_ICMP4) | {"EchoRequest": c.icmp_echo_requests_received}
    sent = _zeros(_ICMP4) | {"EchoReply": c.icmp_echo_replies_sent}
    invalid = c.drops.get("icmp_checksum", 0) + c.drops.get("icmp_short", 0)
    limited = c.drops.get("icmp_rate_limited", 0)
    return {
        "V4": {
            "PacketsReceived": {"ICMPv4PacketStats": received, "Invalid": invalid},
            "PacketsSent": {"ICMPv4PacketStats": sent, "Dropped": 0, "RateLimited": limited},
        },
        "V6": {
            "PacketsReceived": {
                "ICMPv6PacketStats": _zeros(_ICMP6),
                "Invalid": 0,
                "Unrecognized": 0,
                "RouterOnlyPacketsDroppedByHost": 0,
            },
            "PacketsSent": {"ICMPv6PacketStats": _zeros(_ICMP6), "Dropped": 0, "RateLimited": 0},
        },
    }
