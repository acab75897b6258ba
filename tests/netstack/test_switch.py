"""The learning switch, rule by rule (specs/gvproxy.md section 4.2 and where ours is stricter)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sulla_trio.config import BROADCAST_MAC, GATEWAY_MAC
from sulla_trio.netstack.counters import Counters
from sulla_trio.netstack.switch import MAX_MOVES, Switch

A, B, C = (bytes((2, 0, 0, 0, 0, last)) for last in (1, 2, 3))
GROUP = bytes.fromhex("01005e0000fb")


def frame(destination: bytes, source: bytes, ethertype: int = 0x0800) -> memoryview:
    return memoryview(destination + source + ethertype.to_bytes(2, "big") + b"payload")


@pytest.fixture
def switch() -> Switch:
    """Three ports; A was seen on 0 and B on 1."""
    switch = Switch(GATEWAY_MAC, Counters())
    assert [switch.add_port() for _ in range(3)] == [0, 1, 2]
    switch.ingress(0, frame(GATEWAY_MAC, A))
    switch.ingress(1, frame(GATEWAY_MAC, B))
    return switch


def drops(switch: Switch) -> dict[str, int]:
    return switch._counters.drops


def test_to_the_gateway_only(switch: Switch) -> None:
    assert switch.ingress(0, frame(GATEWAY_MAC, A)) == (True, ())
    assert drops(switch) == {}


def test_broadcast_goes_to_the_gateway_and_all_other_ports(switch: Switch) -> None:
    assert switch.ingress(1, frame(BROADCAST_MAC, B)) == (True, (0, 2))


def test_known_unicast_goes_to_its_port(switch: Switch) -> None:
    assert switch.ingress(0, frame(B, A)) == (False, (1,))


@pytest.mark.parametrize(
    ("destination", "reason"), [(C, "switch_unknown"), (A, "switch_unknown"), (GROUP, "switch_multicast")]
)
def test_unknown_own_port_and_multicast_go_nowhere(switch: Switch, destination: bytes, reason: str) -> None:
    assert switch.ingress(0, frame(destination, A)) == (False, ())
    assert drops(switch) == {reason: 1}


@pytest.mark.parametrize(
    ("source", "reason"),
    [(GATEWAY_MAC, "switch_spoofed_gateway"), (GROUP, "switch_group_source"), (BROADCAST_MAC, "switch_group_source")],
)
def test_sources_no_guest_may_have(switch: Switch, source: bytes, reason: str) -> None:
    before = switch.cam()
    assert switch.ingress(0, frame(B, source)) == (False, ())
    assert drops(switch) == {reason: 1}
    assert switch.cam() == before


@pytest.mark.parametrize("destination", [B, BROADCAST_MAC, GROUP])
def test_link_negotiation_is_never_switched(switch: Switch, destination: bytes) -> None:
    assert switch.ingress(0, frame(destination, A, 0x88B5)) == (False, ())
    assert drops(switch) == {"switch_control": 1}


def test_a_mac_moves_with_its_frames(switch: Switch) -> None:
    switch.ingress(2, frame(GATEWAY_MAC, A))
    assert switch.cam() == {A: 2, B: 1}
    assert switch.egress(A) == (2,)


def test_a_mac_that_moves_back_is_two_guests_and_told_once(switch: Switch) -> None:
    switch.ingress(2, frame(GATEWAY_MAC, A))
    assert switch.duplicates == []  # perhaps a guest whose old link has not ended yet
    for port in (0, 2, 0, 2):
        switch.ingress(port, frame(GATEWAY_MAC, A))
    assert switch.duplicates == [(A, 0, 2)]
    switch.duplicates.clear()
    switch.remove_port(2)
    other = switch.add_port()
    for port in (0, other, 0):
        switch.ingress(port, frame(GATEWAY_MAC, A))
    assert switch.duplicates == [(A, 0, other)]


def test_a_mac_that_comes_again_after_its_port_ended_is_no_duplicate(switch: Switch) -> None:
    for _ in range(3):
        port = switch.add_port()
        switch.ingress(port, frame(GATEWAY_MAC, A))
        switch.remove_port(port)
        switch.ingress(0, frame(GATEWAY_MAC, A))
    assert switch.duplicates == []


def test_forged_moves_are_bounded(switch: Switch) -> None:
    macs = [b"\2\1\0\0" + number.to_bytes(2, "big") for number in range(MAX_MOVES + 10)]
    for port in (0, 1, 0):
        for mac in macs:
            switch.ingress(port, frame(GATEWAY_MAC, mac))
    assert [mac for mac, *_ in switch.duplicates] == macs[:MAX_MOVES]


def test_egress(switch: Switch) -> None:
    assert switch.egress(A) == (0,)
    assert switch.egress(C) == ()
    assert switch.egress(BROADCAST_MAC) == (0, 1, 2)


def test_a_removed_port_is_forgotten_and_its_id_not_used_again(switch: Switch) -> None:
    switch.remove_port(1)
    assert switch.cam() == {A: 0}
    assert switch.egress(BROADCAST_MAC) == (0, 2)
    assert switch.ingress(0, frame(B, A)) == (False, ())
    assert switch.add_port() == 3


def test_a_late_frame_of_a_removed_port_teaches_nothing(switch: Switch) -> None:
    switch.remove_port(1)
    assert switch.ingress(1, frame(GATEWAY_MAC, B)) == (False, ())
    assert switch.cam() == {A: 0}
    assert drops(switch) == {"switch_port_gone": 1}


def test_the_cam_is_bounded_and_the_oldest_goes() -> None:
    switch = Switch(GATEWAY_MAC, Counters(), cam_limit=2)
    port, other = switch.add_port(), switch.add_port()
    for mac in (A, B):
        switch.ingress(port, frame(GATEWAY_MAC, mac))
    switch.ingress(other, frame(GATEWAY_MAC, A))  # moving makes it the newest
    switch.ingress(port, frame(GATEWAY_MAC, C))
    assert switch.cam() == {A: other, C: port}
    assert drops(switch) == {"switch_cam_full": 1}


MACS = st.sampled_from([A, B, C, GATEWAY_MAC, BROADCAST_MAC, GROUP])


@given(st.lists(st.tuples(st.integers(0, 3), MACS, MACS)))
def test_never_back_to_the_ingress_port(frames: list[tuple[int, bytes, bytes]]) -> None:
    switch = Switch(GATEWAY_MAC, Counters(), cam_limit=2)
    ports = [switch.add_port() for _ in range(4)]
    for port, destination, source in frames:
        _, others = switch.ingress(port, frame(destination, source))
        assert port not in others
        assert set(others) <= set(ports)
        assert len(others) == len(set(others))
        assert len(switch.cam()) <= 2
