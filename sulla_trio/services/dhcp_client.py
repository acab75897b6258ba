"""The DHCP client of vm-switch: RFC 2131 figure 5 without the socket."""

from __future__ import annotations

from collections import deque
from enum import Enum
from math import inf
from typing import Final, NamedTuple, Protocol

from sulla_trio.errors import BadPacket
from sulla_trio.wire import dhcp

ANY: Final = b"\0\0\0\0"
FIRST_RETRY: Final = 0.5
"""Seconds: the server is one process away, RFC 2131's 4 s would only be felt."""
MAX_RETRY: Final = 16.0
REQUEST_TRIES: Final = 4
SHORTEST_LEASE: Final = 60
"""Seconds: a shorter lease is taken for this long, so that a server's nonsense is no busy loop."""
FOR_EVER: Final = 0xFFFFFFFF  # RFC 2131 section 3.3
MAX_MESSAGE: Final = 1500
MIN_MTU: Final = 68  # RFC 2132 section 5.1
WANTED: Final = bytes((dhcp.SUBNET_MASK, dhcp.ROUTER, dhcp.DNS_SERVER, dhcp.INTERFACE_MTU, dhcp.DOMAIN_SEARCH))


class RandomSource(Protocol):
    """What is needed of a `random.Random`."""

    def getrandbits(self, k: int, /) -> int: ...


class ClientState(Enum):
    """RFC 2131 figure 5, less the states of a reboot. INIT is left at once but after a NAK."""

    INIT = "INIT"
    SELECTING = "SELECTING"
    REQUESTING = "REQUESTING"
    BOUND = "BOUND"
    RENEWING = "RENEWING"
    REBINDING = "REBINDING"


class LeaseAcquired(NamedTuple):
    """A lease was acquired or renewed."""

    ip: bytes
    prefix: int
    router: bytes | None
    dns: tuple[bytes, ...]
    mtu: int | None
    search: tuple[str, ...]
    lease_seconds: int
    server: bytes


class LeaseLost(NamedTuple):
    """The lease ended or was refused; the address must not be used any more."""

    reason: str


