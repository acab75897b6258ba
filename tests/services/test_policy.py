"""The never-dialled table, one test per row, and what the configuration adds."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sulla_trio.config import network_config, parse_ip
from sulla_trio.services.policy import LOOPBACK, may_dial

NETWORK = network_config()
ALIAS = NETWORK.host_ip


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("0.0.0.0", "this_network"),
        ("0.255.255.255", "this_network"),
        ("127.0.0.1", "loopback"),
        ("127.255.255.255", "loopback"),
        ("169.254.0.0", "link_local"),
        ("169.254.169.254", "link_local"),
        ("169.254.255.255", "link_local"),
        ("224.0.0.1", "multicast"),
        ("239.255.255.255", "multicast"),
        ("240.0.0.0", "reserved"),
        ("255.255.255.254", "reserved"),
        ("255.255.255.255", "broadcast"),
        ("192.168.127.0", "virtual_subnet"),
        ("192.168.127.1", "virtual_subnet"),
        ("192.168.127.2", "virtual_subnet"),
        ("192.168.127.253", "virtual_subnet"),
        ("192.168.127.255", "virtual_subnet"),
    ],
)
def test_never_dialled(address: str, reason: str) -> None:
    verdict = may_dial(NETWORK, parse_ip(address), 80)
    assert (verdict.allowed, verdict.reason) == (False, reason)


@pytest.mark.parametrize(
    "address", ["1.0.0.0", "126.255.255.255", "128.0.0.0", "169.253.255.255", "169.255.0.0", "192.168.126.255",
                "192.168.128.0", "10.0.0.1", "223.255.255.255"]
)  # fmt: skip
def test_the_neighbours_of_each_row_are_dialled_as_they_are(address: str) -> None:
    assert may_dial(NETWORK, parse_ip(address), 80) == (True, parse_ip(address), "")


@given(st.integers(0, 2**32 - 1))
def test_the_table_agrees_with_the_registry(number: int) -> None:
    address = ipaddress.IPv4Address(number)
    special = (
        address.is_loopback or address.is_link_local or address.is_multicast or address.is_reserved or number < 2**24
    )
    verdict = may_dial(NETWORK, address.packed, 80)
    if address not in NETWORK.subnet:
        assert verdict.allowed == (not special)


def test_the_alias_is_the_hosts_loopback() -> None:
    assert may_dial(NETWORK, ALIAS, 8080) == (True, LOOPBACK, "")


def test_the_alias_can_be_switched_off_or_narrowed() -> None:
    assert may_dial(replace(NETWORK, host_loopback=False), ALIAS, 80).reason == "host_loopback_off"
    some = replace(NETWORK, host_loopback_ports=frozenset({80}))
    assert may_dial(some, ALIAS, 80).allowed
    assert may_dial(some, ALIAS, 81).reason == "host_loopback_port"
    assert not may_dial(replace(NETWORK, host_loopback_ports=frozenset()), ALIAS, 80).allowed


@pytest.mark.parametrize("denied", ["10.0.0.0/8", "10.1.2.3/32"])
def test_deny_out(denied: str) -> None:
    network = replace(NETWORK, deny_out=(ipaddress.IPv4Network(denied),))
    assert may_dial(network, parse_ip("10.1.2.3"), 80).reason == "deny_out"
    assert may_dial(network, parse_ip("11.1.2.3"), 80).allowed


@pytest.mark.parametrize("denied", ["127.0.0.1/32", "192.168.127.254/32"])
def test_deny_out_closes_the_alias_by_either_address(denied: str) -> None:
    assert may_dial(replace(NETWORK, deny_out=(ipaddress.IPv4Network(denied),)), ALIAS, 80).reason == "deny_out"


@pytest.mark.parametrize("listener", ["127.0.0.1", "0.0.0.0", "::"])
def test_our_own_api_is_not_reached_through_the_alias(listener: str) -> None:
    own = {(listener, 7777)}
    assert may_dial(NETWORK, ALIAS, 7777, own).reason == "own_listener"
    assert may_dial(NETWORK, ALIAS, 7778, own).allowed


def test_our_own_api_on_another_address_of_the_host() -> None:
    own = {("10.0.0.5", 7777)}
    assert may_dial(NETWORK, parse_ip("10.0.0.5"), 7777, own).reason == "own_listener"
    assert may_dial(NETWORK, parse_ip("10.0.0.6"), 7777, own).allowed


def test_ipv6_is_not_dialled() -> None:
    assert may_dial(NETWORK, bytes(15) + b"\1", 80).reason == "address_family"
