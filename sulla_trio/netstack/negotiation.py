"""Link negotiation: how the two ends of a link agree on the extended framing, one machine for each (DESIGN section 3).

    guest                                   host
    HELLO (first frame)          ------->
                                 <-------   WELCOME, its last legacy frame; extended from here on
    SWITCHED, its last legacy    ------->
    extended from here on

The stream is ordered, so a direction changes its framing at exactly one byte: behind WELCOME, behind SWITCHED. Until
`settled` the owner splits off one frame at a time (`framing.first_frame`), gives it to `receive`, and looks at
`receives_extended` before it touches what follows. Frames from `frames_to_send` go out in the legacy framing, ahead of all
that is framed after `sends_extended` was read.

A peer that does not answer is a Go peer: legacy for the life of the link. One that lies, repeats itself or comes late breaks its
own link, with a reason, and is held legacy for one reconnect (`LegacyHolds`).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from enum import Enum
from ipaddress import IPv4Network
from typing import Final, NamedTuple, TypeAlias

from sulla_trio.config import NetworkConfig
from sulla_trio.errors import BadPacket
from sulla_trio.netstack.counters import Counters
from sulla_trio.wire import control, ethernet, virtio
from sulla_trio.wire.inet import Buffer

ANSWER_TIMEOUT: Final = 10.0
"""Seconds for either answer. The peer is one process away, but that may be in a VM which has only begun to boot."""
MAX_HELD: Final = 256
"""Peers held legacy: more than a host has VMs. The oldest goes, and costs one more broken link at worst."""


class LinkState(Enum):
    """WAITING for the first frame (host) or for WELCOME (guest); WELCOMED for SWITCHED."""

    WAITING = "WAITING"
    WELCOMED = "WELCOMED"
    LEGACY = "LEGACY"
    EXTENDED = "EXTENDED"
    BROKEN = "BROKEN"


class LinkAgreed(NamedTuple):
    """Both directions are extended, or will be behind what has been queued."""

    version: int
    capabilities: int
    """Offloads either side may use, as `wire.virtio` has them."""
    link_id: int
    subnet: IPv4Network
    mtu: int
    boot_id: bytes


class LinkLegacy(NamedTuple):
    """The framing stays what it is, for the life of the link.

    `reason` is ``no_hello``, ``no_welcome``, ``nothing_in_common`` or ``held``.
    """

    reason: str


class LinkBroken(NamedTuple):
    """The owner must close the link and hold the peer legacy for one reconnect.

    `reason` is ``switched_late``, ``switched_nonce``, ``switched_repeated``, ``hello_repeated``, ``welcome_late``,
    ``welcome_repeated``, ``welcome_version``, ``welcome_capabilities``, ``first_packet``, ``control_unexpected`` or the reason of
    a `BadPacket` (``control_...``).
    """

    reason: str


class SubnetDiffers(NamedTuple):
    """The host's subnet is not the one the guest was told on its command line."""

    ours: IPv4Network
    theirs: IPv4Network


Event: TypeAlias = LinkAgreed | LinkLegacy | LinkBroken | SubnetDiffers


