"""Link negotiation: both machines at the two ends of a stream of bytes, and each of them against a peer that lies."""

from __future__ import annotations

from ipaddress import IPv4Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sulla_trio.config import GATEWAY_MAC, GUEST_MAC, network_config
from sulla_trio.errors import BadPacket
from sulla_trio.netstack.counters import Counters
from sulla_trio.netstack.negotiation import (
    ANSWER_TIMEOUT,
    MAX_HELD,
    GuestNegotiation,
    HostNegotiation,
    LegacyHolds,
    LinkAgreed,
    LinkBroken,
    LinkLegacy,
    LinkState,
    SubnetDiffers,
)
from sulla_trio.wire import control, ethernet, framing, virtio

NONCE, OTHER, BOOT = bytes(range(16)), bytes(16), b"\x0f" * 16
NETWORK = network_config()
SUBNET = IPv4Network("192.168.127.0/24")
AGREED = LinkAgreed(1, virtio.SUPPORTED, 7, SUBNET, 1500, BOOT)


def guest(capabilities: int = 0x6F, **options: object) -> GuestNegotiation:
    return GuestNegotiation(GUEST_MAC, GATEWAY_MAC, capabilities, BOOT, NONCE, Counters(), 0.0, **options)  # type: ignore[arg-type]


def host(capabilities: int = virtio.SUPPORTED, *, legacy: bool = False) -> HostNegotiation:
    return HostNegotiation(NETWORK, capabilities, 7, Counters(), legacy=legacy)


def drops(machine: GuestNegotiation | HostNegotiation) -> dict[str, int]:
    return machine._counters.drops


def events(machine: GuestNegotiation | HostNegotiation) -> list[object]:
    found: list[object] = []
    while (event := machine.next_event()) is not None:
        found.append(event)
    return found


def from_guest(message: control.Message, destination: bytes = GATEWAY_MAC, source: bytes = GUEST_MAC) -> bytes:
    return ethernet.emit(destination, source, control.ETHERTYPE) + control.emit(message)


def from_host(message: control.Message) -> bytes:
    return from_guest(message, GUEST_MAC, GATEWAY_MAC)


HELLO = control.Hello(1, NONCE, 0x6F, BOOT)
WELCOME = control.Welcome(1, NONCE, virtio.SUPPORTED, 7, SUBNET.network_address.packed, 24, 1500)
SWITCHED = control.Switched(1, NONCE)
DATA = GATEWAY_MAC + GUEST_MAC + b"\x08\x06" + bytes(28)
BAD = from_guest(HELLO)[:-1]


class End:
    """One end of a link as its owner drives it: bytes in, frames out, the framing whatever the machine says."""

    def __init__(self, machine: GuestNegotiation | HostNegotiation) -> None:
        self.machine = machine
        self.held = b""
        self.frames: list[bytes] = []
        self.framings: list[str] = []

    def flush(self, *frames: bytes) -> bytes:
        """What goes onto the wire: the machine's own frames, then `frames`."""
        out = b"".join(framing.prefix(len(frame)) + frame for frame in self.machine.frames_to_send(0.0))
        for frame in frames:
            if self.machine.sends_extended:
                packet = virtio.PLAIN_BYTES + frame
                out += framing.extended_prefix(len(packet)) + packet
            else:
                out += framing.prefix(len(frame)) + frame
        return out

    def feed(self, data: bytes, now: float = 0.0) -> None:
        self.held += data
        while self.machine.state is not LinkState.BROKEN:
            view = memoryview(self.held)
            if self.machine.receives_extended:
                packets: list[memoryview] = []
                try:
                    start, _ = framing.split_extended(view, 0, len(view), packets)
                except BadPacket:
                    self.machine.confirm(None, now)
                    return
                for packet in packets:
                    self.machine.confirm(packet, now)
                    self._take(packet[virtio.HEADER_LENGTH :], "extended", now)
                self.held = self.held[start:]
                return
            frame, start = framing.first_frame(view, 0, len(view))
            if frame is not None:
                self._take(frame, "legacy", now)
            self.held = self.held[start:]
            if frame is None:
                return

    def _take(self, frame: memoryview, name: str, now: float) -> None:
        if not self.machine.receive(frame, now):
            self.frames.append(bytes(frame))
            self.framings.append(name)


def numbered(number: int) -> bytes:
    return DATA[:-1] + bytes((number,))


# Both at their best


