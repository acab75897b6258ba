"""What a frame costs the stack itself: `Stack.receive`, a bulk transfer between two stacks, and super-frames taken apart and
put together for a link without offloads. No kernel takes part.

In instructions where the processor's counter may be read (the same on a busy machine), else in CPU seconds of the best of
several runs.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import platform
import random
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Final

from sulla_trio.config import GUEST_MAC, network_config
from sulla_trio.netstack import merging, segmentation
from sulla_trio.netstack.events import ConnectionRequest
from sulla_trio.netstack.stack import Stack
from sulla_trio.netstack.tcp import TcpConnection
from sulla_trio.netstack.tcp_header import HeaderTemplate
from sulla_trio.wire import virtio

_PERF_EVENT_OPEN: Final = {"x86_64": 298, "aarch64": 241}
HARDWARE_INSTRUCTIONS: Final = (0, 1)
TRANSFER: Final = {1500: 24 << 20, 65_000: 256 << 20}
"""Bytes moved at each MTU: about a second."""
FRAMES: Final = 30_000
SUPER_FRAMES: Final = 500
GUEST_IP: Final = IPv4Address("192.168.127.2").packed


def open_counter(kind: int, event: int) -> int | None:
    """A perf counter of this process in user mode, as an fd; None where there is none or it may not be read."""
    number = _PERF_EVENT_OPEN.get(platform.machine())
    if number is None:
        return None
    # struct perf_event_attr, first version (64 bytes); flags: exclude_kernel, exclude_hv
    attributes = struct.pack("IIQQQQQIIQ", kind, 64, event, 0, 0, 0, 1 << 5 | 1 << 6, 0, 0, 0)
    fd = ctypes.CDLL(None, use_errno=True).syscall(number, attributes, 0, -1, -1, 0)
    return None if fd < 0 else fd


def read_counter(fd: int) -> int:
    (value,) = struct.unpack("Q", os.read(fd, 8))
    return int(value)


class Cost:
    """The least of several runs, in `unit`."""

    def __init__(self) -> None:
        self._fd = open_counter(*HARDWARE_INSTRUCTIONS)
        self.unit = "s" if self._fd is None else "instructions"

    def now(self) -> float:
        return time.process_time() if self._fd is None else float(read_counter(self._fd))

    def least(self, prepare: Callable[[], Callable[[], int]], repeats: int) -> tuple[float, int]:
        """(cost, frames) of the cheapest run of what `prepare` returns, which itself returns how many frames it handled."""
        runs = []
        for _ in range(repeats):
            run = prepare()
            gc.collect()
            gc.disable()
            before = self.now()
            frames = run()
            runs.append((self.now() - before, frames))
            gc.enable()
        return min(runs)


class CountingSink:
    """Takes everything."""

    def __init__(self) -> None:
        self.count = 0

    def try_write(self, view: memoryview) -> int:
        self.count += len(view)
        return len(view)


class Pair:
    """A gateway's stack and a guest's, one connection between them."""

    def __init__(self, mtu: int) -> None:
        config = network_config(mtu=mtu)
        guest = replace(
            config, gateway_ip=GUEST_IP, host_ip=IPv4Address("192.168.127.253").packed, gateway_mac=GUEST_MAC
        )
        self.left, self.right = Stack(config, random.Random(1)), Stack(guest, random.Random(2))
        self.now = 1000.0
        self.sender = self.left.connect(GUEST_IP, 80, self.now)
        self.receiver: TcpConnection | None = None
        for _ in range(6):
            self.exchange()
        assert self.receiver is not None
        self.sink = self.receiver.sink = CountingSink()

    def exchange(self) -> int:
        """Each side's frames to the other, once; how many."""
        frames = 0
        for stack, other in ((self.left, self.right), (self.right, self.left)):
            batch = stack.frames_to_send(self.now)
            frames += len(batch)
            for _, header, payload in batch:
                other.receive(memoryview(header + payload), 0, self.now)
            while (event := other.next_event()) is not None:
                if isinstance(event, ConnectionRequest):
                    self.receiver = other.accept(event, self.now)
        self.now += 0.0001
        return frames


