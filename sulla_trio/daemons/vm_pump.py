"""Frames between one tap and the link of the moment, both ways at once.

The tap outlives a link: `Pump.carry` serves the one that is attached until it is lost or the caller cancels, and of it
nothing is left then, no half-read frame and none that waited to be sent. Between two links `Pump.discard` keeps the tap
empty. Source: DESIGN sections 3 and 6.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Final

import trio

from sulla_trio.daemons.vm_lease import SHORTEST_REPLY, is_dhcp_reply
from sulla_trio.daemons.vm_trace import Tracer
from sulla_trio.errors import LocalError
from sulla_trio.link.endpoint import Endpoint
from sulla_trio.link.framed import FrameReader
from sulla_trio.link.uplink import Uplink

_TAP_GONE: Final = frozenset({errno.EBADFD, errno.EBADF, errno.ENODEV})
"""After `ip link delete eth0`. (EIO is an interface that is down, EINVAL a bad frame.)"""


class Pump:
    """Carries frames for `tap`, a non-blocking descriptor. Owns neither it nor a link.

    `takes_reply` is asked about each DHCP reply from the link: True, and the tap does not get it. `end` is told when the
    tap is gone, and is to cancel whoever is in `carry` or `discard`.
    """

    def __init__(
        self,
        tap: int,
        tracer: Tracer,
        *,
        strict: bool,
        end: Callable[[str], None],
    ) -> None:
        self._tap = tap
        self._tracer = tracer
        self._strict = strict
        self.takes_reply: Callable[[memoryview], bool] = _not_ours
        self._end = end
        self._uplink = Uplink(tap)
        self._link: Endpoint | None = None
        self._nursery: trio.Nursery | None = None
        self._reason = ""
        self.bytes_received = self.frames_received = self.frames_refused = 0

    @property
    def bytes_sent(self) -> int:
        """Bytes of the frames that were read from the tap or were our own, lengths not counted."""
        return self._uplink.bytes_sent

    def attach(self, link: Endpoint) -> None:
        """Make `link` the one that `carry` serves. Frames of our own may be queued for it from now on."""
        self._link = link
        self._uplink.attach(link)

    async def carry(self) -> str:
        """Serve the attached link, which stays open, until it is lost; how it was. Nothing is attached afterwards."""
        link, self._reason = self._link, ""
        if link is None:
            raise LocalError("nothing is attached")
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._tap_to_link)
                nursery.start_soon(self._link_to_tap, link)
        finally:
            self._nursery = self._link = None
            self._uplink.attach(None)
        return self._reason

    async def discard(self) -> None:
        """Read what the guest sends and drop it, until cancelled: what is minutes old is of no use to a new link."""
        self._uplink.attach(None)
        while True:
            if not self._read_tap(None):
                await trio.lowlevel.wait_readable(self._tap)
            self._uplink.flush()
            await trio.lowlevel.checkpoint()

    def send(self, frame: bytes) -> None:
        """A frame of our own for the link, behind what is queued there; dropped when there is no link or no room."""
        if not self._uplink.append(frame):
            return
        if self._tracer.enabled:
            self._tracer.sent(memoryview(frame))
        if self._nursery is not None:
            self._nursery.start_soon(self._drain)

    def _lose(self, reason: str) -> None:
        self._reason = self._reason or reason
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    def _read_tap(self, taken: list[memoryview] | None) -> int:
        try:
            return self._uplink.read_tap(taken)
        except OSError as error:
            self._end(f"reading packet from tap failed: {explain(error)}")
            return 0

    async def _tap_to_link(self) -> None:
        uplink, tracer = self._uplink, self._tracer
        while True:
            taken: list[memoryview] | None = [] if tracer.enabled else None
            # Frames of our own may be queued: they go first, and nothing is read before they are gone.
            if not uplink.queued and not self._read_tap(taken):
                await trio.lowlevel.wait_readable(self._tap)
                continue
            for frame in taken or ():
                tracer.sent(frame)
            try:
                sent = uplink.flush()
            except OSError as error:
                self._lose(f"writing packet to the socket failed: {explain(error)}")
                return
            if sent:
                await trio.lowlevel.checkpoint()
            else:
                await self._drain()

    async def _drain(self) -> None:
        try:
            await self._uplink.drain()
        except OSError as error:
            self._lose(f"writing packet to the socket failed: {explain(error)}")

    async def _link_to_tap(self, link: Endpoint) -> None:
        reader = FrameReader(poison=self._strict)
        while True:
            try:
                frames = reader.read(link)
            except BlockingIOError:
                await link.wait_readable()
                continue
            except OSError as error:
                self._lose(f"reading from the socket failed: {explain(error)}")
                return
            if frames is None:
                cut = f" inside a frame ({reader.partial} bytes of it)" if reader.partial else ""
                self._lose(f"end of stream{cut}")
                return
            if not self._deliver(frames):
                return
            await trio.lowlevel.checkpoint()

    def _deliver(self, frames: list[memoryview]) -> bool:
        """Write a batch to the tap; False: the tap is gone."""
        write, descriptor, takes_reply = os.write, self._tap, self.takes_reply
        tracing = self._tracer.enabled
        for frame in frames:
            if tracing:
                self._tracer.received(frame)
            # UDP to port 68 is looked at before the kernel sees it, which would answer with ICMP: nobody listens there.
            if len(frame) >= SHORTEST_REPLY and is_dhcp_reply(frame) and takes_reply(frame):
                continue
            try:
                self.bytes_received += write(descriptor, frame)
            except OSError as error:
                if error.errno in _TAP_GONE:
                    self._end(f"writing packet to tap failed: {explain(error)}")
                    return False
                self.frames_refused += 1  # EIO: the interface is down; it may come up again
        self.frames_received += len(frames)
        return True


def _not_ours(frame: memoryview) -> bool:
    return False


def explain(error: OSError) -> str:
    """The reason of `error` as it stands at a log line's end."""
    return (error.strerror or str(error)).lower()
