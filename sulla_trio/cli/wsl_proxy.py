"""Command line of wsl-proxy. Source: specs/daemons.md section 3.5; flags with two dashes are ours."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

from sulla_trio.cli.goflags import FlagSet
from sulla_trio.errors import ConfigError

if TYPE_CHECKING:
    from sulla_trio.daemons.wsl_proxy import WslProxyConfig


def flags(program: str) -> FlagSet:
    """The flags of wsl-proxy."""
    declared = FlagSet(program)
    declared.add_bool("debug", "log at DEBUG")
    declared.add_string("logfile", "log to this file", default="/var/log/wsl-proxy.log")
    declared.add_string("socketFile", "listen for port mappings on this unix socket", default="/run/wsl-proxy.sock")
    declared.add_string("upstreamAddress", "forward published ports to this address", default="192.168.143.1")
    declared.add_int("udpBuffer", "accepted and not used: a datagram is 64 KiB at most", default=8_388_608)
    declared.add_string("events", "serve events on `URL` (unix:///path)", ours=True)
    declared.add_bool("strict", "let an unexpected exception end the daemon", ours=True)
    return declared


def config(values: dict[str, Any]) -> WslProxyConfig:
    """The configuration that parsed flags mean.

    Raises:
        ConfigError: a value cannot be used.
    """
    upstream, path, events = values["upstreamAddress"], values["socketFile"], values["events"]
    try:
        ipaddress.ip_address(upstream)
    except ValueError:
        raise ConfigError(f"-upstreamAddress {upstream}: want an IP address such as 192.168.143.1") from None
    if not path or "\0" in path:
        raise ConfigError(f"-socketFile {path!r}: want the path of a socket")
    if events and not events.startswith("unix:///"):
        raise ConfigError(f"--events {events}: want unix:///path")
    from sulla_trio.daemons.wsl_proxy import WslProxyConfig

    return WslProxyConfig(socket_file=path, upstream=upstream, events=events, strict=values["strict"])
