"""Command line of host-switch: flags to a configuration, and what is refused."""

from __future__ import annotations

import re

import pytest

from sulla_trio.cli import host_switch
from sulla_trio.config import PortForward
from sulla_trio.errors import ConfigError
from sulla_trio.wire.handshake import DIALECTS


def host(*arguments: str):
    return host_switch.config(host_switch.flags("host-switch").parse(arguments))


def test_host_switch_defaults() -> None:
    config = host()
    assert str(config.network.subnet) == "192.168.127.0/24"
    assert (config.network.mtu, config.network.host_loopback, config.network.host_loopback_ports) == (1500, True, None)
    assert (config.forwards, config.data, config.debug, config.strict) == ((), "", False, False)
    assert config.state == ""
    assert config.network.udp_filter == "address-and-port-dependent"
    assert config.listen[0].startswith("unix:///")
    assert config.listen[0].endswith("/sulla/host-switch.sock")


def test_host_switch_flags() -> None:
    config = host(
        "-debug", "--subnet", "10.1.2.77/16", "--mtu=65000", "--listen", "none", "--data", "fd://5", "--strict",
        "--state", "s.json", "--static-lease", "02:00:00:00:00:01=10.1.2.9",
        "-port-forward", "127.0.0.1:1=10.1.2.2:1", "-port-forward", "udp:127.0.0.1:1=10.1.2.2:1",
        "-port-forward=127.0.0.1:1=10.1.2.2:2",
        "--no-host-loopback", "--host-loopback-ports", "80,8000-8002", "--deny-out", "10.0.0.0/8", "--deny-out=1.1.1.1",
        "--udp-filter", "endpoint-independent",
    )  # fmt: skip
    assert config.network.gateway_ip == bytes([10, 1, 2, 1])
    assert (config.network.mtu, config.data, config.debug, config.strict) == (65000, "fd://5", True, True)
    assert config.state == "s.json"
    assert config.network.static_leases == ((b"\2\0\0\0\0\1", bytes([10, 1, 2, 9])),)
    assert config.listen == ()
    assert config.forwards == (
        PortForward("127.0.0.1:1", "10.1.2.2:2"),  # the last of the same local address
        PortForward("127.0.0.1:1", "10.1.2.2:1", "udp"),
    )
    assert config.network.host_loopback is False
    assert config.network.host_loopback_ports == {80, 8000, 8001, 8002}
    assert [str(network) for network in config.network.deny_out] == ["10.0.0.0/8", "1.1.1.1/32"]
    assert config.network.udp_filter == "endpoint-independent"
    assert host("--listen", "unix:///a", "--listen=tcp://h:1").listen == ("unix:///a", "tcp://h:1")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["-subnet", "garbage"], "validating subnet: invalid CIDR address: garbage"),
        (["-subnet", "fd00::/64"], "validating subnet: fd00::/64 is IPv6"),
        (["-subnet", "10.0.0.0/30"], "validating subnet: 10.0.0.0/30 is too small"),
        (["--mtu", "70000"], "mtu 70000 is out of range"),
        (["-port-forward", "80=90"], "address 80: missing port in address"),
        (["-port-forward", "x"], 'input ["x"] not in expected format: HostIP:Port=GuestIP:Port'),
        (["--static-lease", "x"], "static lease x: want MAC=IPv4"),
        (["--deny-out", "x"], "--deny-out x: want an IPv4 network"),
        (["--deny-out", "::/0"], "--deny-out ::/0: want an IPv4 network"),
        (["--udp-filter", "open"], "--udp-filter open: want address-and-port-dependent or endpoint-independent"),
        (["--host-loopback-ports", "80,x"], "--host-loopback-ports 80,x: 'x' is not a port"),
        (["--host-loopback-ports", "0"], "--host-loopback-ports 0: '0' is not a port"),
        (["--host-loopback-ports", "1-70000"], "--host-loopback-ports 1-70000: '1-70000' is not a port"),
        (["--host-loopback-ports", "9" * 5000], "is not a port"),
        (["--dialect", "rd9"], "--dialect rd9: want one of rd1, old, rd2"),
        (["--signature", "x" * 2000], "--signature of 2000 bytes: at most 1024"),
        (["-vsock-handshake-port", "-1"], "-vsock-handshake-port -1: want a vsock port"),
        (["--vm", "unix:///a"], "--vm unix:///a needs --data URL"),
        (["--vm", "none", "--vm", "vsock://3"], "--vm none and --vm URL contradict each other"),
        (["--vm", "vsock://3", "--data", "fd://5"], "--data fd://5 is a connection that is there already"),
        (["--vm", "vsock://ANY"], "is no VM that can be probed"),
        (["--listen", "none", "--listen", "unix:///a"], "--listen none and --listen URL contradict each other"),
    ],
)
def test_host_switch_refuses(arguments: list[str], text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(text)):
        host(*arguments)


def test_the_handshake_is_the_default() -> None:
    config = host()
    assert config.data == ""
    assert config.handshake is not None
    assert config.handshake.dialect is DIALECTS["rd1"]
    assert config.handshake.data is None


def test_named_vms_dialects_and_ports() -> None:
    config = host(
        "--vm", "vsock://3", "--vm", "vsock+unix:///run/fc.sock", "--dialect", "rd2", "-vsock-listen-port", "7"
    )
    handshake = config.handshake
    assert handshake is not None
    assert [url.port for url in handshake.candidates.find()] == [6670, 6670]
    assert (handshake.dialect.handshake_port, handshake.dialect.data_port) == (6670, 7)
    assert len(handshake.dialect.signature) == 69
    handshake = host("--vm", "unix:///a", "--data", "unix:///b", "--signature", "ours").handshake
    assert handshake is not None
    assert handshake.data is not None
    assert (handshake.dialect.signature, handshake.data.host) == (b"ours", "/b")


@pytest.mark.parametrize(
    ("arguments", "data"),
    [
        (("--data", "fd://5"), "fd://5"),
        (("--vm", "none", "--data", "unix:///x"), "unix:///x"),
        (("--vm", "none"), "vsock://ANY:6656"),
        (("--vm", "none", "--dialect", "rd2"), "vsock://ANY:6657"),
    ],
)
def test_without_a_handshake(arguments: tuple[str, ...], data: str) -> None:
    assert (host(*arguments).data, host(*arguments).handshake) == (data, None)
