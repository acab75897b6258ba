"""Frames over an endpoint in the legacy framing: many frames in one `recv_into`, many frames in one gathered send.

`FrameReader` and `FrameWriter` never wait; the owner of the link does. Source: specs/daemons.md section 2, DESIGN section 3.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from sulla_trio.link.endpoint import MAX_BUFFERS, Buffer, Endpoint
from sulla_trio.wire import framing

RECEIVE_BUFFER: Final = 512 << 10
"""Bytes: eight of the largest frames, so that one recv drains what a saturated peer queued meanwhile."""
OUT_QUEUE_LIMIT: Final = 4 << 20
"""Bytes queued for one link before whole frames are dropped: one receive window of the largest flow."""
OUT_QUEUE_HIGH: Final = 512 << 10
"""Bytes queued beyond which the owner stops reading what feeds the link: back-pressure long before a drop."""
POISON: Final = 0xDB


class FrameReader:
    """Reads whole frames from an endpoint into one linear buffer.

    A view that `read` returned is valid until the next `read`. With `poison` the consumed part is overwritten with 0xDB
    before that, so that a view kept too long is found by the first test that looks at it.
    """

    __slots__ = ("_buffer", "_end", "_poison", "_start", "_view", "skipped")

    def __init__(self, *, poison: bool = False, size: int = RECEIVE_BUFFER) -> None:
        self._buffer = bytearray(size)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._poison = poison
        self.skipped = 0
        """Frames whose length was below an Ethernet header: passed over, the stream stays in step."""

    def read(self, endpoint: Endpoint) -> list[memoryview] | None:
        """The whole frames that one `recv_into` completed (maybe none); None at end of stream.

        Raises:
            BlockingIOError: nothing there now.
            OSError: the connection is broken.
        """
        start, end = self._start, self._end
        if self._poison and start:
            self._buffer[:start] = bytes((POISON,)) * start
        if start == end:
            start = end = 0
        elif len(self._buffer) - end < framing.MAX_FRAME + framing.PREFIX_LENGTH:
            self._view[: end - start] = bytes(self._view[start:end])
            start, end = 0, end - start
        self._start, self._end = start, end
        count = endpoint.recv_into(self._view[end:])
        if not count:
            return None
        end += count
        frames: list[memoryview] = []
        self._start, skipped = framing.split(self._view, start, end, frames)
        self._end = end
        self.skipped += skipped
        return frames

    @property
    def partial(self) -> int:
        """Bytes of a frame that has begun and not ended: more than 0 at end of stream is a cut link."""
        return self._end - self._start


class FrameWriter:
    """The bounded out-queue of one link. A frame whose first byte is on the wire is finished or the link is closed."""

    __slots__ = ("_endpoint", "_pending", "dropped", "queued")

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._pending: deque[Buffer] = deque()
        self.queued = 0
        self.dropped = 0

    def queue(self, header: bytes, payload: Buffer = b"") -> bool:
        """Queue one frame, given in two parts that nobody changes until it is sent. False: full, dropped, counted."""
        length = len(header) + len(payload)
        if self.queued + length > OUT_QUEUE_LIMIT:
            self.dropped += 1
            return False
        self._pending.append(framing.prefix(length) + header)
        if payload:
            self._pending.append(payload)
        self.queued += length + framing.PREFIX_LENGTH
        return True

    def flush(self) -> bool:
        """One attempt to send all that is queued, as few calls as the kernel allows. True when nothing is left.

        Raises:
            OSError: the connection is broken.
        """
        pending = self._pending
        while pending:
            buffers = list(pending) if len(pending) <= MAX_BUFFERS else [pending[i] for i in range(MAX_BUFFERS)]
            try:
                sent = self._endpoint.send_gathered(buffers)
            except BlockingIOError:
                return False
            self.queued -= sent
            if not self.queued:
                pending.clear()
                return True
            for buffer in buffers:
                if sent < len(buffer):
                    break
                sent -= len(buffer)
                pending.popleft()
            if sent:
                pending[0] = memoryview(pending[0])[sent:]
        return True

    async def drain(self) -> None:
        """Wait until all that is queued is sent. Cancellation leaves the rest queued. Raises OSError as `flush`."""
        while not self.flush():
            await self._endpoint.wait_writable()
