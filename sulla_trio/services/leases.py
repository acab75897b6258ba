"""The lease table: which MAC has which address of the virtual network, until when.

Addresses are given lowest first. A MAC keeps the address it had for as long as that can be: an expired or released
lease is remembered and its address goes to another MAC only when no fresh one is left, the longest expired first.
Source: DESIGN section 5.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from heapq import heappop, heappush
from typing import Final, NamedTuple

from sulla_trio.config import NetworkConfig, format_ip, format_mac

LEASE_SECONDS: Final = 3600
OFFER_SECONDS: Final = 60.0
"""How long an offered address waits for its REQUEST; longer than any client's patience (RFC 2131 section 3.1: about 60
s)."""
DECLINED_SECONDS: Final = 3600.0
"""How long an address is not given again after a client found it in use."""
MAX_LEASES: Final = 16_384
"""Leases remembered, live and expired (some 5 MB): far beyond any one network, and what a flood of made-up MACs can
take."""


class Lease:
    """One address and its MAC. `expires` is in seconds of the caller's clock; None for a static lease."""

    __slots__ = ("bound", "expires", "ip", "mac", "taken")

    def __init__(self, ip: bytes, mac: bytes, expires: float | None, bound: bool) -> None:
        self.ip = ip
        self.mac = mac
        self.expires = expires
        self.bound = bound
        """Whether the client has it (ACK); False while it is only offered, or was released."""
        self.taken = bound
        """Whether the client ever had it; an offer that nobody took is not worth remembering over a restart."""

    def live(self, now: float) -> bool:
        """Whether nobody else can be given the address at `now`."""
        return self.expires is None or now < self.expires


class StoredLease(NamedTuple):
    """One address and the MAC that has it or had it last. `expires` is in unix seconds and may have gone by."""

    ip: bytes
    mac: bytes
    expires: float


