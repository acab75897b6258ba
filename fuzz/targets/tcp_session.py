"""Whatever a wire does to the frames between two stacks, delivered bytes are a prefix of sent bytes, and both go on.

The input is what happens, a byte at a time: byte 0 sets the mode (bit 0: the wire is hostile and puts checksums right) and the
sizes; then each frame in flight takes one byte, and more where that says so, for its fate (`Wire.fate`); 0 and the end of the
input deliver it. Held besides: SND.UNA <= SND.NXT, no exception, an orderly end means that every byte has arrived, and `poll_at`
is not in the past once the timers ran. A hostile wire may tell lies about bytes with right checksums: there only the rest holds.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from sulla_trio.config import GUEST_MAC, network_config, parse_ip
from sulla_trio.netstack import events
from sulla_trio.netstack.seqnum import MASK
from sulla_trio.netstack.stack import Stack
from sulla_trio.netstack.tcp import TcpConnection
from sulla_trio.wire.inet import checksum, pseudo_sum

GATEWAY = network_config()
GUEST = replace(GATEWAY, gateway_ip=GATEWAY.guest_ip, host_ip=parse_ip("192.168.127.253"), gateway_mac=GUEST_MAC)
DATA = (random.Random(1).randbytes(1 << 16), random.Random(2).randbytes(1 << 16))
HAPPENINGS = 600
"""Turns of the wire and of timers; a transfer of this size takes some tens when nothing is lost."""
LOSE, TWICE, LATE, DAMAGE, CUT, REPLAY, WAIT = range(1, 8)
DICTIONARY = (b"\x01\x01\x01", b"\x03\x03", b"\x04\x2f\x02", b"\x04\x26\xff", b"\x06\x06", b"\x07\xff")


def put_right(frame: bytearray) -> None:
    """Right checksums for what is IPv4 and TCP."""
    if len(frame) < 34 or frame[12:14] != b"\x08\x00":
        return
    start, end = 14 + (frame[14] & 15) * 4, 14 + int.from_bytes(frame[16:18], "big")
    if start < 34 or end > len(frame) or start + 20 > end:
        return
    frame[24:26] = b"\0\0"
    frame[24:26] = checksum(frame[14:start]).to_bytes(2, "big")
    frame[start + 16 : start + 18] = b"\0\0"
    initial = pseudo_sum(bytes(frame[26:30]), bytes(frame[30:34]), 6, end - start)
    frame[start + 16 : start + 18] = checksum(frame[start:end], initial).to_bytes(2, "big")


class End:
    """One stack with the program that uses it: it sends `data`, then closes, and reads all there is."""

    def __init__(self, stack: Stack, data: bytes, piece: int) -> None:
        self.stack = stack
        self.data = data
        self.given = 0
        self.got = bytearray()
        self.connection: TcpConnection | None = None
        self.over: str | None = "not yet"
        self._piece = piece

    def turn(self, now: float) -> list[bytes]:
        """Let the program answer what has happened; the frames that go out."""
        while (event := self.stack.next_event()) is not None:
            self._handle(event, now)
        frames = [headers + bytes(payload) for _, headers, payload in self.stack.frames_to_send(now)]
        if self.connection is not None:
            snd = self.connection.snd
            assert (snd.nxt - snd.una) & MASK < 1 << 31
            assert (snd.max - snd.una) & MASK < 1 << 31
        return frames

    def _handle(self, event: Any, now: float) -> None:
        match event:
            case events.ConnectionRequest():
                # A hostile wire may make one session two: the second is refused.
                if self.connection is None and self.stack._pending.get(event.key) is event:
                    self.connection = self.stack.accept(event, now)
                elif self.stack._pending.get(event.key) is event:
                    self.stack.reject(event, now)
            case events.Connected() | events.Writable() if event.connection is self.connection:
                self._push(event.connection, now)
            case events.Readable() if event.connection is self.connection:
                while data := event.connection.receive(self._piece, now):
                    self.got += data
            case events.Closed() if event.connection is self.connection:
                self.over = event.reason

    def _push(self, connection: TcpConnection, now: float) -> None:
        while self.given < len(self.data):
            size = min(connection.send_room(), self._piece)
            if not size:
                return
            connection.send(self.data[self.given : self.given + size], now)
            self.given = min(len(self.data), self.given + size)
        connection.shutdown(now)


class Wire:
    """Frames between two ends, in order but for what the input says."""

    def __init__(self, ends: tuple[End, End], script: Iterator[int], *, hostile: bool) -> None:
        self.ends = ends
        self.now = 1000.0
        self._script = script
        self._hostile = hostile
        self._flying: deque[tuple[End, bytes]] = deque()
        self._seen: deque[tuple[End, bytes]] = deque(maxlen=16)

    def next(self) -> int:
        return next(self._script, 0)

    def send(self) -> None:
        left, right = self.ends
        self._flying.extend((right, frame) for frame in left.turn(self.now))
        self._flying.extend((left, frame) for frame in right.turn(self.now))

    def fate(self, end: End, frame: bytes) -> None:
        """One byte for each frame: its low three bits."""
        self._seen.append((end, frame))
        match self.next() & 7:
            case n if n == LOSE:
                return
            case n if n == TWICE:
                self._flying.append((end, frame))
            case n if n == LATE:
                self._flying.append((end, frame))
                return
            case n if n == DAMAGE:
                frame = self._damaged(frame)
            case n if n == CUT:
                frame = frame[: max(14, len(frame) - self.next())]
            case n if n == REPLAY:
                self._flying.append(self._seen[self.next() % len(self._seen)])
            case n if n == WAIT:
                self.now += self.next() / 8
        buffer = bytearray(frame)
        end.stack.receive(memoryview(buffer), 0, self.now)
        buffer[:] = b"\xdb" * len(buffer)

    def _damaged(self, frame: bytes) -> bytes:
        out = bytearray(frame)
        # Behind the Ethernet header: no checksum covers that one, and it is the link's.
        at, value = 14 + self.next() % max(1, len(out) - 14), self.next()
        if at < len(out):
            out[at] ^= value
        if self._hostile:
            put_right(out)
        return bytes(out)

    def run(self) -> None:
        """Until nothing is left to happen, or for as long as `HAPPENINGS` takes."""
        for _ in range(HAPPENINGS):
            self.send()
            if self._flying:
                for _ in range(len(self._flying)):
                    self.fate(*self._flying.popleft())
                self.now += 0.01
                continue
            deadlines = [at for end in self.ends if (at := end.stack.poll_at()) is not None]
            if not deadlines:
                return
            self.now = max(self.now, min(deadlines))
            for end in self.ends:
                end.stack.handle_timer(self.now)
            self.send()
            for end in self.ends:
                after = end.stack.poll_at()
                assert after is None or after > self.now, (after, self.now)


def session(data: bytes, *, hostile: bool) -> None:
    sizes = data[0] if data else 0
    left = End(Stack(GATEWAY, random.Random(3)), DATA[0][: (sizes >> 1 & 7) * 2500], 4000)
    right = End(Stack(GUEST, random.Random(4)), DATA[1][: (sizes >> 4 & 7) * 2500], 1000 if sizes & 0x80 else 9000)
    wire = Wire((left, right), iter(data[1:]), hostile=hostile)
    left.connection = left.stack.connect(GUEST.gateway_ip, 80, wire.now)
    wire.run()
    if hostile:
        return
    for sender, receiver in ((left, right), (right, left)):
        assert sender.data.startswith(receiver.got), "bytes were lost, changed or made up"
        if sender.over is None and receiver.over is None:
            assert receiver.got == sender.data, "an orderly end with bytes missing"


def fuzz_one(data: bytes) -> None:
    session(data, hostile=bool(data) and bool(data[0] & 1))