class _Negotiation:
    """What both ends have in common."""

    __slots__ = (
        "_agreed",
        "_capabilities",
        "_confirmed",
        "_counters",
        "_deadline",
        "_events",
        "_out",
        "_sends_extended",
        "receives_extended",
        "state",
    )

    def __init__(self, capabilities: int, counters: Counters, *, legacy: bool) -> None:
        self._capabilities = capabilities
        self._counters = counters
        self._deadline: float | None = None
        self._out: list[bytes] = []
        self._events: deque[Event] = deque()
        self._agreed: LinkAgreed | None = None
        self._sends_extended = False
        self._confirmed = False
        self.receives_extended = False
        """Whether what follows the frame last given to `receive` is in the extended framing."""
        self.state = LinkState.WAITING
        if legacy:
            self._stay_legacy("held")

    @property
    def sends_extended(self) -> bool:
        """Whether what is framed from now on goes out in the extended framing: not before the last legacy frame was taken."""
        return self._sends_extended and not self._out

    @property
    def settled(self) -> bool:
        """Whether neither framing changes any more, so that whole batches may be split. Control frames still go to `receive`."""
        return self.state in (LinkState.LEGACY, LinkState.BROKEN) or self._confirmed

    @property
    def agreed(self) -> LinkAgreed | None:
        """What was agreed on; None until then, and on a legacy link."""
        return self._agreed

    def frames_to_send(self, now: float) -> list[bytes]:
        """What is due, for the legacy framing. The list is the caller's."""
        out, self._out = self._out, []
        return out

    def poll_at(self) -> float | None:
        """When `handle_timer` wants to be called; None: never."""
        return self._deadline

    def next_event(self) -> Event | None:
        """The oldest event nobody has taken."""
        return self._events.popleft() if self._events else None

    def confirm(self, packet: Buffer | None, now: float) -> None:
        """See the first packet in the extended framing (None: the framing itself failed or passed something over).

        One that does not parse was sent by somebody who has not switched. Harmless once settled.
        """
        agreed = self._agreed
        if self.settled or agreed is None:
            return
        try:
            if packet is None:
                raise BadPacket("framing_length")
            virtio.parse(packet, offloads=agreed.capabilities, mtu=agreed.mtu)
        except BadPacket as error:
            self._counters.drop(error.reason)
            self._break("first_packet")
            return
        self._confirmed = True

    def _agree(self, agreed: LinkAgreed) -> None:
        self.state = LinkState.EXTENDED
        self.receives_extended = True
        self._deadline = None
        self._agreed = agreed
        self._events.append(agreed)

    def _stay_legacy(self, reason: str) -> None:
        self.state = LinkState.LEGACY
        self._deadline = None
        self._events.append(LinkLegacy(reason))

    def _break(self, reason: str) -> None:
        self.state = LinkState.BROKEN
        self._deadline = None
        self._out.clear()
        self._events.append(LinkBroken(reason))


class GuestNegotiation(_Negotiation):
    """The guest's end: HELLO is due at once and must be the first frame on the link, before any from the tap.

    `capabilities` are the offloads the tap takes; `nonce` is 16 random bytes that nobody else knows; `subnet` is that of
    the guest's command line, None where it has none.
    """

    __slots__ = ("_boot_id", "_gateway_mac", "_mac", "_nonce", "_subnet")

    def __init__(
        self,
        mac: bytes,
        gateway_mac: bytes,
        capabilities: int,
        boot_id: bytes,
        nonce: bytes,
        counters: Counters,
        now: float,
        *,
        subnet: IPv4Network | None = None,
        legacy: bool = False,
    ) -> None:
        super().__init__(capabilities, counters, legacy=legacy)
        self._mac, self._gateway_mac = mac, gateway_mac
        self._boot_id, self._nonce, self._subnet = boot_id, nonce, subnet
        if not legacy:
            self._deadline = now + ANSWER_TIMEOUT
            self._send(control.Hello(control.VERSION, nonce, capabilities, boot_id))

    def _send(self, message: control.Message) -> None:
        header = ethernet.emit(self._gateway_mac, self._mac, control.ETHERTYPE)
        self._out.append(header + control.emit(message))

    def receive(self, frame: Buffer, now: float) -> bool:
        """Take one frame from the host; True: it was link negotiation and goes no further. Never raises.

        Only the host knows the nonce, so what comes without it may be anybody's on the network, and is only counted.
        """
        if self.state is LinkState.BROKEN:
            return True
        if not control.is_control(frame):
            return False
        try:
            message = control.parse(frame[ethernet.HEADER_LENGTH :])
        except BadPacket as error:
            self._counters.drop(error.reason)
            return True
        if not isinstance(message, control.Welcome):
            self._counters.drop("control_unexpected")
        elif message.nonce != self._nonce:
            self._counters.drop("control_nonce")
        elif self.state is LinkState.EXTENDED:
            self._break("welcome_repeated")
        elif self._deadline is None or now >= self._deadline:
            self._break("welcome_late")  # what follows it is extended, so there is no way back to step
        else:
            self._welcomed(message)
        return True

    def _welcomed(self, welcome: control.Welcome) -> None:
        if welcome.version > control.VERSION:
            self._break("welcome_version")
            return
        if not welcome.capabilities or virtio.agree(self._capabilities, welcome.capabilities) != welcome.capabilities:
            self._break("welcome_capabilities")
            return
        subnet = IPv4Network((welcome.subnet, welcome.prefix))
        self._send(control.Switched(welcome.version, self._nonce))
        self._sends_extended = True
        self._agree(
            LinkAgreed(welcome.version, welcome.capabilities, welcome.link_id, subnet, welcome.mtu, self._boot_id)
        )
        if self._subnet is not None and self._subnet != subnet:
            self._events.append(SubnetDiffers(self._subnet, subnet))

    def handle_timer(self, now: float) -> None:
        """No WELCOME in time: a Go host. Harmless when nothing is due."""
        if self._deadline is not None and now >= self._deadline:
            self._stay_legacy("no_welcome")


