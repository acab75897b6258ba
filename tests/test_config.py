"""Pure parsing of what people type."""

from __future__ import annotations

import pytest

from sulla_trio.config import (
    format_ip,
    format_mac,
    network_config,
    parse_ip,
    parse_mac,
    parse_port_forward,
    parse_static_leases,
)
from sulla_trio.errors import ConfigError


def test_default_network() -> None:
    network = network_config()
    assert [format_ip(ip) for ip in (network.gateway_ip, network.guest_ip, network.host_ip)] == [
        "192.168.127.1",
        "192.168.127.2",
        "192.168.127.254",
    ]
    assert format_ip(network.netmask) == "255.255.255.0"
    assert parse_ip("192.168.127.77") in network
    assert parse_ip("192.168.128.1") not in network


def test_the_address_as_given_counts_not_the_prefix() -> None:
    network = network_config("10.1.2.77/16")
    assert format_ip(network.gateway_ip) == "10.1.2.1"
    assert format_ip(network.host_ip) == "10.1.2.254"
    assert parse_ip("10.1.200.3") in network


@pytest.mark.parametrize(
    "subnet",
    ["", "garbage", "192.168.127.0", "192.168.127.0/33", "fd00::/64", "10.0.0.0/30", "10.0.0.0/29", "1.2.3/24"],
)
def test_bad_subnets_are_one_line_that_names_the_value(subnet: str) -> None:
    with pytest.raises(ConfigError) as caught:
        network_config(subnet)
    assert subnet in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mtu", [0, 575, 65_521, -1])
def test_bad_mtu(mtu: int) -> None:
    with pytest.raises(ConfigError, match=str(mtu)):
        network_config(mtu=mtu)


def test_addresses_both_ways() -> None:
    assert format_mac(parse_mac("5A-94-EF-E4-0C-EE")) == "5a:94:ef:e4:0c:ee"
    assert format_ip(b"\x20\x01" + bytes(13) + b"\x01") == "2001::1"
    for text in ("5a:94", "5a:94:ef:e4:0c:zz", ""):
        with pytest.raises(ConfigError, match="invalid MAC"):
            parse_mac(text)
    for text in ("1.2.3", "1.2.3.4.5", "localhost", "::1"):
        with pytest.raises(ConfigError, match="invalid IPv4"):
            parse_ip(text)


def test_port_forward() -> None:
    forward = parse_port_forward("127.0.0.1:8080=192.168.127.2:80")
    assert (forward.local, forward.remote, forward.protocol) == ("127.0.0.1:8080", "192.168.127.2:80", "tcp")
    assert parse_port_forward("udp:127.0.0.1:53=192.168.127.2:53").protocol == "udp"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("127.0.0.1:80", 'input ["127.0.0.1:80"] not in expected format: HostIP:Port=GuestIP:Port'),
        ("a=b=c", 'input ["a=b=c"] not in expected format: HostIP:Port=GuestIP:Port'),
        ("127.0.0.1=1.2.3.4:80", "address 127.0.0.1: missing port in address"),
        ("127.0.0.1:80=1:2:3", "address 1:2:3: too many colons in address"),
        ("127.0.0.1:x=1.2.3.4:80", 'strconv.Atoi: parsing "x": invalid syntax'),
        ("127.0.0.1:0=1.2.3.4:80", "invalid port number provided: 0"),
        ("localhost:80=1.2.3.4:80", "invalid IP address provided: localhost"),
    ],
)
def test_bad_port_forwards_have_the_texts_of_the_peer(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_port_forward(text)
    assert str(caught.value) == message


def test_static_leases() -> None:
    network = network_config()
    guest = "5A-94-EF-E4-0C-EE=192.168.127.9"
    assert parse_static_leases(["02:00:00:00:00:01=192.168.127.253", guest], network) == (
        (b"\2\0\0\0\0\1", bytes((192, 168, 127, 253))),
        (network.guest_mac, bytes((192, 168, 127, 9))),
    )
    assert parse_static_leases([guest, "02:00:00:00:00:01=192.168.127.2"], network)[1][1] == network.guest_ip
    assert parse_static_leases([], network) == ()


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["02:00:00:00:00:01"], "want MAC=IPv4"),
        (["02:00:00:00:00=192.168.127.9"], "invalid MAC address"),
        (["02:00:00:00:00:01=guest"], "invalid IPv4 address"),
        (["01:00:00:00:00:01=192.168.127.9"], "no guest can have this MAC"),
        (["00:00:00:00:00:00=192.168.127.9"], "no guest can have this MAC"),
        (["5a:94:ef:e4:0c:dd=192.168.127.9"], "no guest can have this MAC"),
        (["02:00:00:00:00:01=192.168.127.0"], "no guest can have this address in 192.168.127.0/24"),
        (["02:00:00:00:00:01=192.168.127.1"], "no guest can have this address"),
        (["02:00:00:00:00:01=192.168.127.254"], "no guest can have this address"),
        (["02:00:00:00:00:01=192.168.127.255"], "no guest can have this address"),
        (["02:00:00:00:00:01=10.0.0.1"], "no guest can have this address"),
        (["02:00:00:00:00:01=192.168.127.9", "02:00:00:00:00:02=192.168.127.9"], "already"),
        (["02:00:00:00:00:01=192.168.127.9", "02:00:00:00:00:01=192.168.127.8"], "already"),
        (["02:00:00:00:00:01=192.168.127.2"], "it is 5a:94:ef:e4:0c:ee's"),
    ],
)
def test_bad_static_leases(texts: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_static_leases(texts, network_config())
