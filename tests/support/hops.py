"""A little internet of network namespaces: the host that the switch runs on, two routers in a row, a server behind them.

    host 10.99.0.1 -- 10.99.0.2 near 10.99.1.1 -- 10.99.1.2 far 10.99.2.1 -- 10.99.2.2 server

Needs root. Nothing of it reaches any other network: none of the namespaces has another interface.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

NEAR, FAR, SERVER = "10.99.0.2", "10.99.1.2", "10.99.2.2"
"""The addresses that answer along the way, in order."""
NOBODY_THERE = "10.99.2.77"
"""On the server's wire, and nobody's."""
NO_ROUTE = "10.98.0.1"
"""The far router has no route to it."""
SMALL_MTU = 1300
"""Of the wire between far and server, when made small."""
_LINKS = (("host", "near"), ("near", "far"), ("far", "server"))


@dataclass(frozen=True)
class Hops:
    """The namespaces by role, made for this test alone."""

    names: dict[str, str]

    def line(self, where: str, *command: str) -> list[str]:
        """`command` as run in the namespace of `where`; mounts stay as they are."""
        return ["nsenter", f"--net=/run/netns/{self.names[where]}", *command]

    def run(self, where: str, *command: str) -> str:
        """Output of `command` there; it must succeed."""
        done = subprocess.run(self.line(where, *command), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def sysctl(self, where: str, name: str, value: str) -> None:
        self.run(where, "sysctl", "-q", "-w", f"{name}={value}")

    def narrow(self) -> None:
        """Have the last wire carry `SMALL_MTU` bytes."""
        self.run("far", "ip", "link", "set", "to-server", "mtu", str(SMALL_MTU))


@contextmanager
def hops() -> Iterator[Hops]:
    """Make them; take them away."""
    with ExitStack() as stack:
        names = {role: f"sulla-{os.getpid()}-{role}" for role in ("host", "near", "far", "server")}
        lab = Hops(names)
        for name in names.values():
            subprocess.run(["ip", "netns", "add", name], check=True)
            stack.callback(subprocess.run, ["ip", "netns", "delete", name], check=True)
        for number, (left, right) in enumerate(_LINKS):
            peer = ["peer", "name", f"to-{left}", "netns", names[right]]
            lab.run(left, "ip", "link", "add", f"to-{right}", "type", "veth", *peer)
            for role, other, last in ((left, right, 1), (right, left, 2)):
                lab.run(role, "ip", "address", "add", f"10.99.{number}.{last}/24", "dev", f"to-{other}")
                lab.run(role, "ip", "link", "set", f"to-{other}", "up")
        for role in names:
            lab.run(role, "ip", "link", "set", "lo", "up")
            lab.sysctl(role, "net.ipv4.ip_forward", "1" if role in ("near", "far") else "0")
            lab.sysctl(role, "net.ipv4.icmp_ratelimit", "0")  # the routers' own limit is not what is tested
        lab.run("host", "ip", "route", "add", "default", "via", NEAR)
        lab.run("near", "ip", "route", "add", "default", "via", FAR)
        lab.run("far", "ip", "route", "add", "10.99.0.0/24", "via", "10.99.1.1")
        lab.run("server", "ip", "route", "add", "default", "via", "10.99.2.1")
        yield lab