def test_the_whole_exchange() -> None:
    ours, theirs = guest(subnet=SUBNET), host()
    assert (ours.poll_at(), theirs.poll_at()) == (ANSWER_TIMEOUT, None)
    (hello,) = ours.frames_to_send(0.0)
    assert hello == from_guest(HELLO)
    assert theirs.receive(hello, 1.0)
    assert not theirs.sends_extended  # WELCOME itself is legacy
    assert (theirs.state, theirs.poll_at(), events(theirs)) == (LinkState.WELCOMED, 1.0 + ANSWER_TIMEOUT, [])
    assert theirs.frames_to_send(1.0) == [from_host(WELCOME)]
    assert theirs.sends_extended
    assert not theirs.receives_extended
    assert ours.receive(from_host(WELCOME), 2.0)
    assert ours.receives_extended
    assert not ours.sends_extended
    assert ours.frames_to_send(2.0) == [from_guest(SWITCHED)]
    assert ours.sends_extended
    assert theirs.receive(from_guest(SWITCHED), 2.0)
    assert theirs.receives_extended
    for machine in (ours, theirs):
        assert machine.state is LinkState.EXTENDED
        assert machine.poll_at() is None
        assert machine.agreed == AGREED
        assert events(machine) == [AGREED]
        assert not machine.settled
        machine.confirm(virtio.PLAIN_BYTES + DATA, 3.0)
        assert machine.settled
        assert drops(machine) == {}


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 10_000])
def test_the_framing_changes_at_one_byte(chunk: int) -> None:
    """Frames of both sides around each step arrive whole and in order, whatever the pieces the stream comes in."""
    ours, theirs = End(guest()), End(host())
    up = ours.flush(numbered(0), numbered(1))
    down, sent = theirs.flush(numbered(0)), 1
    for _ in range(200):
        if not up and not down:
            break
        piece, up = up[:chunk], up[chunk:]
        theirs.feed(piece)
        # Each end has a frame of its own to send at every turn until it has sent twenty.
        down += theirs.flush(*([numbered(sent)] if sent < 20 else []))
        piece, down = down[:chunk], down[chunk:]
        ours.feed(piece)
        sent += 1
        up += ours.flush(*([numbered(sent)] if sent < 20 else []))
    theirs.feed(up)
    ours.feed(down)
    up, down = ours.flush(numbered(98)), theirs.flush(numbered(99))
    theirs.feed(up)
    ours.feed(down)
    for end in (ours, theirs):
        assert end.machine.state is LinkState.EXTENDED
        assert [frame[-1] for frame in end.frames] == sorted(frame[-1] for frame in end.frames)
        assert end.framings == sorted(end.framings, reverse=True)  # legacy, then extended, never back
        assert end.framings[-1] == "extended"
        assert end.held == b""


def test_offloads_are_those_of_both() -> None:
    theirs = host(virtio.OFFLOAD_CSUM | virtio.OFFLOAD_TSO4)
    theirs.receive(from_guest(HELLO), 0.0)
    (welcome,) = theirs.frames_to_send(0.0)
    assert control.parse(welcome[14:]) == WELCOME._replace(capabilities=3)


def test_a_later_version_of_the_guest() -> None:
    theirs = host()
    theirs.receive(from_guest(HELLO._replace(version=9)) + b"more", 0.0)
    (welcome,) = theirs.frames_to_send(0.0)
    assert control.parse(welcome[14:]).version == 1


def test_another_subnet_is_a_value() -> None:
    ours = guest(subnet=IPv4Network("10.1.2.0/24"))
    ours.receive(from_host(WELCOME), 0.0)
    assert events(ours) == [AGREED, SubnetDiffers(IPv4Network("10.1.2.0/24"), SUBNET)]


# A peer that knows nothing of it


def test_a_go_host_does_not_answer() -> None:
    ours = guest()
    ours.frames_to_send(0.0)
    assert not ours.receive(DATA, 9.0)
    ours.handle_timer(9.9)
    assert ours.state is LinkState.WAITING
    ours.handle_timer(ANSWER_TIMEOUT)
    assert events(ours) == [LinkLegacy("no_welcome")]
    assert (ours.settled, ours.sends_extended, ours.receives_extended) == (True, False, False)
    assert (ours.poll_at(), ours.frames_to_send(11.0), ours.agreed) == (None, [], None)


