"""A UDP port forward: each client of the host's port gets a port of the gateway (specs/gvproxy.md section 5.5)."""

from __future__ import annotations

import socket
from collections import OrderedDict
from functools import partial
from typing import Any, Final

import trio

from sulla_trio.forward.context import Driver
from sulla_trio.netstack.events import DatagramReceived

UDP_IDLE: Final = 90.0
MAX_UDP_CLIENTS: Final = 1024
"""Clients remembered per UDP forward; the longest idle goes."""
FIRST_EPHEMERAL: Final = 16_000
BATCH: Final = 64
"""Datagrams read before other tasks run."""


class UdpForward:
    """One UDP forward: each client address has a port of the gateway, as gvproxy does it."""

    def __init__(self, driver: Driver, sock: socket.socket, target: tuple[bytes, int]) -> None:
        self._driver = driver
        self._socket = sock
        self._target = target
        self._clients: OrderedDict[Any, tuple[int, float]] = OrderedDict()
        """Client address to (gateway port, time of the last datagram), longest idle first."""
        self._next_port = FIRST_EPHEMERAL

    async def run(self) -> None:
        """Carry datagrams both ways until cancelled; then the socket is closed and the clients are forgotten."""
        driver, sock = self._driver, self._socket
        try:
            while True:
                for _ in range(BATCH):
                    try:
                        payload, client = sock.recvfrom(65_535)
                    except BlockingIOError:
                        break
                    except OSError:
                        continue  # the ICMP error of an earlier reply
                    self._to_guest(payload, client)
                driver.pump()
                with trio.move_on_after(UDP_IDLE if self._clients else float("inf")):
                    await trio.lowlevel.wait_readable(sock)
                self._forget_idle()
        finally:
            for port, _ in self._clients.values():
                driver.unbind_datagrams((driver.network.gateway_ip, port))
            trio.lowlevel.notify_closing(sock)
            sock.close()

    def _to_guest(self, payload: bytes, client: Any) -> None:
        driver = self._driver
        known = self._clients.pop(client, None)
        port = known[0] if known else self._allocate(client)
        self._clients[client] = (port, driver.now())
        driver.stack.send_datagram(driver.network.gateway_ip, port, *self._target, payload, driver.now())

    def _allocate(self, client: Any) -> int:
        driver = self._driver
        if len(self._clients) >= MAX_UDP_CLIENTS:
            _, (old, _) = self._clients.popitem(last=False)
            driver.unbind_datagrams((driver.network.gateway_ip, old))
        while True:
            port = self._next_port
            self._next_port = port + 1 if port < 65_535 else FIRST_EPHEMERAL
            if driver.bind_datagrams((driver.network.gateway_ip, port), partial(self._from_guest, client)):
                return port

    def _from_guest(self, client: Any, event: DatagramReceived) -> None:
        if (event.source_ip, event.source_port) != self._target:
            self._driver.stack.counters.drop("udp_unsolicited")
            return
        if client in self._clients:
            port, _ = self._clients.pop(client)
            self._clients[client] = (port, self._driver.now())
        try:
            self._socket.sendto(event.payload, client)
        except OSError:
            self._driver.stack.counters.drop("udp_client_gone")

    def _forget_idle(self) -> None:
        driver = self._driver
        while self._clients:
            client, (port, last) = next(iter(self._clients.items()))
            if last + UDP_IDLE > driver.now():
                return
            del self._clients[client]
            driver.unbind_datagrams((driver.network.gateway_ip, port))


def bind_udp(host: str, port: int) -> socket.socket:
    """A non-blocking UDP socket on (host, port); an empty host is all addresses of both families. Raises OSError."""
    family = socket.AF_INET6 if ":" in host or (not host and socket.has_dualstack_ipv6()) else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        if family == socket.AF_INET6 and not host:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind((host, port))
    except BaseException:
        sock.close()
        raise
    return sock
