"""Honest ends agree and lose no frame however the stream is cut; a liar between them only ever breaks the link, with a reason.

The input is a train of two-byte steps: what, how much. Machines, stream and liar are all there is.
"""

from __future__ import annotations

from sulla_trio.config import GATEWAY_MAC, GUEST_MAC, network_config
from sulla_trio.errors import BadPacket
from sulla_trio.netstack.counters import Counters
from sulla_trio.netstack.negotiation import (
    GuestNegotiation,
    HostNegotiation,
    LinkAgreed,
    LinkBroken,
    LinkLegacy,
    LinkState,
)
from sulla_trio.wire import control, ethernet, framing, virtio

DICTIONARY = (
    b"\x00\xff\x01\xff",
    b"\x02\x01",
    b"\x03\x01",
    b"\x04\xff",
    b"\x05\x00",
    b"\x06\x00",
    b"\x06\x03",
    b"\x07\x09",
)
NONCE, BOOT = bytes(range(16)), bytes(16)
NETWORK = network_config()
GUEST_REASONS = {"welcome_late", "welcome_repeated", "welcome_version", "welcome_capabilities", "first_packet"}
HOST_REASONS = {
    "switched_late",
    "switched_nonce",
    "switched_repeated",
    "hello_repeated",
    "first_packet",
    "control_unexpected",
    "control_short",
    "control_magic",
    "control_kind",
    "control_version",
    "control_subnet",
    "control_mtu",
}
LIES: tuple[control.Message, ...] = (
    control.Hello(1, NONCE, 0x6F, BOOT),
    control.Hello(1, BOOT, 0x6F, BOOT),
    control.Welcome(1, NONCE, 0x2B, 1, bytes(4), 8, 1500),
    control.Welcome(1, NONCE, 0xFF, 1, bytes(4), 8, 1500),
    control.Welcome(2, NONCE, 0x2B, 1, bytes(4), 8, 1500),
    control.Switched(1, NONCE),
    control.Switched(1, BOOT),
)


class End:
    """A machine, what it has received in part, and the numbers of the frames that reached it."""

    def __init__(self, machine: GuestNegotiation | HostNegotiation, peer: bytes) -> None:
        self.machine, self.header = machine, peer + machine_mac(machine) + b"\x08\x06"
        self.held, self.wire = b"", b""
        self.received: list[bytes] = []
        self.sent: list[bytes] = []
        self.events: list[object] = []

    def put(self, frame: bytes) -> None:
        """Behind what the machine has to say, in the framing it says."""
        for own in self.machine.frames_to_send(0.0):
            self.wire += framing.prefix(len(own)) + own
        if frame and self.machine.sends_extended:
            self.wire += framing.extended_prefix(len(frame) + 10) + virtio.PLAIN_BYTES + frame
        elif frame:
            self.wire += framing.prefix(len(frame)) + frame

    def send(self, number: int) -> None:
        frame = self.header + number.to_bytes(2, "big")
        self.sent.append(frame)
        self.put(frame)

    def feed(self, data: bytes, now: float) -> None:
        self.held += data
        machine = self.machine
        while machine.state is not LinkState.BROKEN:
            view = memoryview(self.held)
            if machine.receives_extended:
                packets: list[memoryview] = []
                try:
                    start, skipped = framing.split_extended(view, 0, len(view), packets)
                except BadPacket:
                    start, skipped = len(view), 1
                for packet in packets:
                    machine.confirm(packet, now)
                    self.take(packet[virtio.HEADER_LENGTH :], now)
                if skipped:
                    machine.confirm(None, now)
                self.held = self.held[start:]
                break
            frame, start = framing.first_frame(view, 0, len(view))
            if frame is not None:
                self.take(frame, now)
            self.held = self.held[start:]
            if frame is None:
                break
        self.put(b"")
        while (event := machine.next_event()) is not None:
            self.events.append(event)

    def take(self, frame: memoryview, now: float) -> None:
        if not self.machine.receive(frame, now):
            self.received.append(bytes(frame))


def machine_mac(machine: GuestNegotiation | HostNegotiation) -> bytes:
    return GUEST_MAC if isinstance(machine, GuestNegotiation) else GATEWAY_MAC


def check(end: End, reasons: set[str]) -> None:
    """A machine says at most one thing of each kind, nothing after it broke, and its state is what it said."""
    kinds = [type(event) for event in end.events]
    assert len(kinds) == len(set(kinds))
    assert not ({LinkAgreed, LinkLegacy} <= set(kinds))
    for event in end.events:
        if isinstance(event, LinkBroken):
            assert event.reason in reasons
            assert end.events[-1] is event
    assert (end.machine.state is LinkState.BROKEN) is (LinkBroken in kinds)
    assert end.machine.receives_extended is (LinkAgreed in kinds)


def fuzz_one(data: bytes) -> None:
    now, number, lied, late = 0.0, 0, False, False
    guest = End(GuestNegotiation(GUEST_MAC, GATEWAY_MAC, 0x6F, BOOT, NONCE, Counters(), now), GATEWAY_MAC)
    host = End(HostNegotiation(NETWORK, virtio.SUPPORTED, 1, Counters()), GUEST_MAC)
    guest.put(b"")
    for at in range(0, len(data) - 1, 2):
        what, amount = data[at], data[at + 1]
        source, target = (guest, host) if what % 2 == 0 else (host, guest)
        match what // 2 % 4:
            case 0:
                piece, source.wire = source.wire[:amount], source.wire[amount:]
                target.feed(piece, now)
            case 1:
                number += 1
                source.send(number)
            case 2:
                lied = True
                frame = ethernet.emit(machine_mac(target.machine), machine_mac(source.machine), control.ETHERTYPE)
                frame += control.emit(LIES[amount % len(LIES)])
                source.put(frame[: -1 if amount & 0x80 else None])
            case _:
                now += amount / 32
                late = late or now >= 10
                for end in (guest, host):
                    end.machine.handle_timer(now)
                    end.feed(b"", now)
    for _ in range(4):
        for source, target in ((guest, host), (host, guest)):
            source.send(number := number + 1)
            piece, source.wire = source.wire, b""
            target.feed(piece, now)
    check(guest, GUEST_REASONS)
    check(host, HOST_REASONS)
    if not lied and not late:
        assert guest.machine.agreed
        assert host.machine.agreed == guest.machine.agreed
        assert guest.machine.settled
        assert host.machine.settled
        assert (guest.held, host.held) == (b"", b"")
        assert host.received == guest.sent
        assert guest.received == host.sent
    for source, target in ((guest, host), (host, guest)):
        if LinkState.BROKEN not in (source.machine.state, target.machine.state) and not lied:
            assert target.received == source.sent
