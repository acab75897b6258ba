"""``/stats`` has the peer's keys, and our counters where we have them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sulla_trio.netstack.counters import Counters
from sulla_trio.netstack.statistics import statistics
from tests.support.stack_guest import REMOTE, StackGuest

TOP = {"ARP", "BytesReceived", "BytesSent", "DroppedPackets", "ICMP", "IGMP", "IP", "NICs", "TCP", "UDP"}


def leaves(value: Any) -> list[Any]:
    return [leaf for each in value.values() for leaf in leaves(each)] if isinstance(value, dict) else [value]


def at(value: dict[str, Any], path: str) -> Any:
    for key in path.split("."):
        value = value[key]
    return value


def test_every_leaf_is_an_integer() -> None:
    stats = statistics(Counters())
    assert set(stats) == TOP | {"Drops"}
    assert {type(leaf) for leaf in leaves(stats)} == {int}
    assert set(leaves(stats)) == {0}
    assert json.loads(json.dumps(stats)) == stats


@pytest.mark.parametrize(
    ("path", "size"),
    [
        ("ARP", 12),
        ("ICMP.V4.PacketsReceived", 2),
        ("ICMP.V4.PacketsReceived.ICMPv4PacketStats", 11),
        ("ICMP.V4.PacketsSent", 3),
        ("ICMP.V6.PacketsReceived", 4),
        ("ICMP.V6.PacketsReceived.ICMPv6PacketStats", 15),
        ("ICMP.V6.PacketsSent", 3),
        ("IGMP.PacketsReceived", 4),
        ("IGMP.PacketsReceived.IGMPPacketStats", 5),
        ("IGMP.PacketsSent", 2),
        ("IP", 20),
        ("IP.Forwarding", 14),
        ("NICs", 6),
        ("NICs.Neighbor", 3),
        ("TCP", 32),
        ("UDP", 7),
    ],
)
def test_the_shape_of_the_peer(path: str, size: int) -> None:
    assert len(at(statistics(Counters()), path)) == size


def test_values_come_from_the_stack() -> None:
    guest = StackGuest()
    guest.send(guest.echo(guest.network.gateway_ip))
    guest.send(guest.udp(REMOTE, b"x"))
    guest.send(guest.udp(bytes((127, 0, 0, 1)), b"x"))
    guest.send(guest.tcp(16))
    stats = guest.stack.statistics()
    expected = {
        "DroppedPackets": 1,
        "Drops.ipv4_martian": 1,
        "IP.PacketsReceived": 4,
        "IP.ValidPacketsReceived": 3,
        "IP.PacketsSent": 2,
        "ICMP.V4.PacketsReceived.ICMPv4PacketStats.EchoRequest": 1,
        "ICMP.V4.PacketsSent.ICMPv4PacketStats.EchoReply": 1,
        "UDP.PacketsReceived": 1,
        "TCP.ValidSegmentsReceived": 1,
        "TCP.ResetsSent": 1,
    }
    assert {path: at(stats, path) for path in expected} == expected
