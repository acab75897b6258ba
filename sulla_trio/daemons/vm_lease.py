"""The guest interface's DHCP lease: the client machine, driven over vm-switch's own frames, and what a lease sets.

The client's messages go out on the link as frames and the answers are taken from it before the kernel sees them, so no
socket is needed that could send before there is an address. Source: RFC 2131 section 4.1; DESIGN section 6.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable
from typing import Final

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


class LeaseKeeper:
    """Gets a lease for `interface`, keeps it, and applies it.

    `send` queues one frame for the link. `end` is told when the first lease cannot be applied. The text ``ready`` is
    written to `ready_fd`, which is then closed, when it has been.
    """

    def __init__(
        self,
        interface: str,
        mac: bytes,
        *,
        resolv_conf: str | None,
        ready_fd: int | None,
        send: Callable[[bytes], None],
        end: Callable[[str], None],
    ) -> None:
        self._interface = interface
        self._mac = mac
        self._resolv_conf = resolv_conf
        self._ready_fd = ready_fd
        self._send = send
        self._end = end
        self._client: DhcpClient | None = None
        self._wake = trio.Event()
        self._applied: LeaseAcquired | None = None

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
            nursery.start_soon(_preload)
            client = self._client = DhcpClient(self._mac, random.Random(), trio.current_time())
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
                await trio.to_thread.run_sync(address.withdraw, self._interface)
                return
            if event != self._applied:
                await self._configure(event)
        except OSError as error:
            text = f"dhcp error: cannot set up {self._interface}: {(error.strerror or str(error)).lower()}"
            if self._ready_fd is not None:
                self._end(text)
            else:
                log.error("%s", text)

    async def _configure(self, lease: LeaseAcquired) -> None:
        gateway = format_ip(lease.router) if lease.router else None
        await trio.to_thread.run_sync(
            address.configure, self._interface, format_ip(lease.ip), lease.prefix, gateway, lease.mtu
        )
        self._applied = lease
        log.info(
            "lease: %s/%d, router %s, MTU %s, %d s",
            format_ip(lease.ip),
            lease.prefix,
            gateway,
            lease.mtu,
            lease.lease_seconds,
        )
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


async def _preload() -> None:
    await trio.to_thread.run_sync(address.preload, abandon_on_cancel=True)
