"""The guest interface's DHCP lease: the client machine, driven over vm-switch's own frames, and what a lease sets.

The client's messages go out on the link as frames and the answers are taken from it before the kernel sees them, so no
socket is needed that could send before there is an address. Source: RFC 2131 section 4.1; DESIGN section 6.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import random
from collections.abc import Callable
from typing import Final, Protocol

import trio

from sulla_trio.config import BROADCAST_MAC, format_ip
from sulla_trio.link import address
from sulla_trio.services.dhcp_client import ClientState, DhcpClient, LeaseAcquired, LeaseLost
from sulla_trio.wire import ethernet, inet, ipv4, udp

log = logging.getLogger(__name__)

ANY: Final = bytes(4)
BROADCAST: Final = b"\xff" * 4
CLIENT_PORT: Final = 68
SERVER_PORT: Final = 67
SHORTEST_REPLY: Final = 14 + 20 + 8 + 240
"""Bytes of a frame with a DHCP message: headers, the fixed part of RFC 2131 figure 1, the magic cookie."""
_IP: Final = 14
_UDP: Final = _IP + 20  # a DHCP server has no reason for IP options
_CHADDR: Final = _UDP + 8 + 28


def is_dhcp_reply(frame: memoryview) -> bool:
    """Whether `frame`, of SHORTEST_REPLY bytes or more, is a whole UDP datagram to port 68."""
    return (
        frame[_IP + 9] == inet.IPPROTO_UDP
        and frame[12] == 8
        and frame[13] == 0
        and frame[_IP] == 0x45
        and frame[_UDP + 2] == 0
        and frame[_UDP + 3] == CLIENT_PORT
        and not (frame[_IP + 6] & 0x3F or frame[_IP + 7])
    )


class GuestInterface(Protocol):
    """What a lease does to the interface `name`. Each call may wait."""

    name: str

    async def prepare(self) -> None:
        """Have at hand what the calls below need."""

    async def configure(self, lease: LeaseAcquired) -> None:
        """Address, MTU and default route of `lease`. Raises OSError."""

    async def withdraw(self) -> None:
        """No address. Raises OSError."""


class KernelInterface:
    """The real one, in this network namespace. pyroute2 blocks, so it is called in threads."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def prepare(self) -> None:
        await trio.to_thread.run_sync(address.preload, abandon_on_cancel=True)

    async def configure(self, lease: LeaseAcquired) -> None:
        ip, gateway = format_ip(lease.ip), format_ip(lease.router) if lease.router else None
        await trio.to_thread.run_sync(address.configure, self.name, ip, lease.prefix, gateway, lease.mtu)

    async def withdraw(self) -> None:
        await trio.to_thread.run_sync(address.withdraw, self.name)


