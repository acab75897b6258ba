"""A switch port: one link, its reader's nursery, its out-queue, and the one writer task that exists only while it is full."""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from sulla_trio.link.endpoint import Buffer, Endpoint
from sulla_trio.link.framed import OUT_QUEUE_HIGH, FrameWriter

log = logging.getLogger(__name__)


class Port:
    """One link on the switch. The flows of its guest are tasks of `nursery` and die with it.

    A stalled peer stalls only this port: its owner lets TCP send nothing more while it is `backlogged`, and does not read
    host sockets that feed it while it is `congested`; other frames queue up to `OUT_QUEUE_LIMIT`, then are dropped and
    counted. `on_drained` is called, and may queue more, each time a backlog is gone.
    """

    def __init__(
        self, port_id: int, endpoint: Endpoint, nursery: trio.Nursery, on_drained: Callable[[], None] = lambda: None
    ) -> None:
        self.id = port_id
        self.endpoint = endpoint
        self.nursery = nursery
        self.failure: OSError | None = None
        """Why the link broke, if writing found it out."""
        self._writer = FrameWriter(endpoint)
        self._on_drained = on_drained
        self._has_writer = False
        self._backlogged = False
        self._uncongested = trio.Event()

    @property
    def dropped(self) -> int:
        """Frames dropped because the out-queue was full."""
        return self._writer.dropped

    @property
    def backlogged(self) -> bool:
        """Whether the link has not taken all that was flushed."""
        return self._backlogged

    @property
    def congested(self) -> bool:
        return self._writer.queued > OUT_QUEUE_HIGH

    async def wait_uncongested(self) -> None:
        while self.congested:
            await self._uncongested.wait()
        await trio.lowlevel.checkpoint()

    def transmit(self, header: bytes, payload: Buffer = b"") -> bool:
        """Queue one frame; `flush` sends it. False: dropped."""
        return self._writer.queue(header, payload)

    def flush(self) -> None:
        """One non-blocking attempt to send what is queued; what remains gets the writer task."""
        if self._backlogged or self.failure is not None:
            return
        try:
            done = self._writer.flush()
        except OSError as error:
            self._fail(error)
            return
        if not done:
            self._backlogged = True
            if not self._has_writer:
                self._has_writer = True
                self.nursery.start_soon(self._drain)

    async def _drain(self) -> None:
        try:
            while self._backlogged:
                await self.endpoint.wait_writable()
                done = self._writer.flush()
                if not self.congested:
                    self._uncongested.set()
                    self._uncongested = trio.Event()
                if done:
                    self._backlogged = False
                    self._on_drained()
        except OSError as error:
            self._fail(error)
        finally:
            self._has_writer = False

    def _fail(self, error: OSError) -> None:
        self.failure = error
        self.nursery.cancel_scope.cancel()