class DhcpClient:
    """One interface's client. `messages_to_send` gives UDP payloads: to broadcast, from 0.0.0.0 until bound.

    `vendor_class` is sent as option 60 where it is not empty (1 to 255 bytes).
    """

    def __init__(self, mac: bytes, random: RandomSource, now: float, *, vendor_class: bytes = b"") -> None:
        self._mac = mac
        self._random = random
        self._vendor_class = vendor_class
        self._deadline = now
        self._refusals = 0
        self._events: deque[LeaseAcquired | LeaseLost] = deque()
        self._out: list[bytes] = []
        self.lease: LeaseAcquired | None = None
        self._start(now)

    def _start(self, now: float) -> None:
        self.state = ClientState.SELECTING
        self._xid = self._random.getrandbits(32)
        self._began = now
        self._tries = 0
        self._confirming = False
        self._offer: tuple[bytes, bytes] | None = None
        self._expiry = self._rebind_at = inf
        self._transmit(now)

    # The verbs

    def receive(self, payload: bytes, now: float) -> None:
        """Take one UDP payload that came to port 68; what is not for us is ignored. Never raises."""
        try:
            message = dhcp.parse(payload)
        except BadPacket:
            return
        if message.op != dhcp.BOOTREPLY or message.xid != self._xid or message.chaddr != self._mac:
            return
        kind = message.message_type
        if kind == dhcp.OFFER and self.state is ClientState.SELECTING:
            server = message.options.get(dhcp.SERVER_ID, b"")
            if len(server) == 4 and is_unicast(message.yiaddr):
                self._offer = (message.yiaddr, server)
                self.state, self._tries = ClientState.REQUESTING, 0
                self._transmit(now)
        elif self.state in (ClientState.INIT, ClientState.SELECTING, ClientState.BOUND):
            return
        elif kind == dhcp.ACK:
            self._bound(message, now)
        elif kind == dhcp.NAK:
            self._refused(message, now)

    def reconfirm(self, now: float) -> None:
        """The network under the interface may be another one: have the lease confirmed, or a new one, at once.

        The address stays until a server refuses it or it expires (RFC 2131 section 3.7). The question is a REBINDING
        client's, so that a server that never heard of us learns the address from it.
        """
        if self.lease is None:
            self._start(now)
            return
        self.state, self._tries, self._confirming = ClientState.REBINDING, 0, True
        self._xid = self._random.getrandbits(32)
        self._began = now
        self._transmit(now)

    def messages_to_send(self, now: float) -> list[bytes]:
        """What is due."""
        out, self._out = self._out, []
        return out

    def poll_at(self) -> float | None:
        """When `handle_timer` wants to be called; None: never (a lease for ever)."""
        due = min(self._deadline, self._expiry)
        return None if due == inf else due

    def handle_timer(self, now: float) -> None:
        """Retransmit, renew, rebind or give up, as the state has it. Harmless when nothing is due."""
        if now >= self._expiry:
            self._lost("expired", now)
            return
        if now < self._deadline:
            return
        if self.state is ClientState.INIT or (self.state is ClientState.REQUESTING and self._tries >= REQUEST_TRIES):
            self._start(now)
            return
        if self.state is ClientState.BOUND:
            self.state, self._tries = ClientState.RENEWING, 0
            self._xid = self._random.getrandbits(32)
            self._began = now
        elif self.state is ClientState.RENEWING and now >= self._rebind_at:
            self.state, self._tries = ClientState.REBINDING, 0
        self._transmit(now)

    def next_event(self) -> LeaseAcquired | LeaseLost | None:
        """The oldest event nobody has taken."""
        return self._events.popleft() if self._events else None

    # Inside

    def _transmit(self, now: float) -> None:
        self._out.append(dhcp.emit(self._message(now)))
        # The exponent is bounded too: a network without a server is a normal state, for weeks.
        delay = min(MAX_RETRY, FIRST_RETRY * 2 ** min(self._tries, 10))
        if self.state in (ClientState.RENEWING, ClientState.REBINDING) and not self._confirming:
            # RFC 2131 section 4.4.5: half of what is left, at least a minute.
            until = self._rebind_at if self.state is ClientState.RENEWING else self._expiry
            delay = max(60.0, (until - now) / 2)
        self._tries += 1
        jitter = (self._random.getrandbits(10) / 1023 - 0.5) * 0.2
        self._deadline = now + delay * (1 + jitter)
        if self.state is ClientState.RENEWING:
            self._deadline = min(self._deadline, self._rebind_at)

    def _message(self, now: float) -> dhcp.Dhcp:
        selecting = self.state is ClientState.SELECTING
        options = {dhcp.MESSAGE_TYPE: bytes((dhcp.DISCOVER if selecting else dhcp.REQUEST,))}
        ciaddr = ANY
        if self.state is ClientState.REQUESTING and self._offer is not None:
            options[dhcp.REQUESTED_IP], options[dhcp.SERVER_ID] = self._offer
        elif self.lease is not None and not selecting:
            ciaddr = self.lease.ip
        options[dhcp.PARAMETER_LIST] = WANTED
        options[dhcp.MAX_MESSAGE_SIZE] = MAX_MESSAGE.to_bytes(2, "big")
        if self._vendor_class:
            options[dhcp.VENDOR_CLASS] = self._vendor_class
        options[dhcp.CLIENT_ID] = bytes((dhcp.HTYPE_ETHERNET,)) + self._mac
        secs = min(65_535, int(now - self._began))
        return dhcp.Dhcp(dhcp.BOOTREQUEST, 1, 6, self._xid, secs, 0, ciaddr, ANY, ANY, ANY, self._mac, options)

    def _bound(self, message: dhcp.Dhcp, now: float) -> None:
        lease = read_lease(message)
        if lease is None or (self.state is ClientState.REQUESTING and self._offer and self._offer[1] != lease.server):
            return
        self._refusals = 0
        self._confirming = False
        self.state = ClientState.BOUND
        if lease.lease_seconds == FOR_EVER:
            self._deadline = self._rebind_at = self._expiry = inf
        else:
            seconds = float(max(lease.lease_seconds, SHORTEST_LEASE))
            renew = _seconds(message, dhcp.RENEWAL_TIME, seconds / 2)
            rebind = _seconds(message, dhcp.REBINDING_TIME, seconds * 7 / 8)
            if not SHORTEST_LEASE / 2 <= renew <= rebind <= seconds:  # RFC 2131 section 4.4.5: T1 < T2 < lease
                renew, rebind = seconds / 2, seconds * 7 / 8
            self._deadline, self._rebind_at, self._expiry = now + renew, now + rebind, now + seconds
        self.lease = lease
        self._events.append(lease)

    def _refused(self, message: dhcp.Dhcp, now: float) -> None:
        """A NAK: begin again, later each time, so that two who disagree do not talk at the speed of the link."""
        server = message.options.get(dhcp.SERVER_ID)
        if self.state is ClientState.REQUESTING and self._offer is not None and server != self._offer[1]:
            return
        self._end_lease("refused by the server")
        self.state = ClientState.INIT
        self._deadline = now + min(MAX_RETRY, FIRST_RETRY * 2 ** min(self._refusals, 10))
        self._expiry = inf
        self._refusals += 1

    def _lost(self, reason: str, now: float) -> None:
        self._end_lease(reason)
        self._start(now)

    def _end_lease(self, reason: str) -> None:
        if self.lease is not None:
            self.lease = None
            self._events.append(LeaseLost(reason))


def is_unicast(ip: bytes) -> bool:
    """Whether an interface can have that address: not 0/8, loopback, multicast or reserved."""
    return 0 < ip[0] < 224 and ip[0] != 127


def read_lease(message: dhcp.Dhcp) -> LeaseAcquired | None:
    """The lease in an ACK; None where it lacks what cannot be guessed."""
    options = message.options
    mask, server = options.get(dhcp.SUBNET_MASK, b""), options.get(dhcp.SERVER_ID, b"")
    if not is_unicast(message.yiaddr) or len(mask) != 4 or len(server) != 4:
        return None
    bits = f"{int.from_bytes(mask, 'big'):032b}"
    if "01" in bits or bits[0] == "0":
        return None
    router = options.get(dhcp.ROUTER, b"")[:4]
    lease_time = options.get(dhcp.LEASE_TIME, b"")
    addresses = options.get(dhcp.DNS_SERVER, b"")
    mtu = options.get(dhcp.INTERFACE_MTU, b"")
    try:
        search = dhcp.parse_search(options.get(dhcp.DOMAIN_SEARCH, b""))
    except BadPacket:
        search = ()
    return LeaseAcquired(
        message.yiaddr,
        bits.count("1"),
        router if len(router) == 4 and is_unicast(router) else None,
        tuple(addresses[at : at + 4] for at in range(0, len(addresses) // 4 * 4, 4)),
        int.from_bytes(mtu, "big") if len(mtu) == 2 and int.from_bytes(mtu, "big") >= MIN_MTU else None,
        search,
        int.from_bytes(lease_time, "big") if len(lease_time) == 4 else 3600,
        server,
    )


def _seconds(message: dhcp.Dhcp, option: int, default: float) -> float:
    value = message.options.get(option, b"")
    return float(int.from_bytes(value, "big")) if len(value) == 4 else default