class LeaseKeeper:
    """Gets a lease for `interface`, keeps it, and applies it.

    `send` queues one frame for the link. `end` is told when the first lease cannot be applied. The text ``ready`` is
    written to `ready_fd`, which is then closed, when it has been. `subnet` is what ``-subnet`` says: a lease elsewhere is
    told of and used.
    """

    def __init__(
        self,
        interface: GuestInterface,
        mac: bytes,
        *,
        subnet: ipaddress.IPv4Network | None,
        resolv_conf: str | None,
        ready_fd: int | None,
        send: Callable[[bytes], None],
        end: Callable[[str], None],
    ) -> None:
        self._interface = interface
        self._mac = mac
        self._subnet = subnet
        self._resolv_conf = resolv_conf
        self._ready_fd = ready_fd
        self._send = send
        self._end = end
        self._client: DhcpClient | None = None
        self._wake = trio.Event()
        self._applied: LeaseAcquired | None = None
        self._told_subnet: ipaddress.IPv4Network | None = None

    def reconfirm(self) -> None:
        """The link is a new one, maybe to a host that knows nothing: have the lease confirmed there, at once."""
        if self._client is not None:
            self._client.reconfirm(trio.current_time())
            self._wake.set()

    def receive(self, frame: memoryview) -> bool:
        """Take a frame that `is_dhcp_reply`; False: not for this client, the kernel's to see."""
        client = self._client
        if client is None or client.state is ClientState.BOUND or bytes(frame[_CHADDR : _CHADDR + 6]) != self._mac:
            return False
        end = _UDP + int.from_bytes(frame[_UDP + 4 : _UDP + 6], "big")
        client.receive(bytes(frame[_UDP + 8 : end]), trio.current_time())
        self._wake.set()
        return True

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            # The import is over when the server's answer is there.
            nursery.start_soon(self._interface.prepare)
            vendor_class = b"" if self._subnet is None else f"sulla-vm-switch subnet={self._subnet}".encode()
            client = self._client = DhcpClient(
                self._mac, random.Random(), trio.current_time(), vendor_class=vendor_class
            )
            while True:
                now = trio.current_time()
                client.handle_timer(now)
                for payload in client.messages_to_send(now):
                    self._send(self._frame(payload))
                while event := client.next_event():
                    await self._apply(event)
                due = client.poll_at()
                with trio.CancelScope(deadline=trio.current_time() + 3600 if due is None else due):
                    await self._wake.wait()
                self._wake = trio.Event()

    def _frame(self, payload: bytes) -> bytes:
        source = self._applied.ip if self._applied else ANY
        datagram = udp.emit(source, CLIENT_PORT, BROADCAST, SERVER_PORT, payload) + payload
        packet = ipv4.emit(source, BROADCAST, inet.IPPROTO_UDP, len(datagram)) + datagram
        return ethernet.emit(BROADCAST_MAC, self._mac, ethernet.ETHERTYPE_IPV4) + packet

    async def _apply(self, event: LeaseAcquired | LeaseLost) -> None:
        try:
            if isinstance(event, LeaseLost):
                log.warning("DHCP lease lost: %s", event.reason)
                self._applied = None
                await self._interface.withdraw()
                return
            if event != self._applied:
                await self._configure(event)
        except OSError as error:
            text = f"dhcp error: cannot set up {self._interface.name}: {(error.strerror or str(error)).lower()}"
            if self._ready_fd is not None:
                self._end(text)
            else:
                log.error("%s", text)

    async def _configure(self, lease: LeaseAcquired) -> None:
        await self._interface.configure(lease)
        self._applied = lease
        log.info(
            "lease: %s/%d, router %s, MTU %s, %d s",
            format_ip(lease.ip),
            lease.prefix,
            format_ip(lease.router) if lease.router else None,
            lease.mtu,
            lease.lease_seconds,
        )
        self._compare_subnet(lease)
        if self._resolv_conf is not None:
            try:
                address.write_resolv_conf(self._resolv_conf, [format_ip(ip) for ip in lease.dns], lease.search)
            except OSError as error:  # names may fail then, frames do not
                log.error("writing %s failed: %s", self._resolv_conf, (error.strerror or str(error)).lower())
        if self._ready_fd is not None:
            descriptor, self._ready_fd = self._ready_fd, None
            try:
                os.write(descriptor, b"ready\n")
            except OSError as error:  # whoever asked has gone
                log.debug("nobody reads --ready-fd %d: %s", descriptor, error.strerror)
            os.close(descriptor)

    def _compare_subnet(self, lease: LeaseAcquired) -> None:
        subnet = ipaddress.IPv4Network((lease.ip, lease.prefix), strict=False)
        if self._subnet in (None, subnet) or subnet == self._told_subnet:
            return
        self._told_subnet = subnet
        log.warning(
            "the lease %s/%d is of %s, but -subnet says %s; it is used all the same: give network-setup and vm-switch "
            "-subnet %s, or host-switch -subnet %s",
            format_ip(lease.ip),
            lease.prefix,
            subnet,
            self._subnet,
            subnet,
            self._subnet,
        )
