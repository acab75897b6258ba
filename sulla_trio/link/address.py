"""Address, route and MTU of an interface in this network namespace, through pyroute2.

A thin typed wrapper round four calls. pyroute2 takes 0.13 s to import: `preload` it in a thread while something else
waits. Every function blocks for some milliseconds: call it in a thread. (Not `AsyncIPRoute`: that is asyncio's.)
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


def preload() -> None:
    """Import pyroute2."""
    import pyroute2.iproute.linux  # noqa: F401

    logging.getLogger("pyroute2").setLevel(logging.WARNING)  # at DEBUG it prints every message whole


def configure(interface: str, address: str, prefix_length: int, gateway: str | None, mtu: int | None) -> None:
    """Give `interface` this address alone, the MTU, and the default route by `gateway`. May be done again and again.

    Raises:
        OSError: the kernel refuses, or there is no such interface.
    """
    with _netlink(interface) as (route, index):
        if mtu is not None:
            route.link("set", index=index, mtu=mtu)
        _remove_addresses(route, index, keep=(address, prefix_length))
        route.addr("replace", index=index, address=address, prefixlen=prefix_length)
        if gateway is not None:
            route.route("replace", dst="default", gateway=gateway, oif=index)


def withdraw(interface: str) -> None:
    """Take every IPv4 address (and with them the routes) from `interface`. Raises OSError as `configure`."""
    with _netlink(interface) as (route, index):
        _remove_addresses(route, index)


@contextmanager
def _netlink(interface: str) -> Iterator[tuple[Any, int]]:
    """pyroute2's IPRoute and the interface's index; its NetlinkError leaves as an OSError."""
    from pyroute2.iproute.linux import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as route:
            found = route.link_lookup(ifname=interface)
            if not found:
                raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), interface)
            yield route, found[0]
    except NetlinkError as error:
        raise OSError(error.code, os.strerror(error.code), interface) from None


def _remove_addresses(route: Any, index: int, keep: tuple[str, int] | None = None) -> None:
    for message in route.get_addr(index=index, family=socket.AF_INET):
        found = message.get_attr("IFA_LOCAL"), message["prefixlen"]
        if found != keep:
            route.addr("del", index=index, address=found[0], prefixlen=found[1])


def disable_ipv6(interface: str) -> None:
    """No IPv6 on `interface`: the network carries none. Best effort (/proc/sys may be read-only)."""
    try:
        with open(f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6", "w") as file:
            file.write("1")
    except OSError:
        pass


def write_resolv_conf(path: str, servers: Sequence[str], search: Sequence[str]) -> None:
    """Write `path` in place (it may be a mount point, which cannot be renamed over).

    Raises:
        OSError: it cannot be written.
    """
    lines = [f"search {' '.join(search)}"] if search else []
    lines += [f"nameserver {server}" for server in servers]
    with open(path, "w") as file:
        file.write("\n".join(lines) + "\n")
