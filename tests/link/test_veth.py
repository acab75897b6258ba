"""A veth pair between two namespaces, in a process of its own that has left the machine's."""

from __future__ import annotations

import errno
import os
from ipaddress import IPv4Interface

import pytest

from sulla_trio.link import namespace, veth

pytestmark = pytest.mark.e2e


async def test_a_pair_and_its_end() -> None:
    here, there = await namespace.make_namespace(), await namespace.make_namespace()
    try:
        await namespace.run_inside(here, lambda: veth.create("near", "far", there))
        await namespace.run_inside(here, lambda: veth.set_up("near", IPv4Interface("10.9.8.2/24")))
        await namespace.run_inside(there, lambda: veth.set_up("far", IPv4Interface("10.9.8.1/24")))
        assert await namespace.run_inside(here, lambda: described("near")) == ("10.9.8.2", 24, "10.9.8.255", "UP")
        assert await namespace.run_inside(there, lambda: described("far")) == ("10.9.8.1", 24, "10.9.8.255", "UP")

        with pytest.raises(FileExistsError):
            await namespace.run_inside(here, lambda: veth.create("near", "other", there))
        with pytest.raises(FileExistsError):
            await namespace.run_inside(here, lambda: veth.create("other", "far", there))

        assert await namespace.run_inside(here, lambda: veth.delete("near")) is True
        assert await namespace.run_inside(here, lambda: veth.delete("near")) is False
        assert await namespace.run_inside(there, lambda: veth.delete("far")) is False
        with pytest.raises(OSError) as caught:
            await namespace.run_inside(here, lambda: veth.set_up("near", IPv4Interface("10.9.8.2/24")))
        assert (caught.value.errno, caught.value.filename) == (errno.ENODEV, "near")
        with pytest.raises(OSError) as caught:
            await namespace.run_inside(here, lambda: veth.delete("lo"))
        assert caught.value.errno == errno.EOPNOTSUPP
    finally:
        os.close(here)
        os.close(there)


def described(name: str) -> tuple[str, int, str, str]:
    from pyroute2.iproute.linux import IPRoute

    with IPRoute() as route:
        (index,) = route.link_lookup(ifname=name)
        (address,) = route.get_addr(index=index, family=2)
        (link,) = route.get_links(index)
        return (
            address.get_attr("IFA_ADDRESS"),
            address["prefixlen"],
            address.get_attr("IFA_BROADCAST"),
            link.get_attr("IFLA_OPERSTATE"),
        )
