"""Command line of network-setup. Source: specs/daemons.md sections 3.3 and 3.6; flags with two dashes are ours."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any, Final

from sulla_trio.cli import dialect as dialects
from sulla_trio.cli.goflags import FlagSet
from sulla_trio.config import DEFAULT_SUBNET, GUEST_MAC, TAP_NAME, format_mac
from sulla_trio.errors import ConfigError

if TYPE_CHECKING:
    from sulla_trio.daemons.network_setup import NetworkSetupConfig

log = logging.getLogger(__name__)

DEFAULT_UNIT: Final = "network-namespace.service"
DATA_PORT: Final = "vsock-dial-port"


def flags(program: str) -> FlagSet:
    """The flags of network-setup."""
    declared = FlagSet(program)
    declared.add_bool("debug", "log at DEBUG, vm-switch too")
    declared.add_bool("trace-packets", "have vm-switch log every packet at INFO")
    declared.add_string(
        "namespace-service", "under systemd: the unit whose network is the guest's", default=DEFAULT_UNIT
    )
    declared.add_string("tap-interface", "name of vm-switch's tap", default=TAP_NAME)
    declared.add_string("subnet", "virtual network, for vm-switch to compare", default=DEFAULT_SUBNET)
    declared.add_string("tap-mac-address", "MAC of the tap", default=format_mac(GUEST_MAC))
    declared.add_string("dhcp-script", "script of a udhcpc that vm-switch is to run")
    declared.add_string("vm-switch-path", "the vm-switch to start; required")
    declared.add_string("vm-switch-logfile", "log file of vm-switch")
    declared.add_bool("vm-switch-logfile-append", "have vm-switch append to its log file instead of truncating it")
    declared.add_string("unshare-arg", "program that becomes PID 1 of new namespaces; required unless under systemd")
    declared.add_alias("unshare-args", "unshare-arg")
    declared.add_string("logfile", "log to this file", default="/var/log/network-setup.log")
    dialects.add_flags(declared, DATA_PORT)
    declared.add_string("handshake", "answer the handshake at `URL` instead of vsock://ANY:PORT", ours=True)
    declared.add_string("data", "open the data connection to `URL` instead of vsock://2:PORT", ours=True)
    declared.add_bool("no-forward", "leave net.ipv4.ip_forward of the new network namespace alone", ours=True)
    declared.add_bool("strict", "let an unexpected exception end the daemon", ours=True)
    return declared


def config(values: dict[str, Any]) -> NetworkSetupConfig:
    """The configuration that parsed flags, SYSTEMD_EXEC_PID and DBUS_SYSTEM_BUS_ADDRESS mean.

    Raises:
        ConfigError: a value is missing or cannot be used.
    """
    if not values["vm-switch-path"]:
        raise ConfigError("path to the vm-switch process must be provided")
    systemd_mode = bool(os.environ.get("SYSTEMD_EXEC_PID"))
    if systemd_mode and values["unshare-arg"]:
        log.warning("-unshare-arg %s is ignored: systemd has the namespaces' PID 1", values["unshare-arg"])
    elif not systemd_mode and not values["unshare-arg"]:
        raise ConfigError("unshare program arg must be provided")
    from sulla_trio.daemons.network_setup import NetworkSetupConfig
    from sulla_trio.daemons.setup_vm_switch import VmSwitchCommand
    from sulla_trio.link.endpoint import parse_endpoint
    from sulla_trio.link.systemd import DEFAULT_SYSTEM_BUS

    dialect = dialects.dialect(values, DATA_PORT)
    return NetworkSetupConfig(
        vm_switch=VmSwitchCommand(
            path=values["vm-switch-path"],
            tap_interface=values["tap-interface"],
            subnet=values["subnet"],
            tap_mac=values["tap-mac-address"],
            dhcp_script=values["dhcp-script"],
            logfile=values["vm-switch-logfile"],
            logfile_append=values["vm-switch-logfile-append"],
            debug=values["debug"],
            trace_packets=values["trace-packets"],
        ),
        handshake=parse_endpoint(
            values["handshake"] or f"vsock://ANY:{dialect.handshake_port}", dialect.handshake_port
        ),
        data=parse_endpoint(values["data"] or f"vsock://2:{dialect.data_port}", dialect.data_port),
        dialect=dialect,
        unshare_arg=values["unshare-arg"],
        namespace_unit=values["namespace-service"] if systemd_mode else "",
        system_bus=os.environ.get("DBUS_SYSTEM_BUS_ADDRESS") or DEFAULT_SYSTEM_BUS,
        forward=not values["no-forward"],
        strict=values["strict"],
    )