def test_a_go_guest_does_not_say_hello() -> None:
    theirs = host()
    assert not theirs.receive(DATA, 0.0)
    assert events(theirs) == [LinkLegacy("no_hello")]
    assert theirs.settled
    assert theirs.receive(from_guest(HELLO), 0.0)  # from a process behind its tap
    assert theirs.frames_to_send(0.0) == []
    assert drops(theirs) == {"control_unexpected": 1}


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (from_guest(HELLO, b"\xff" * 6), "control_unexpected"),
        (from_guest(HELLO, source=b"\xff" * 6), "control_unexpected"),
        (from_guest(HELLO, source=GATEWAY_MAC), "control_unexpected"),
        (from_guest(SWITCHED), "control_unexpected"),
        (from_guest(WELCOME), "control_unexpected"),
        (BAD, "control_short"),
        (GATEWAY_MAC + GUEST_MAC + b"\x88\xb5", "control_short"),
    ],
)
def test_a_first_frame_that_is_no_hello(first: bytes, reason: str) -> None:
    theirs = host()
    assert theirs.receive(first, 0.0)
    assert events(theirs) == [LinkLegacy("no_hello")]
    assert drops(theirs) == {reason: 1}
    assert theirs.frames_to_send(0.0) == []


def test_nothing_in_common() -> None:
    theirs = host()
    assert theirs.receive(from_guest(HELLO._replace(capabilities=0x02)), 0.0)  # TSO without checksums
    assert events(theirs) == [LinkLegacy("nothing_in_common")]
    assert theirs.frames_to_send(0.0) == []


def test_held_legacy() -> None:
    ours, theirs = guest(legacy=True), host(legacy=True)
    for machine in (ours, theirs):
        assert events(machine) == [LinkLegacy("held")]
        assert machine.settled
        assert machine.poll_at() is None
        assert machine.frames_to_send(0.0) == []
    assert theirs.receive(from_guest(HELLO), 0.0)
    assert theirs.frames_to_send(0.0) == []


# A guest that lies


def welcomed() -> HostNegotiation:
    theirs = host()
    theirs.receive(from_guest(HELLO), 0.0)
    theirs.frames_to_send(0.0)
    return theirs


def switched() -> HostNegotiation:
    theirs = welcomed()
    theirs.receive(from_guest(SWITCHED), 0.0)
    events(theirs)
    return theirs


def assert_broken(machine: GuestNegotiation | HostNegotiation, reason: str) -> None:
    assert events(machine)[-1] == LinkBroken(reason)
    assert machine.state is LinkState.BROKEN
    assert (machine.settled, machine.poll_at(), machine.frames_to_send(99.0)) == (True, None, [])
    assert machine.receive(DATA, 99.0)  # nothing passes any more
    machine.handle_timer(999.0)
    machine.confirm(None, 999.0)
    assert events(machine) == []


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (from_guest(HELLO), "hello_repeated"),
        (from_guest(HELLO._replace(nonce=OTHER)), "hello_repeated"),
        (from_guest(SWITCHED._replace(nonce=OTHER)), "switched_nonce"),
        (from_guest(WELCOME), "control_unexpected"),
        (BAD, "control_short"),
    ],
)
def test_a_guest_that_answers_otherwise(frame: bytes, reason: str) -> None:
    theirs = welcomed()
    assert not theirs.receive(DATA, 1.0)  # what was on its way
    assert theirs.receive(frame, 2.0)
    assert_broken(theirs, reason)


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (from_guest(SWITCHED), "switched_repeated"),
        (from_guest(HELLO), "hello_repeated"),
        (from_guest(WELCOME), "control_unexpected"),
        (BAD, "control_short"),
    ],
)
def test_a_guest_that_repeats_itself(frame: bytes, reason: str) -> None:
    theirs = switched()
    assert theirs.receive(frame, 2.0)
    assert_broken(theirs, reason)


def test_a_guest_that_never_switches() -> None:
    """A process behind a Go vm-switch's tap said HELLO."""
    theirs = welcomed()
    theirs.handle_timer(ANSWER_TIMEOUT - 0.1)
    assert theirs.state is LinkState.WELCOMED
    theirs.handle_timer(ANSWER_TIMEOUT)
    assert_broken(theirs, "switched_late")


def test_a_guest_that_switches_late() -> None:
    """Even if the timer's turn comes after the frame's."""
    theirs = welcomed()
    theirs.receive(from_guest(SWITCHED), ANSWER_TIMEOUT)
    assert_broken(theirs, "switched_late")


@pytest.mark.parametrize(
    "packet",
    [
        None,
        b"",
        virtio.PLAIN_BYTES,
        b"\x01\x01\x00\x00\xff\xff\x22\x00\x10\x00" + DATA,
        b"\x01\x00\x00\x00\x00\x00\xff\xff\x10\x00" + DATA,
    ],
)
def test_a_first_packet_that_does_not_parse(packet: bytes | None) -> None:
    theirs = switched()
    theirs.confirm(packet, 1.0)
    assert_broken(theirs, "first_packet")


