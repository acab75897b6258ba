"""The DHCP server: a request in, a reply out (RFC 2131 section 4.3).

Options are those of gvproxy in its order (specs/gvproxy.md section 6.1) plus T1 and T2. There is one server on the
network, so it speaks with authority: a client that asks for an address it cannot have is told so (NAK) and never left
waiting.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Final, NamedTuple

from sulla_trio.config import NetworkConfig, format_ip, format_mac
from sulla_trio.services.events import EventLog
from sulla_trio.services.leases import Lease, LeaseTable
from sulla_trio.wire import dhcp

ANY: Final = b"\0\0\0\0"
BROADCAST: Final = b"\xff" * 4
MIN_MAX_MESSAGE: Final = 576  # RFC 2131 section 2: what every client takes, IP and UDP headers included
MAX_TOLD: Final = 1024
"""Pairs of MAC and subnet remembered as told: far beyond any one network; a flood of made-up ones costs the oldest."""
MAX_VENDOR_CLASS: Final = 64
_VENDOR_CLASS: Final = re.compile(rb"sulla-vm-switch subnet=([0-9]{1,3}(?:\.[0-9]{1,3}){3}/[0-9]{1,2})")
_FIXED_LENGTH: Final = 28 + 240 + 1  # IP and UDP headers, the fixed part with its cookie, the end mark


class Reply(NamedTuple):
    """A message and where it goes; `destination_ip` 255.255.255.255 is a broadcast on the link too."""

    message: dhcp.Dhcp
    destination_ip: bytes
    destination_port: int


class DhcpServer:
    """Answers for one network; the addresses are the `LeaseTable`'s. `search_domains` is asked for each answer: the list
    is the host's and may change; by default it is the configured one.

    Events: ``lease.acquired``, ``lease.renewed``, ``lease.released``, ``lease.declined``, ``lease.refused`` (NAK) with
    `ip` and `mac`, ``lease.exhausted`` once until an address is to be had again, and ``lease.subnet_mismatch`` once for
    each `mac` and `guest_subnet` that is not our `subnet`: the two sides were started with different values of `flag`.
    """

    def __init__(
        self,
        network: NetworkConfig,
        leases: LeaseTable,
        events: EventLog,
        *,
        search_domains: Callable[[], tuple[str, ...]] | None = None,
    ) -> None:
        self._network = network
        self._leases = leases
        self._events = events
        self._search_domains = search_domains or (lambda: network.search_domains)
        self._told_exhausted = False
        self._told_mismatch: dict[tuple[bytes, ipaddress.IPv4Network], None] = {}

    def handle(
        self, request: dhcp.Dhcp, source_ip: bytes, now: float, *, source_port: int = dhcp.CLIENT_PORT
    ) -> Reply | None:
        """Act on one request that came from (`source_ip`, `source_port`); None: no answer. Never raises.

        `now` is in seconds of the lease table's clock. The answer goes to where the request came from, or is broadcast
        if that was 0.0.0.0; a NAK always is (RFC 2131 section 4.1). Relay agents are not served.
        """
        mac = request.chaddr
        if request.op != dhcp.BOOTREQUEST or request.htype != dhcp.HTYPE_ETHERNET or len(mac) != 6:
            return None
        if mac[0] & 1 or mac in (bytes(6), self._network.gateway_mac):
            return None
        self._compare_subnet(request)
        kind = request.message_type
        reply: Reply | None = None
        if kind == dhcp.DISCOVER:
            reply = self._discover(request, source_ip, now)
        elif kind == dhcp.REQUEST:
            reply = self._request(request, source_ip, now)
        elif kind == dhcp.INFORM:
            reply = self._reply(request, dhcp.ACK, None, source_ip if source_ip != ANY else request.ciaddr)
        elif request.options.get(dhcp.SERVER_ID, self._network.gateway_ip) != self._network.gateway_ip:
            pass  # it releases or declines what another server gave it
        elif kind == dhcp.RELEASE:
            if self._leases.release(mac, request.ciaddr, now):
                self._emit("released", request.ciaddr, mac)
        elif kind == dhcp.DECLINE:
            declined = request.options.get(dhcp.REQUESTED_IP, b"")
            if self._leases.decline(mac, declined, now):
                self._emit("declined", declined, mac)
        return None if reply is None else reply._replace(destination_port=source_port)

    def _discover(self, request: dhcp.Dhcp, source_ip: bytes, now: float) -> Reply | None:
        lease = self._offer(request.chaddr, now, request.options.get(dhcp.REQUESTED_IP))
        return None if lease is None else self._reply(request, dhcp.OFFER, lease, source_ip)

    def _offer(self, mac: bytes, now: float, wanted: bytes | None) -> Lease | None:
        lease = self._leases.offer(mac, now, wanted)
        if lease is None and not self._told_exhausted:
            self._events.emit("lease.exhausted", subnet=str(self._network.subnet), mac=format_mac(mac))
        self._told_exhausted = lease is None
        return lease

    def _request(self, request: dhcp.Dhcp, source_ip: bytes, now: float) -> Reply | None:
        """RFC 2131 section 4.3.2: SELECTING, INIT-REBOOT, RENEWING, REBINDING differ by what is filled in."""
        mac = request.chaddr
        server = request.options.get(dhcp.SERVER_ID)
        if server is not None and server != self._network.gateway_ip:
            self._leases.withdraw(mac)  # it took another server's offer
            return None
        wanted = request.options.get(dhcp.REQUESTED_IP, request.ciaddr)
        lease = self._leases.lookup(mac, now)
        if lease is None and self._leases.is_free(wanted, now):
            # It had the address before a restart of ours, or until it expired, and nobody else does: it may stay.
            lease = self._offer(mac, now, wanted)
        if lease is None or lease.ip != wanted:
            if len(wanted) == 4:
                self._emit("refused", wanted, mac)
            return self._reply(request, dhcp.NAK, None, ANY)
        renewed = lease.bound and lease.expires is not None
        self._leases.bind(lease, now)
        self._emit("renewed" if renewed else "acquired", lease.ip, mac, seconds=self._leases.seconds)
        return self._reply(request, dhcp.ACK, lease, source_ip)

    def _compare_subnet(self, request: dhcp.Dhcp) -> None:
        """Tell of a guest that was started for another subnet. It gets its lease all the same."""
        subnet = guest_subnet(request.options.get(dhcp.VENDOR_CLASS, b""))
        key = (request.chaddr, subnet)
        if subnet is None or subnet == self._network.subnet or key in self._told_mismatch:
            return
        if len(self._told_mismatch) >= MAX_TOLD:
            del self._told_mismatch[next(iter(self._told_mismatch))]
        self._told_mismatch[request.chaddr, subnet] = None
        self._events.emit(
            "lease.subnet_mismatch",
            mac=format_mac(request.chaddr),
            guest_subnet=str(subnet),
            subnet=str(self._network.subnet),
            flag="-subnet",
        )

    def _emit(self, what: str, ip: bytes, mac: bytes, **more: int) -> None:
        self._events.emit(f"lease.{what}", ip=format_ip(ip), mac=format_mac(mac), **more)

    def _reply(self, request: dhcp.Dhcp, kind: int, lease: Lease | None, to: bytes) -> Reply:
        """A message of `kind` for `to`; 0.0.0.0: broadcast."""
        message = dhcp.Dhcp(
            op=dhcp.BOOTREPLY,
            htype=request.htype,
            hlen=request.hlen,
            xid=request.xid,
            secs=0,
            flags=request.flags,
            ciaddr=request.ciaddr if kind == dhcp.ACK else ANY,
            yiaddr=ANY if lease is None else lease.ip,
            siaddr=ANY,
            giaddr=request.giaddr,
            chaddr=request.chaddr,
            options=self._options(request, kind, lease),
        )
        return Reply(message, BROADCAST if to == ANY else to, dhcp.CLIENT_PORT)

    def _options(self, request: dhcp.Dhcp, kind: int, lease: Lease | None) -> dict[int, bytes]:
        """Ascending by code, option 82 last (RFC 3046 section 2.2); a NAK has the few that RFC 2131 table 3 allows."""
        network, seconds = self._network, self._leases.seconds
        options: dict[int, bytes] = {}
        if kind != dhcp.NAK:
            options[dhcp.SUBNET_MASK] = network.netmask
            options[dhcp.ROUTER] = network.gateway_ip
            options[dhcp.DNS_SERVER] = network.gateway_ip
            options[dhcp.INTERFACE_MTU] = network.mtu.to_bytes(2, "big")
        if lease is not None:
            options[dhcp.LEASE_TIME] = seconds.to_bytes(4, "big")
        options[dhcp.MESSAGE_TYPE] = bytes((kind,))
        options[dhcp.SERVER_ID] = network.gateway_ip
        if lease is not None:
            options[dhcp.RENEWAL_TIME] = (seconds // 2).to_bytes(4, "big")
            options[dhcp.REBINDING_TIME] = (seconds * 7 // 8).to_bytes(4, "big")
        if dhcp.CLIENT_ID in request.options:
            options[dhcp.CLIENT_ID] = request.options[dhcp.CLIENT_ID]
        relay = request.options.get(dhcp.RELAY_AGENT)
        if kind != dhcp.NAK:
            used = _FIXED_LENGTH + _length(options) + (0 if relay is None else _length({dhcp.RELAY_AGENT: relay}))
            options[dhcp.DOMAIN_SEARCH] = self._search(_max_message(request) - used)
        if relay is not None:
            options[dhcp.RELAY_AGENT] = relay
        return options

    def _search(self, room: int) -> bytes:
        """The search list, in an option of `room` bytes: compressed only where it would not fit otherwise, then without
        the names at its end. Too long a message is no lease at all."""
        room = max(0, room - 2 * -(-room // 257))  # RFC 3396: code and length before each 255 bytes
        names = self._search_domains()
        value = dhcp.emit_search(names)
        return value if len(value) <= room else dhcp.emit_search(names, compress=True, room=room)


def guest_subnet(vendor_class: bytes) -> ipaddress.IPv4Network | None:
    """The ``-subnet`` of our vm-switch in option 60; None: another vendor's, or nonsense."""
    found = _VENDOR_CLASS.fullmatch(vendor_class) if len(vendor_class) <= MAX_VENDOR_CLASS else None
    try:
        return None if found is None else ipaddress.IPv4Network(found[1].decode("ascii"), strict=False)
    except ValueError:
        return None


def _max_message(request: dhcp.Dhcp) -> int:
    """The longest datagram the client takes: option 57, at least 576 and at most an Ethernet frame's 1500."""
    value = request.options.get(dhcp.MAX_MESSAGE_SIZE, b"")
    return min(max(int.from_bytes(value, "big"), MIN_MAX_MESSAGE), 1500) if len(value) == 2 else MIN_MAX_MESSAGE


def _length(options: dict[int, bytes]) -> int:
    """Bytes of `options` on the wire: two more for each 255 of a value (RFC 3396), and for an empty one."""
    return sum(len(value) + 2 * max(1, -(-len(value) // 255)) for value in options.values())
