"""vm-switch: a tap in the guest's network namespace, its frames to and from the link, and the guest's DHCP lease.

Source: specs/daemons.md section 3.4; DESIGN sections 3 and 6. Unlike the Go daemon it ends at once, with status 1, on a
lost link and on a signal, and its DHCP client is its own: no udhcpc, no kernel socket, frames like all others.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
from dataclasses import dataclass
from typing import Final

import trio

from sulla_trio.config import GUEST_MAC, TAP_NAME
from sulla_trio.daemons.vm_lease import SHORTEST_REPLY, LeaseKeeper, is_dhcp_reply
from sulla_trio.errors import ConfigError
from sulla_trio.link import address, endpoint, tap
from sulla_trio.link.framed import FrameReader
from sulla_trio.link.process import set_process_name
from sulla_trio.link.uplink import Uplink
from sulla_trio.wire import ethernet

log = logging.getLogger(__name__)

COUNTER_INTERVAL: Final = 5.0
"""Seconds between two lines of byte counters with ``-debug``."""
_TAP_GONE: Final = frozenset({errno.EBADFD, errno.EBADF, errno.ENODEV})
"""After `ip link delete eth0`. (EIO is an interface that is down, EINVAL a bad frame.)"""


@dataclass(frozen=True, slots=True)
class VmSwitchConfig:
    """What the command line says, checked."""

    link: str = "fd://3"
    """Endpoint URL of the link: ``fd://N`` of ``-vsock-fd N``, or ``--link URL``."""
    tap_interface: str = TAP_NAME
    tap_mac: bytes | None = GUEST_MAC
    """None (an empty ``-tap-mac-address``): the kernel's random one."""
    debug: bool = False
    trace_packets: bool = False
    dhcp_script: str = ""
    """Accepted for the Go daemon's sake; our client needs none."""
    resolv_conf: str | None = None
    """``--resolv-conf PATH``: written with the lease's servers; None: never written."""
    ready_fd: int | None = None
    """``--ready-fd N``: one line is written there, and N closed, when the first lease is in place."""
    strict: bool = False
    """Poison consumed receive buffers (debug builds)."""


async def vm_switch(config: VmSwitchConfig) -> int:
    """Run until a signal or until the link or the tap is lost, which the log tells; the exit status is 1 then.

    Raises:
        ConfigError: the tap, `lo` or the link cannot be had; the message names it.
    """
    set_process_name("vm-switch")
    # The link first: the number of an inherited descriptor must not be taken by another file.
    link = await _connect(endpoint.parse_endpoint(config.link))
    try:
        tap.bring_up_loopback()
        descriptor = tap.open_tap(config.tap_interface, config.tap_mac)
        try:
            address.disable_ipv6(config.tap_interface)
            mac = config.tap_mac or tap.hardware_address(config.tap_interface)
            reason = await _Pump(config, link, descriptor, mac).run()
        finally:
            trio.lowlevel.notify_closing(descriptor)
            os.close(descriptor)
    finally:
        link.close()
    log.error("%s", reason)
    return 1


async def _connect(url: endpoint.EndpointUrl) -> endpoint.Endpoint:
    try:
        return await endpoint.connect(url)
    except OSError as error:
        raise ConfigError(f"cannot connect the link {url.text}: {(error.strerror or str(error)).lower()}") from None


