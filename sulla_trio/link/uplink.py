"""Frames on their way from the tap to the link: one buffer is the batch, the framing and the out-queue.

Each frame is read behind its two bytes of length, so a batch is contiguous and goes out in one send; what the link does
not take stays where it is, and no more is read from the tap until it is gone. That bounds the queue by construction: the
kernel's own queue on the tap is the one that grows, and drops. Source: DESIGN section 3, specs/daemons.md section 2.1.
"""

from __future__ import annotations

import os
from typing import Final

import trio

from sulla_trio.link.endpoint import Endpoint
from sulla_trio.wire import framing

BATCH_FRAMES: Final = 64
BATCH_BYTES: Final = 1 << 20
"""Read in one go: long enough to pay for a wake-up, short enough for the other direction to get its turn."""
EXTRA_FRAMES: Final = 4
"""Frames of our own (DHCP) that fit behind a full batch."""
_SLOT: Final = framing.PREFIX_LENGTH + framing.MAX_FRAME


class Uplink:
    """The way out of one tap onto one link at a time. Owns neither.

    Without a link what is read is dropped.
    """

    __slots__ = ("_buffer", "_end", "_endpoint", "_start", "_tap", "_view", "_waiting", "bytes_sent", "frames_sent")

    def __init__(self, tap: int, endpoint: Endpoint | None = None) -> None:
        self._tap = tap
        self._endpoint = endpoint
        self._buffer = bytearray(BATCH_BYTES + _SLOT + EXTRA_FRAMES * _SLOT)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._waiting = trio.Lock()
        self.frames_sent = self.bytes_sent = 0

    def attach(self, endpoint: Endpoint | None) -> None:
        """From now on to `endpoint`, from a frame's beginning: what was queued is dropped. Nobody may be in `drain`."""
        self._endpoint = endpoint
        self._start = self._end = 0

    @property
    def queued(self) -> int:
        """Bytes that the link has not taken yet, lengths included."""
        return self._end - self._start

    def read_tap(self, taken: list[memoryview] | None = None) -> int:
        """Read frames until the tap has none or the batch is full; how many. Only while nothing is queued.

        Views of them are appended to `taken` where it is given; they are valid until the next call.

        Raises:
            OSError: the tap is gone.
        """
        tap, view, buffer, readv = self._tap, self._view, self._buffer, os.readv
        begin = end = self._end
        count = 0
        while count < BATCH_FRAMES and end < BATCH_BYTES:
            try:
                length = readv(tap, (view[end + 2 : end + _SLOT],))
            except BlockingIOError:
                break
            buffer[end] = length & 0xFF
            buffer[end + 1] = length >> 8
            if taken is not None:
                taken.append(view[end + 2 : end + 2 + length])
            end += 2 + length
            count += 1
        self._end = end
        self.frames_sent += count
        self.bytes_sent += end - begin - 2 * count
        return count

    def append(self, frame: bytes) -> bool:
        """Queue a frame of our own behind what is there; False: no room or no link, dropped."""
        if self._endpoint is None:
            return False
        end = self._end + framing.PREFIX_LENGTH + len(frame)
        if end > len(self._buffer):
            return False
        self._buffer[self._end : end] = framing.prefix(len(frame)) + frame
        self._end = end
        self.frames_sent += 1
        self.bytes_sent += len(frame)
        return True

    def flush(self) -> bool:
        """One attempt to send what is queued (without a link: it is dropped). True when nothing is left.

        Raises:
            OSError: the link is broken.
        """
        start, end, endpoint = self._start, self._end, self._endpoint
        while endpoint is not None and start < end:
            try:
                start += endpoint.send_gathered([self._view[start:end]])
            except BlockingIOError:
                self._start = start
                return False
        self._start = self._end = 0
        return True

    async def drain(self) -> None:
        """Wait until nothing is queued. Cancellation leaves the rest queued. Raises OSError as `flush`."""
        async with self._waiting:  # one waiter per direction
            while not self.flush() and self._endpoint is not None:
                await self._endpoint.wait_writable()
