"""Command line of vm-switch. Source: specs/daemons.md section 3.4; flags with two dashes are ours."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from sulla_trio.cli.goflags import FlagSet
from sulla_trio.config import DEFAULT_SUBNET, GUEST_MAC, TAP_NAME, format_mac, parse_mac
from sulla_trio.errors import ConfigError
from sulla_trio.link.control import CONTROL_VARIABLE

if TYPE_CHECKING:
    from sulla_trio.daemons.vm_switch import VmSwitchConfig


def flags(program: str) -> FlagSet:
    """The flags of vm-switch."""
    declared = FlagSet(program)
    declared.add_bool("debug", "log at DEBUG")
    declared.add_bool("trace-packets", "log every packet at INFO; SIGUSR1 toggles it")
    declared.add_string("tap-interface", "name of the tap", default=TAP_NAME)
    declared.add_int("vsock-fd", "inherited descriptor of the data connection", default=3)
    declared.add_string("dhcp-script", "get the lease by udhcpc with this script, not by the built-in client")
    declared.add_string("tap-mac-address", "MAC of the tap; empty leaves the kernel's", default=format_mac(GUEST_MAC))
    declared.add_string("subnet", "expected subnet; a lease elsewhere is warned of, and used", default=DEFAULT_SUBNET)
    declared.add_string("logfile", "log to this file", default="/var/log/vm-switch.log")
    declared.add_bool("logfile-append", "append to the log file instead of truncating it")
    declared.add_string("link", "data connection at `URL` instead of -vsock-fd", ours=True)
    declared.add_string("resolv-conf", "write the lease's DNS servers to `PATH`", ours=True)
    declared.add_int(
        "ready-fd", "write one line to descriptor `N` when the first lease is in place", default=-1, ours=True
    )
    declared.add_bool("strict", "let an unexpected exception end the daemon", ours=True)
    return declared


def config(values: dict[str, Any]) -> VmSwitchConfig:
    """The configuration that parsed flags, and the environment's SULLA_CTL_FD, mean.

    Raises:
        ConfigError: a value cannot be used.
    """
    mac = values["tap-mac-address"]
    name = values["tap-interface"]
    if not 1 <= len(os.fsencode(name)) <= 15 or "/" in name or name.isspace():
        raise ConfigError(f"-tap-interface {name!r} is not an interface name; want 1 to 15 bytes without a slash")
    if values["ready-fd"] >= 0 and values["dhcp-script"]:
        raise ConfigError("--ready-fd is the built-in DHCP client's; with -dhcp-script let the script tell who waits")
    from sulla_trio.daemons.vm_switch import VmSwitchConfig

    return VmSwitchConfig(
        link=values["link"] or f"fd://{values['vsock-fd']}",
        control=_control_descriptor(os.environ.get(CONTROL_VARIABLE, "")),
        tap_interface=name,
        tap_mac=parse_mac(mac) if mac else None,
        subnet=values["subnet"],
        debug=values["debug"],
        trace_packets=values["trace-packets"],
        dhcp_script=values["dhcp-script"],
        resolv_conf=values["resolv-conf"] or None,
        ready_fd=values["ready-fd"] if values["ready-fd"] >= 0 else None,
        strict=values["strict"],
    )


def _control_descriptor(text: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 9):
        raise ConfigError(f"{CONTROL_VARIABLE}={text} is not the number of a descriptor")
    return int(text)
