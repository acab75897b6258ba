"""Command line of host-switch. Source: specs/daemons.md section 3.2; flags with two dashes are ours."""

from __future__ import annotations

import ipaddress
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from sulla_trio.cli import dialect as dialects
from sulla_trio.cli.goflags import FlagSet
from sulla_trio.config import (
    DEFAULT_MTU,
    DEFAULT_SUBNET,
    UDP_FILTERS,
    NetworkConfig,
    network_config,
    parse_port_forward,
    parse_static_leases,
)
from sulla_trio.errors import ConfigError
from sulla_trio.link.endpoint_url import parse_endpoint

if TYPE_CHECKING:
    from sulla_trio.daemons.host_switch import HandshakeConfig, HostSwitchConfig

DATA_PORT: Final = "vsock-listen-port"


def flags(program: str) -> FlagSet:
    """The flags of host-switch."""
    declared = FlagSet(program)
    declared.add_bool("debug", "log at DEBUG, and byte counters every 5 seconds")
    declared.add_string("subnet", "virtual network, as a CIDR", default=DEFAULT_SUBNET)
    declared.add_repeated("port-forward", "static forward HostIP:Port=GuestIP:Port, repeatable; udp: in front for UDP")
    declared.add_repeated(
        "listen", "serve the API on `URL` (unix:///path or tcp://host:port), repeatable; none for nowhere", ours=True
    )
    declared.add_repeated(
        "vm", "probe the VM at `URL` instead of looking for VMs, repeatable; none for no handshake at all", ours=True
    )
    declared.add_string("data", "data connection at `URL`: fd://N, or one to listen on", ours=True)
    dialects.add_flags(declared, DATA_PORT)
    declared.add_int("mtu", "MTU of the virtual network in bytes", default=DEFAULT_MTU, ours=True)
    declared.add_bool("no-host-loopback", "do not let the guest reach 127.0.0.1 of the host through .254", ours=True)
    declared.add_string("host-loopback-ports", "only these ports through .254: a comma-separated `LIST`", ours=True)
    declared.add_repeated("deny-out", "do not let the guest reach `CIDR`, repeatable", ours=True)
    declared.add_repeated(
        "static-lease", "give the guest with this MAC always this address: `MAC=IPv4`, repeatable", ours=True
    )
    declared.add_string("state", "keep forwards and leases over a restart in `FILE`", ours=True)
    declared.add_string(
        "udp-filter",
        "whose datagrams a guest's UDP port lets in: address-and-port-dependent (whom it sent to) or endpoint-independent",
        default=UDP_FILTERS[0],
        ours=True,
    )
    declared.add_bool("strict", "let an unexpected exception end the daemon", ours=True)
    declared.add_string("logfile", "log to `PATH` instead of stderr", ours=True)
    return declared


def config(values: dict[str, Any]) -> HostSwitchConfig:
    """The configuration that parsed flags mean.

    Raises:
        ConfigError: a value cannot be used.
    """
    network = _network(values)
    # Twice the same host address: the last wins, as in the Go daemon's map.
    forwards = {(one.protocol, one.local): one for one in map(parse_port_forward, values["port-forward"])}
    listen = values["listen"]
    if not listen:
        from sulla_trio.api.location import default_listen

        listen = (default_listen(),) if os.name == "posix" else ("tcp://127.0.0.1:0",)
    elif "none" in listen:
        if set(listen) != {"none"}:
            raise ConfigError("--listen none and --listen URL contradict each other; give one of them")
        listen = ()
    from sulla_trio.daemons.host_switch import HostSwitchConfig

    data, handshake = _link(values)
    return HostSwitchConfig(
        network=network,
        forwards=tuple(forwards.values()),
        listen=listen,
        data=data,
        handshake=handshake,
        state=values["state"],
        debug=values["debug"],
        strict=values["strict"],
    )


def _link(values: dict[str, Any]) -> tuple[str, HandshakeConfig | None]:
    """Where links come to without a handshake, or how the handshake goes."""
    from sulla_trio.link.discovery import FixedCandidates, default_candidates
    from sulla_trio.link.host_handshake import data_endpoint

    dialect = dialects.dialect(values, DATA_PORT)
    names, data = values["vm"], values["data"]
    url = parse_endpoint(data, dialect.data_port) if data else None
    if url is not None and url.scheme == "fd":
        if names and names != ("none",):
            raise ConfigError(f"--data {data} is a connection that is there already: leave --vm {names[0]} out")
        return data, None
    if names == ("none",):
        return data or f"vsock://ANY:{dialect.data_port}", None
    if "none" in names:
        raise ConfigError("--vm none and --vm URL contradict each other; give one of them")
    from sulla_trio.daemons.host_switch import HandshakeConfig

    if not names:
        return "", HandshakeConfig(default_candidates(sys.platform, dialect.handshake_port), dialect, url)
    candidates = FixedCandidates(names, dialect.handshake_port)
    for vm in candidates.find() if url is None else ():
        data_endpoint(vm, dialect.data_port)  # have it complain now
    return "", HandshakeConfig(candidates, dialect, url)


def _network(values: dict[str, Any]) -> NetworkConfig:
    denied = []
    for text in values["deny-out"]:
        try:
            denied.append(ipaddress.IPv4Network(text, strict=False))
        except ValueError:
            raise ConfigError(f"--deny-out {text}: want an IPv4 network such as 10.0.0.0/8") from None
    network = network_config(values["subnet"], values["mtu"])
    if values["udp-filter"] not in UDP_FILTERS:
        raise ConfigError(f"--udp-filter {values['udp-filter']}: want {' or '.join(UDP_FILTERS)}")
    return replace(
        network,
        static_leases=parse_static_leases(values["static-lease"], network),
        host_loopback=not values["no-host-loopback"],
        host_loopback_ports=parse_ports(values["host-loopback-ports"]),
        deny_out=tuple(denied),
        udp_filter=values["udp-filter"],
    )


def parse_ports(text: str) -> frozenset[int] | None:
    """``80,443,8000-8010``; None for an empty text: no restriction.

    Raises:
        ConfigError: not such a list, or a port outside 1 to 65535.
    """
    if not text:
        return None
    ports: set[int] = set()
    for item in text.split(","):
        first, dash, last = item.strip().partition("-")
        bounds = (first, last if dash else first)
        if not all(bound.isascii() and bound.isdigit() and 1 <= int(bound[:6]) <= 65_535 for bound in bounds):
            raise ConfigError(f"--host-loopback-ports {text}: {item!r} is not a port; want for example 80,8000-8010")
        ports.update(range(int(bounds[0]), int(bounds[1]) + 1))
    return frozenset(ports)
