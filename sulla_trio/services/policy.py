"""Where a guest may reach: the never-dialled table and the NAT of the host alias.

Source: DESIGN section 4; the blocks are those of RFC 6890 section 2.2.2 that no host may be dialled at. Reading this
page is enough to know what is denied: the rows below, and the rules in the order of `may_dial`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, NamedTuple

from sulla_trio.config import NetworkConfig, format_ip

LOOPBACK: Final = b"\x7f\x00\x00\x01"


class Verdict(NamedTuple):
    """Whether an address may be dialled; `target_ip` is what to dial then (after NAT), `reason` why not otherwise."""

    allowed: bool
    target_ip: bytes
    reason: str


class Row(NamedTuple):
    """One row of the table: addresses from `first` to `last`, both included."""

    first: bytes
    last: bytes
    reason: str


NEVER_DIALLED: Final = (
    Row(bytes([0, 0, 0, 0]), bytes([0, 255, 255, 255]), "this_network"),  # RFC 791 3.2; Linux dials 0.0.0.0 as loopback
    Row(bytes([127, 0, 0, 0]), bytes([127, 255, 255, 255]), "loopback"),  # RFC 1122 3.2.1.3; only the alias leads there
    Row(bytes([169, 254, 0, 0]), bytes([169, 254, 255, 255]), "link_local"),  # RFC 3927; cloud metadata services
    Row(bytes([224, 0, 0, 0]), bytes([239, 255, 255, 255]), "multicast"),  # RFC 5771
    Row(bytes([255, 255, 255, 255]), bytes([255, 255, 255, 255]), "broadcast"),  # RFC 919 7
    Row(bytes([240, 0, 0, 0]), bytes([255, 255, 255, 254]), "reserved"),  # RFC 1112 4
)
"""Never dialled, whatever the configuration. `may_dial` adds what depends on it."""


def may_dial(
    network: NetworkConfig, ip: bytes, port: int, own_listeners: Collection[tuple[str, int]] = frozenset()
) -> Verdict:
    """Whether the guest may reach (`ip`, `port`) on the outside, by TCP or UDP.

    `own_listeners` are (address text, port) of the host API's own TCP listeners. One on ``0.0.0.0`` or ``::`` stands
    for every loopback address; whoever listens there and minds guests that know another address of the host adds a pair
    for each.

    Reasons, in the order they are looked at: ``host_loopback_off``, ``host_loopback_port``, ``virtual_subnet``, those
    of `NEVER_DIALLED`, ``deny_out``, ``own_listener``; ``address_family`` for anything but 4 bytes. Never raises.
    """
    if len(ip) != 4:
        return Verdict(False, ip, "address_family")
    if ip == network.host_ip:
        if not network.host_loopback:
            return Verdict(False, ip, "host_loopback_off")
        if network.host_loopback_ports is not None and port not in network.host_loopback_ports:
            return Verdict(False, ip, "host_loopback_port")
        target = LOOPBACK
    elif ip in network:
        return Verdict(False, ip, "virtual_subnet")
    else:
        for first, last, reason in NEVER_DIALLED:
            if first <= ip <= last:  # bytes of one length compare as addresses do
                return Verdict(False, ip, reason)
        target = ip
    if network.deny_out and (_denied(network, ip) or _denied(network, target)):
        return Verdict(False, ip, "deny_out")
    if own_listeners and _is_own(target, port, own_listeners):
        return Verdict(False, ip, "own_listener")
    return Verdict(True, target, "")


def _denied(network: NetworkConfig, ip: bytes) -> bool:
    address = int.from_bytes(ip, "big")
    return any(address & int(denied.netmask) == int(denied.network_address) for denied in network.deny_out)


def _is_own(target: bytes, port: int, own_listeners: Collection[tuple[str, int]]) -> bool:
    if (format_ip(target), port) in own_listeners:
        return True
    return target[0] == LOOPBACK[0] and (("0.0.0.0", port) in own_listeners or ("::", port) in own_listeners)
