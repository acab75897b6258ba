"""Command line of vm-switch."""

from __future__ import annotations

import pytest

from sulla_trio.cli import vm_switch
from sulla_trio.errors import ConfigError


def vm(*arguments: str):
    return vm_switch.config(vm_switch.flags("vm-switch").parse(arguments))


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
