"""A pair of virtual Ethernet interfaces with its ends in two network namespaces, through pyroute2.

Every function blocks for some milliseconds and works in the network namespace of the thread that calls it. Source: veth(4),
rtnetlink(7).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Interface
from typing import Any


def create(name: str, peer: str, namespace: int) -> None:
    """The interface `name` here, its peer named `peer` in the network namespace behind descriptor `namespace`.

    Raises:
        OSError: one of the names is taken, or the kernel refuses.
    """
    with _netlink(f"{name} and {peer}") as route:
        route.link("add", ifname=name, kind="veth", peer={"ifname": peer, "net_ns_fd": namespace})


def set_up(name: str, address: IPv4Interface) -> None:
    """Give `name` its address, with the network's broadcast address, and bring it up. Raises OSError."""
    with _netlink(name) as route:
        index = _index(route, name)
        broadcast = str(address.network.broadcast_address)
        route.addr(
            "add", index=index, address=str(address.ip), prefixlen=address.network.prefixlen, broadcast=broadcast
        )
        route.link("set", index=index, state="up")


def delete(name: str) -> bool:
    """Delete the interface `name`, and a peer with it; False if there is none.

    Raises:
        OSError: the kernel refuses.
    """
    with _netlink(name) as route:
        try:
            route.link("del", index=_index(route, name))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return False
            raise
        return True


def _index(route: Any, name: str) -> int:
    found = route.link_lookup(ifname=name)
    if not found:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), name)
    index: int = found[0]
    return index


@contextmanager
def _netlink(subject: str) -> Iterator[Any]:
    """pyroute2's IPRoute; its NetlinkError leaves as an OSError with `subject` as its filename."""
    from pyroute2.iproute.linux import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as route:
            yield route
    except NetlinkError as error:
        raise OSError(error.code, os.strerror(error.code), subject) from None