def test_a_later_packet_is_not_the_negotiations_business() -> None:
    theirs = switched()
    theirs.confirm(virtio.PLAIN_BYTES + DATA, 1.0)
    theirs.confirm(None, 1.0)
    assert theirs.state is LinkState.EXTENDED


def test_a_guest_that_says_switched_and_goes_on_as_before() -> None:
    theirs = End(host())
    legacy = framing.prefix(len(DATA)) + DATA
    hello, switched = (framing.prefix(len(each)) + each for each in (from_guest(HELLO), from_guest(SWITCHED)))
    theirs.feed(hello + legacy + switched + legacy)
    assert theirs.frames == [DATA]
    assert_broken(theirs.machine, "first_packet")


# A host that lies


@pytest.mark.parametrize(
    ("welcome", "reason"),
    [
        (WELCOME._replace(version=2), "welcome_version"),
        (WELCOME._replace(capabilities=0), "welcome_capabilities"),
        (WELCOME._replace(capabilities=0x10 | virtio.SUPPORTED), "welcome_capabilities"),  # UFO was not offered
        (WELCOME._replace(capabilities=0x02), "welcome_capabilities"),
    ],
)
def test_a_host_that_chooses_what_was_not_offered(welcome: control.Welcome, reason: str) -> None:
    ours = guest()
    assert ours.receive(from_host(welcome), 1.0)
    assert_broken(ours, reason)
    assert not ours.receives_extended


def test_a_host_that_welcomes_twice() -> None:
    ours = guest()
    ours.receive(from_host(WELCOME), 1.0)
    assert ours.receive(from_host(WELCOME), 1.0)
    assert_broken(ours, "welcome_repeated")


@pytest.mark.parametrize("timer_first", [True, False])
def test_a_host_that_welcomes_late(timer_first: bool) -> None:
    ours = guest()
    if timer_first:
        ours.handle_timer(ANSWER_TIMEOUT)
    ours.receive(from_host(WELCOME), ANSWER_TIMEOUT)
    assert_broken(ours, "welcome_late")


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (from_host(WELCOME._replace(nonce=OTHER)), "control_nonce"),
        (from_host(HELLO), "control_unexpected"),
        (from_host(SWITCHED), "control_unexpected"),
        (BAD, "control_short"),
    ],
)
def test_a_forger_on_the_network_changes_nothing(frame: bytes, reason: str) -> None:
    """Before, during and after: who does not know the nonce cannot break the link of another."""
    ours = guest()
    assert ours.receive(frame, 0.0)
    assert ours.receive(from_host(WELCOME), 1.0)
    assert ours.receive(frame, 2.0)
    assert ours.state is LinkState.EXTENDED
    assert drops(ours) == {reason: 2}
    legacy = guest(legacy=True)
    assert legacy.receive(frame, 0.0)
    assert drops(legacy) == {reason: 1}
    assert legacy.state is LinkState.LEGACY


# Peers that are held


def test_a_hold_lasts_for_one_link() -> None:
    holds = LegacyHolds()
    assert not holds.release("vm")
    holds.hold("vm")
    holds.hold("vm")
    assert not holds.release("another")
    assert [holds.release("vm"), holds.release("vm")] == [True, False]


def test_holds_are_bounded() -> None:
    holds = LegacyHolds()
    for number in range(MAX_HELD):
        holds.hold(str(number))
    holds.hold("0")  # again: now the newest
    holds.hold("one more")
    assert not holds.release("1")
    assert all(holds.release(name) for name in ("0", "2", "one more", str(MAX_HELD - 1)))


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 90)), max_size=60))
def test_any_pieces_end_in_the_same_place(turns: list[tuple[bool, int]]) -> None:
    ours, theirs = End(guest()), End(host())
    up, down = ours.flush(numbered(1)), b""
    for upwards, count in [*turns, *[(True, 999), (False, 999)] * 3]:
        if upwards:
            theirs.feed(up[:count])
            up = up[count:]
            down += theirs.flush(numbered(2))
        else:
            ours.feed(down[:count])
            down = down[count:]
            up += ours.flush(numbered(3))
    theirs.feed(up)
    ours.feed(down)
    assert ours.machine.agreed == theirs.machine.agreed == AGREED
    assert {ours.machine.state, theirs.machine.state} == {LinkState.EXTENDED}
    assert (ours.held, theirs.held) == (b"", b"")
    assert set(ours.frames) <= {numbered(2)}
    assert theirs.frames[0] == numbered(1)