class _Pump:
    """One tap and one link, for the life of both."""

    def __init__(self, config: VmSwitchConfig, link: endpoint.Endpoint, descriptor: int, mac: bytes) -> None:
        self._config = config
        self._link = link
        self._tap = descriptor
        self._uplink = Uplink(descriptor, link)
        self._trace = config.trace_packets
        self._lease = LeaseKeeper(
            config.tap_interface,
            mac,
            resolv_conf=config.resolv_conf,
            ready_fd=config.ready_fd,
            send=self._send_own,
            end=self._end,
        )
        self._reason = ""
        self._scope = trio.CancelScope()
        self.bytes_received = self.frames_received = self.frames_refused = 0

    async def run(self) -> str:
        """Carry frames until something ends it; what."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await nursery.start(self._watch_signals)
                nursery.start_soon(self._tap_to_link)
                nursery.start_soon(self._link_to_tap)
                nursery.start_soon(self._lease.run)
                if self._config.debug:
                    nursery.start_soon(self._log_counters)
        return self._reason

    def _end(self, reason: str) -> None:
        self._reason = self._reason or reason
        self._scope.cancel()

    async def _watch_signals(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGUSR1) as received:
            task_status.started()
            async for number in received:
                if number == signal.SIGUSR1:
                    self._trace = not self._trace
                    log.info("SIGUSR1 received: per-packet tracing is now %s", str(self._trace).lower())
                    continue
                self._end(f"signal caught: {signal.strsignal(number) or number}".lower())
                return

    async def _tap_to_link(self) -> None:
        uplink = self._uplink
        while True:
            taken: list[memoryview] | None = [] if self._trace else None
            try:
                # Frames of the lease keeper may be queued: they go first, and nothing is read before they are gone.
                if not uplink.queued and not uplink.read_tap(taken):
                    await trio.lowlevel.wait_readable(self._tap)
                    continue
            except OSError as error:
                self._end(f"reading packet from tap failed: {(error.strerror or str(error)).lower()}")
                return
            for frame in taken or ():
                log.info("wrote packet (vm -> host %d): %s", len(frame), ethernet.format(frame))
            try:
                sent = uplink.flush()
            except OSError as error:
                self._end(f"link lost: writing packet to the socket failed: {(error.strerror or str(error)).lower()}")
                return
            if sent:
                await trio.lowlevel.checkpoint()
            else:
                await self._drain()

    async def _link_to_tap(self) -> None:
        link, reader = self._link, FrameReader(poison=self._config.strict)
        while True:
            try:
                frames = reader.read(link)
            except BlockingIOError:
                await link.wait_readable()
                continue
            except OSError as error:
                self._end(f"link lost: reading from the socket failed: {(error.strerror or str(error)).lower()}")
                return
            if frames is None:
                cut = f" inside a frame ({reader.partial} bytes of it)" if reader.partial else ""
                self._end(f"link lost: end of stream{cut}")
                return
            if not self._deliver(frames):
                return
            await trio.lowlevel.checkpoint()

    def _deliver(self, frames: list[memoryview]) -> bool:
        """Write a batch to the tap; False: the tap is gone."""
        write, descriptor, lease = os.write, self._tap, self._lease
        for frame in frames:
            if self._trace:
                log.info("read packet (host -> vm %d): %s", len(frame), ethernet.format(frame))
            # UDP to port 68 is looked at before the kernel sees it, which would answer with ICMP: nobody listens there.
            if len(frame) >= SHORTEST_REPLY and is_dhcp_reply(frame) and lease.receive(frame):
                continue
            try:
                self.bytes_received += write(descriptor, frame)
            except OSError as error:
                if error.errno in _TAP_GONE:
                    self._end(f"writing packet to tap failed: {(error.strerror or str(error)).lower()}")
                    return False
                self.frames_refused += 1  # EIO: the interface is down; it may come up again
        self.frames_received += len(frames)
        return True

    def _send_own(self, frame: bytes) -> None:
        """A frame of our own for the link, behind what is queued there."""
        if self._uplink.append(frame):
            self._nursery.start_soon(self._drain)

    async def _drain(self) -> None:
        try:
            await self._uplink.drain()
        except OSError as error:
            self._end(f"link lost: writing packet to the socket failed: {(error.strerror or str(error)).lower()}")

    async def _log_counters(self) -> None:
        while True:
            await trio.sleep(COUNTER_INTERVAL)
            log.debug(
                "%d bytes sent to the host, %d bytes received from the host",
                self._uplink.bytes_sent,
                self.bytes_received,
            )