def bulk_transfer(mtu: int) -> Callable[[], int]:
    """`TRANSFER` bytes from left to right."""
    pair, size = Pair(mtu), TRANSFER[mtu]
    data = random.Random(3).randbytes(64 << 10)

    def run() -> int:
        frames = 0
        while pair.sink.count < size:
            while (room := pair.sender.preferred_read()) and pair.sender.bytes_out < size:
                pair.sender.send(data[:room], pair.now)
            frames += pair.exchange()
        return frames

    return run


def receive_only() -> Callable[[], int]:
    """At least `FRAMES` full segments in order into one stack, acknowledged per batch."""
    pair = Pair(1500)
    batches: list[list[memoryview]] = []
    while sum(map(len, batches)) < FRAMES:
        if room := pair.sender.preferred_read():
            pair.sender.send(bytes(room), pair.now)
        batch = [memoryview(header + payload) for _, header, payload in pair.left.frames_to_send(pair.now)]
        batches.append(batch)
        for frame in batch:
            pair.right.receive(frame, 0, pair.now)
        for _, header, payload in pair.right.frames_to_send(pair.now):
            pair.left.receive(memoryview(header + payload), 0, pair.now)
    fresh = Pair(1500)  # of the same seeds, so the frames are for it too

    def run() -> int:
        receive = fresh.right.receive
        for batch in batches:
            for frame in batch:
                receive(frame, 0, fresh.now)
            fresh.right.frames_to_send(fresh.now)
        assert fresh.sink.count == pair.sink.count
        return sum(map(len, batches))

    return run


def super_frame() -> tuple[memoryview, virtio.Virtio]:
    """A TCP segment of 64 KiB with timestamps, to be cut for an MTU of 1500, and its virtio-net header."""
    config = network_config()
    template = HeaderTemplate(config.gateway_mac, GUEST_MAC, config.gateway_ip, 80, GUEST_IP, 50_000)
    payload = random.Random(4).randbytes(45 * 1448)
    frame = bytearray(template.stamped(1, 1, 0x10, 512, payload, 1, 1) + payload)
    return memoryview(frame), virtio.Virtio(virtio.NEEDS_CSUM, virtio.GSO_TCPV4, 66, 1448, 34, virtio.TCP_CSUM_OFFSET)


def segment_only() -> Callable[[], int]:
    """Super-frames into trains; counted are the frames of the trains."""
    frame, header = super_frame()

    def run() -> int:
        for _ in range(SUPER_FRAMES):
            pieces = segmentation.for_plain_link(frame, header)
        return SUPER_FRAMES * len(pieces)

    return run


def merge_only() -> Callable[[], int]:
    """Trains into super-frames; counted are the frames of the trains."""
    frames = [
        memoryview(bytes(headers) + bytes(payload)) for headers, payload in segmentation.for_plain_link(*super_frame())
    ]

    def run() -> int:
        for _ in range(SUPER_FRAMES):
            (whole,) = merging.merge(frames)
        assert len(whole) == 1 + len(frames)
        return SUPER_FRAMES * len(frames)

    return run


def main(argv: list[str]) -> None:
    """Print one line per measure."""
    parser = argparse.ArgumentParser(prog="tools/bench core", description="The cost of a frame in the stack itself.")
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args(argv).repeats
    cost = Cost()
    measures: list[tuple[str, Callable[[], Callable[[], int]]]] = [
        ("receive, MTU 1500", receive_only),
        ("transfer, MTU 1500", lambda: bulk_transfer(1500)),
        ("transfer, MTU 65000", lambda: bulk_transfer(65_000)),
        ("segment, MTU 1500", segment_only),
        ("merge, MTU 1500", merge_only),
    ]
    for name, prepare in measures:
        spent, frames = cost.least(prepare, repeats)
        each = f"{spent / frames * 1e6:8.3f} us" if cost.unit == "s" else f"{spent / frames:8.0f} instructions"
        rate = f", {frames / spent:9,.0f} frames/s" if cost.unit == "s" else ""
        print(f"{name:20} {each} a frame{rate} ({frames:,} frames, least of {repeats} runs)", flush=True)