class LeaseTable:
    """Leases of one network. Never given: the network and broadcast addresses, the gateway, the host alias, static
    ones.

    `static` maps MAC to address; by default it has the guest's (`guest_mac` has `guest_ip`) and the configured ones. All
    times are seconds of one clock of the caller's. Nothing here raises.
    """

    def __init__(
        self,
        network: NetworkConfig,
        *,
        static: Mapping[bytes, bytes] | None = None,
        seconds: int = LEASE_SECONDS,
        max_leases: int = MAX_LEASES,
    ) -> None:
        self.network = network
        self.seconds = seconds
        self._max_leases = max_leases
        given = {network.guest_mac: network.guest_ip, **dict(network.static_leases)} if static is None else static
        self._static = {mac: Lease(ip, mac, None, True) for mac, ip in given.items()}
        self._reserved = {network.gateway_ip, network.host_ip, *given.values()}
        self._next = int(network.subnet.network_address) + 1
        self._last = int(network.subnet.broadcast_address) - 1
        self._returned: list[int] = []
        """Heap of addresses below `_next` that were given back for good; some may belong to somebody again."""
        self._returned_set: set[int] = set()
        self._by_mac: dict[bytes, Lease] = {}
        self._by_ip: dict[bytes, Lease] = {}
        self._declined: dict[bytes, float] = {}
        self._exhausted_until = 0.0
        """Nothing ends before then, so that a flood of DISCOVERs on a full pool costs no search each."""

    def lookup(self, mac: bytes, now: float) -> Lease | None:
        """The lease that `mac` holds at `now`, offered ones included."""
        lease = self._static.get(mac) or self._by_mac.get(mac)
        return lease if lease is not None and lease.live(now) else None

    def offer(self, mac: bytes, now: float, requested: bytes | None = None) -> Lease | None:
        """An address for `mac`, held for `OFFER_SECONDS`; None when the pool is exhausted.

        In this order (RFC 2131 section 4.3.1): the one it holds or held last, the one it asks for if that is free, the
        lowest free one.
        """
        static = self._static.get(mac)
        if static is not None:
            return static
        lease = self._by_mac.get(mac)
        if lease is not None:
            if not lease.live(now):
                lease.bound = False
                lease.expires = now + OFFER_SECONDS
            return lease
        ip = requested if requested is not None and self._take(requested, now) else self._take_lowest(now)
        if ip is None:
            return None
        lease = Lease(ip, mac, now + OFFER_SECONDS, False)
        self._by_mac[mac] = self._by_ip[ip] = lease
        return lease

    def bind(self, lease: Lease, now: float) -> None:
        """The client has it: it lasts `seconds` from `now` (also: renewed)."""
        lease.bound = lease.taken = True
        if lease.expires is not None:
            lease.expires = now + self.seconds

    def release(self, mac: bytes, ip: bytes, now: float) -> bool:
        """`mac` gives `ip` back; False when it was not its lease (or is static). It is remembered for that MAC."""
        lease = self._by_mac.get(mac)
        if lease is None or lease.ip != ip or not lease.live(now):
            return False
        lease.bound = False
        lease.expires = now
        self._exhausted_until = 0.0
        return True

    def withdraw(self, mac: bytes) -> None:
        """Forget an offer that `mac` did not take (it took another server's); a bound or static lease stays."""
        lease = self._by_mac.get(mac)
        if lease is not None and not lease.bound:
            self._forget(lease)

    def decline(self, mac: bytes, ip: bytes, now: float) -> bool:
        """`mac` found `ip` in use by somebody else: not given again for `DECLINED_SECONDS`.

        False when it was not its lease, or is static (a static lease is the operator's word).
        """
        lease = self._by_mac.get(mac)
        if lease is None or lease.ip != ip:
            return False
        del self._by_mac[mac], self._by_ip[ip]
        self._declined[ip] = now + DECLINED_SECONDS
        self._exhausted_until = 0.0
        return True

    def all(self, now: float | None = None) -> dict[str, str]:
        """Address text to MAC text: the gateway, static leases and every lease a client has, by address.

        Source: specs/gvproxy.md section 2.3. Without `now` expired leases are included, as gvproxy's never expire.
        """
        leases = [lease for lease in self._by_ip.values() if lease.bound and (now is None or lease.live(now))]
        table = {lease.ip: lease.mac for lease in (*leases, *self._static.values())}
        table[self.network.gateway_ip] = self.network.gateway_mac
        return {format_ip(ip): format_mac(table[ip]) for ip in sorted(table)}

    def remove(self, ip: bytes) -> bytes | None:
        """Forget the lease of `ip`, as if it had never been; the MAC that had it, None where there is none to remove.

        A static lease stays. A client that still uses the address keeps it when it renews, if nobody has it by then.
        """
        lease = self._by_ip.get(ip)
        if lease is None:
            return None
        self._forget(lease)
        return lease.mac

    def snapshot(self, unix: float) -> list[StoredLease]:
        """What should be remembered over a restart: every lease that a client has or had, but for the static ones.

        `unix` is what to add to a time of this table's clock to have unix seconds.
        """
        return [
            StoredLease(lease.ip, lease.mac, lease.expires + unix)
            for lease in self._by_ip.values()
            if lease.taken and lease.expires is not None
        ]

    def restore(self, leases: Iterable[StoredLease], unix: float, now: float) -> int:
        """Take back what `snapshot` gave before a restart; returns how many there are again.

        A lease is left out where the network has changed (another subnet, another static lease), or where its address or
        its MAC has one already. None lasts longer than a new one would: the wall clock may have been put back meanwhile.
        """
        restored = 0
        for ip, mac, expires in leases:
            if mac in self._static or mac in self._by_mac or ip in self._by_ip or not self._take(ip, now):
                continue
            lease = Lease(ip, mac, min(expires - unix, now + self.seconds), True)
            lease.bound = lease.live(now)
            self._by_mac[mac] = self._by_ip[ip] = lease
            restored += 1
        return restored

    def is_free(self, ip: bytes, now: float) -> bool:
        """Whether `ip` may be given to any MAC at `now`."""
        number = int.from_bytes(ip, "big")
        if len(ip) != 4 or ip not in self.network or ip in self._reserved:
            return False
        if not int(self.network.subnet.network_address) < number <= self._last:
            return False
        lease = self._by_ip.get(ip)
        return (lease is None or not lease.live(now)) and self._declined.get(ip, now) <= now

    def _take(self, ip: bytes, now: float) -> bool:
        """Make `ip` nobody's, for a new lease; False when it is somebody's or there are too many leases."""
        if not self.is_free(ip, now):
            return False
        holder = self._by_ip.get(ip)
        known = holder is not None or ip in self._declined
        if not known and len(self._by_ip) + len(self._declined) >= self._max_leases:
            return False
        if holder is not None:
            del self._by_mac[holder.mac], self._by_ip[ip]
        self._declined.pop(ip, None)
        return True

    def _take_lowest(self, now: float) -> bytes | None:
        """The lowest address that is nobody's, else the one that expired longest ago; None: exhausted."""
        if len(self._by_ip) + len(self._declined) < self._max_leases:
            number = self._lowest_fresh()
            if number is not None:
                return number.to_bytes(4, "big")
        if now < self._exhausted_until:
            return None
        ends = [(until, ip) for ip, until in self._declined.items()]
        ends += [(lease.expires or 0.0, lease.ip) for lease in self._by_ip.values()]
        if not ends:
            return None
        until, ip = min(ends)
        if until > now:
            self._exhausted_until = until
            return None
        self._take(ip, now)
        return ip

    def _lowest_fresh(self) -> int | None:
        """The lowest number that was returned or never given; it is taken out of the pool."""
        while self._returned:
            number = heappop(self._returned)
            self._returned_set.discard(number)
            if self._is_fresh(number):
                return number
        while self._next <= self._last:
            number = self._next
            self._next += 1
            if self._is_fresh(number):
                return number
        return None

    def _is_fresh(self, number: int) -> bool:
        ip = number.to_bytes(4, "big")
        return ip not in self._reserved and ip not in self._by_ip and ip not in self._declined

    def _forget(self, lease: Lease) -> None:
        del self._by_mac[lease.mac], self._by_ip[lease.ip]
        self._exhausted_until = 0.0
        number = int.from_bytes(lease.ip, "big")
        if number < self._next and number not in self._returned_set:
            heappush(self._returned, number)
            self._returned_set.add(number)
