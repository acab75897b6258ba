"""``-trace-packets``: one line per packet in our codecs' format, with scapy's summary beside it where scapy is installed.

scapy (the extra ``trace``) is imported by nobody who does not trace, and then in a thread: it takes half a second, in which
lines come without it. Line shapes: specs/daemons.md section 3.4.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Final

import trio

from sulla_trio.wire import ethernet

log = logging.getLogger(__name__)

Summarize = Callable[[bytes], str]

_LAYERS: Final = ("inet", "dhcp", "dns")


class Tracer:
    """Whether packets are traced, and the lines of those that are."""

    def __init__(self, enabled: bool, load: Callable[[], Summarize | None] | None = None) -> None:
        self.enabled = enabled
        self._load = load or load_scapy
        self._asked = trio.Event()
        if enabled:
            self._asked.set()
        self._summarize: Summarize | None = None

    def toggle(self) -> None:
        """On or off, as SIGUSR1 has it."""
        self.enabled = not self.enabled
        self._asked.set()
        log.info("SIGUSR1 received: per-packet tracing is now %s", str(self.enabled).lower())

    async def run(self) -> None:
        """Load scapy when tracing is first asked for."""
        await self._asked.wait()
        self._summarize = await trio.to_thread.run_sync(self._load, abandon_on_cancel=True)

    def sent(self, frame: memoryview) -> None:
        """Trace a frame of the guest's."""
        self._trace("wrote packet (vm -> host %d): %s", frame)

    def received(self, frame: memoryview) -> None:
        """Trace a frame for the guest."""
        self._trace("read packet (host -> vm %d): %s", frame)

    def _trace(self, shape: str, frame: memoryview) -> None:
        extra = None
        if self._summarize is not None:
            try:
                extra = {"fields": {"scapy": self._summarize(bytes(frame))}}
            except Exception as error:  # it reads a stranger's bytes, by code that is not ours
                extra = {"fields": {"scapy": f"{type(error).__name__}"}}
        log.info(shape, len(frame), ethernet.format(frame), extra=extra)


def load_scapy() -> Summarize | None:
    """scapy's one-line dissection of a frame; None where it is not installed. Takes about half a second."""
    try:
        logging.getLogger("scapy").setLevel(logging.CRITICAL)
        for layer in _LAYERS:
            importlib.import_module(f"scapy.layers.{layer}")  # each binds itself to those below
        from scapy.layers.l2 import Ether
    except Exception as error:  # a broken installation is no reason to end
        log.debug("packets are traced without scapy: %s", error)
        return None
    return lambda frame: str(Ether(frame).summary())
