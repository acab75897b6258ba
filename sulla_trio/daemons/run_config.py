"""What `sulla run` was asked for."""

from __future__ import annotations

from dataclasses import dataclass

from sulla_trio.config import DEFAULT_MTU, DEFAULT_SUBNET, PortForward


@dataclass(frozen=True, slots=True)
class RunConfig:
    """One `sulla run`, checked (`config.network_config` has accepted `subnet` and `mtu`)."""

    command: tuple[str, ...]
    forwards: tuple[PortForward, ...] = ()
    root: bool = False
    """CMD is uid 0 in its user namespace, with every capability over its own network."""
    mtu: int = DEFAULT_MTU
    subnet: str = DEFAULT_SUBNET
    debug: bool = False
    """Both daemons log at DEBUG to stderr; otherwise only the line that says why one ended is shown."""
    listen: tuple[str, ...] = ()
    """Endpoint URLs of the host API; empty: none. CMD gets the first as ``SULLA_API`` unless it is set already."""
    host_switch_flags: tuple[str, ...] = ()
    """Passed to host-switch after our own."""
