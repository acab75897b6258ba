"""Command line of vm-switch."""

from __future__ import annotations

import pytest

from sulla_trio.cli import vm_switch
from sulla_trio.errors import ConfigError


def vm(*arguments: str):
    return vm_switch.config(vm_switch.flags("vm-switch").parse(arguments))


@pytest.fixture(autouse=True)
def _no_control(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SULLA_CTL_FD", raising=False)


def test_the_argv_of_the_go_network_setup() -> None:
    """daemons.md section 4.3, with an empty -dhcp-script as it is really passed."""
    config = vm(
        "-tap-interface", "eth0", "-subnet", "192.168.127.0/24", "-tap-mac-address", "5a:94:ef:e4:0c:ee",
        "-dhcp-script", "", "-logfile", "/var/log/vm-switch.log", "-debug", "-trace-packets",
    )  # fmt: skip
    assert (config.dhcp_script, config.control, config.subnet) == ("", None, "192.168.127.0/24")
    assert (config.debug, config.trace_packets) == (True, True)


def test_the_control_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SULLA_CTL_FD", "5")
    assert vm().control == 5
    monkeypatch.setenv("SULLA_CTL_FD", "")
    assert vm().control is None
    for text in ("x", "-1", "5 ", "\N{ARABIC-INDIC DIGIT FIVE}", "9" * 30):
        monkeypatch.setenv("SULLA_CTL_FD", text)
        with pytest.raises(ConfigError, match="is not the number of a descriptor"):
            vm()


def test_who_tells_that_it_is_ready() -> None:
    assert vm("-dhcp-script", "/x/y", "-ready-fd", "-1").dhcp_script == "/x/y"
    with pytest.raises(ConfigError, match="let the script tell who waits"):
        vm("-dhcp-script", "/x/y", "--ready-fd", "4")


def test_vm_switch_flags() -> None:
    config = vm()
    assert (config.link, config.tap_interface, config.tap_mac) == ("fd://3", "eth0", bytes.fromhex("5a94efe40cee"))
    assert (config.resolv_conf, config.ready_fd, config.debug, config.trace_packets) == (None, None, False, False)
    config = vm(
        "-tap-interface", "tap1", "-subnet", "x", "-tap-mac-address", "", "-dhcp-script", "", "-logfile", "l",
        "-vsock-fd", "7", "--resolv-conf", "/r", "--ready-fd=0", "-trace-packets", "-logfile-append",
    )  # fmt: skip
    assert (config.link, config.tap_interface, config.tap_mac) == ("fd://7", "tap1", None)
    assert (config.resolv_conf, config.ready_fd, config.trace_packets) == ("/r", 0, True)
    assert vm("--link", "unix:///l").link == "unix:///l"
    for name in ("", "x" * 16, "a/b", "é" * 8):
        with pytest.raises(ConfigError, match="is not an interface name"):
            vm("-tap-interface", name)
    with pytest.raises(ConfigError, match="invalid MAC address: zz"):
        vm("-tap-mac-address", "zz")