class HostNegotiation(_Negotiation):
    """The host's end: a HELLO counts only as the first frame of the link.

    `legacy` is for a peer that is held, or a host that offers nothing.
    """

    __slots__ = ("_link_id", "_network", "_offer")

    def __init__(
        self, network: NetworkConfig, capabilities: int, link_id: int, counters: Counters, *, legacy: bool = False
    ) -> None:
        super().__init__(capabilities, counters, legacy=legacy)
        self._network, self._link_id = network, link_id
        self._offer: tuple[bytes, LinkAgreed] | None = None
        """Nonce of the HELLO, and what holds when the guest has switched."""

    def receive(self, frame: Buffer, now: float) -> bool:
        """Take one frame from the guest; True: it was link negotiation and goes no further. Never raises.

        On a legacy link such a frame may come from behind a Go vm-switch's tap: it is counted and dropped. A guest of
        ours drops those itself, so once it has said HELLO all of them are its own.
        """
        if self.state is LinkState.BROKEN:
            return True
        if not control.is_control(frame):
            if self.state is LinkState.WAITING:
                self._stay_legacy("no_hello")
            return False
        message: control.Message | None = None
        reason = "control_unexpected"
        try:
            message = control.parse(frame[ethernet.HEADER_LENGTH :])
        except BadPacket as error:
            reason = error.reason
        if self.state is LinkState.WAITING:
            self._first(message, frame, reason, now)
        elif self.state is LinkState.LEGACY:
            self._counters.drop(reason)
        elif isinstance(message, control.Switched):
            self._switched(message, now)
        else:
            self._break("hello_repeated" if isinstance(message, control.Hello) else reason)
        return True

    def _first(self, message: control.Message | None, frame: Buffer, reason: str, now: float) -> None:
        """The first frame of the link, and it is a control frame."""
        destination, source = bytes(frame[:6]), bytes(frame[6:12])
        network = self._network
        # From a group or the gateway's own address nothing can be answered.
        unanswerable = source[0] & 1 or source == network.gateway_mac
        if not isinstance(message, control.Hello) or destination != network.gateway_mac or unanswerable:
            self._counters.drop(reason)
            self._stay_legacy("no_hello")
            return
        version = min(message.version, control.VERSION)
        capabilities = virtio.agree(self._capabilities, message.capabilities)
        if not capabilities:
            self._stay_legacy("nothing_in_common")
            return
        subnet = network.subnet
        welcome = control.Welcome(
            version,
            message.nonce,
            capabilities,
            self._link_id,
            subnet.network_address.packed,
            subnet.prefixlen,
            network.mtu,
        )
        header = ethernet.emit(source, network.gateway_mac, control.ETHERTYPE)
        self._out.append(header + control.emit(welcome))
        self._sends_extended = True
        self._offer = (
            message.nonce,
            LinkAgreed(version, capabilities, self._link_id, subnet, network.mtu, message.boot_id),
        )
        self.state = LinkState.WELCOMED
        self._deadline = now + ANSWER_TIMEOUT

    def _switched(self, message: control.Switched, now: float) -> None:
        assert self._offer is not None
        nonce, agreed = self._offer
        if self.state is LinkState.EXTENDED:
            self._break("switched_repeated")
        elif message.nonce != nonce:
            self._break("switched_nonce")
        elif self._deadline is None or now >= self._deadline:
            self._break("switched_late")
        else:
            self._agree(agreed)

    def handle_timer(self, now: float) -> None:
        """No SWITCHED in time: whoever said HELLO does not understand what we send now. Harmless when nothing is due."""
        if self._deadline is not None and now >= self._deadline:
            self._break("switched_late")


class LegacyHolds:
    """Peers whose next link is legacy, by whatever name the owner knows a peer by. Bounded by `MAX_HELD`."""

    __slots__ = ("_peers",)

    def __init__(self) -> None:
        self._peers: OrderedDict[str, None] = OrderedDict()

    def hold(self, peer: str) -> None:
        """The link of `peer` broke in negotiation."""
        self._peers[peer] = None
        self._peers.move_to_end(peer)
        if len(self._peers) > MAX_HELD:
            self._peers.popitem(last=False)

    def release(self, peer: str) -> bool:
        """Whether the link that `peer` opens now is to be legacy; the one after it is not."""
        if peer not in self._peers:
            return False
        del self._peers[peer]
        return True
