"""Goodput over round-trip time, loss and the bottleneck's buffer, as a table that is kept: a regression is a diff.

Everything is computed, nothing measured: the same stack gives the same table on every machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from sulla_trio.netstack.events import ConnectionRequest
from tools.simulate_lib.transfer import GUEST_IP, two_stacks
from tools.simulate_lib.wire_pair import Profile, WirePair

PAGE: Final = Path(__file__).parents[2] / "docs" / "goodput.md"
RATE: Final = 12_500_000
"""Bytes per second: 100 Mbit/s."""
SIZE: Final = 2 << 20
SEEDS: Final = 2
ROUND_TRIPS_MS: Final = (1, 20, 100)
LOSSES: Final = (0.0, 0.001, 0.01, 0.05)
BUFFERS_KIB: Final = (16, 64, 256)


class Reader:
    """A sink that takes everything."""

    def __init__(self) -> None:
        self.count = 0

    def try_write(self, view: memoryview) -> int:
        self.count += len(view)
        return len(view)


def goodput(round_trip: float, loss: float, buffer: int, seed: int) -> float:
    """Bytes per second of `SIZE` bytes from one stack to another, handshake included."""
    left, right = two_stacks(seed, 1500)
    wire = WirePair(left, right, Profile(loss=loss, delay=round_trip / 2, rate=RATE, buffer=buffer), seed)
    sender, reader = left.connect(GUEST_IP, 80, wire.now), Reader()
    start = wire.now

    def handle(stack: Any, event: Any) -> None:
        if isinstance(event, ConnectionRequest):
            stack.accept(event, wire.now).sink = reader
        elif event.connection is sender:
            while sender.bytes_out < SIZE and (size := sender.preferred_read()):
                sender.send(bytes(min(size, SIZE - sender.bytes_out)), wire.now)

    wire.handler = handle
    arrived = wire.run(lambda: reader.count == SIZE, limit=3600)
    return reader.count / (wire.now - start) if arrived else 0.0


def page() -> str:
    """The whole page of the documentation."""
    lines = [
        "# Goodput",
        "",
        f"Mbit/s of {SIZE >> 20} MiB between two of our stacks over a simulated wire of {RATE * 8 // 1_000_000} Mbit/s, MTU 1500,",
        f"mean of {SEEDS} seeds. Written by `tools/simulate --goodput`; a test compares it with the code.",
        "",
        "| round trip | loss | " + " | ".join(f"buffer {buffer} KiB" for buffer in BUFFERS_KIB) + " |",
        "|---|---|" + "---|" * len(BUFFERS_KIB),
    ]
    for milliseconds in ROUND_TRIPS_MS:
        for loss in LOSSES:
            cells = [
                sum(goodput(milliseconds / 1000, loss, buffer << 10, seed) for seed in range(SEEDS)) / SEEDS
                for buffer in BUFFERS_KIB
            ]
            rates = " | ".join(f"{cell * 8 / 1e6:.2f}" for cell in cells)
            lines.append(f"| {milliseconds} ms | {loss * 100:g} % | {rates} |")
    return "\n".join(lines) + "\n"
