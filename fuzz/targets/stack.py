"""No train of frames makes the stack raise, and after its timers ran `poll_at` is not in the past.

The input is a train of frames, each a two-byte length in front. It goes in as it is, and again with the checksums of IPv4, TCP,
UDP and ICMP put right. Every frame is overwritten after `receive` returns, so a view that was kept shows.
"""

from __future__ import annotations

import random

from sulla_trio.config import network_config
from sulla_trio.netstack import events
from sulla_trio.netstack.stack import Stack
from sulla_trio.wire.inet import checksum, pseudo_sum

NETWORK = network_config()
WAKE_UPS = 300
DICTIONARY = (
    NETWORK.gateway_ip,
    NETWORK.guest_ip,
    NETWORK.host_ip,
    b"\x08\x00\x45\x00",
    b"\x08\x06\x00\x01",
    b"\x20\x00",
)


def put_right(frame: bytes) -> bytes:
    """`frame` with right checksums, where it has any."""
    out = bytearray(frame)
    size = (out[14] & 15) * 4 if len(out) >= 34 and out[12:14] == b"\x08\x00" else 0
    if size < 20 or len(out) < 14 + size:
        return frame
    out[24:26] = b"\0\0"
    out[24:26] = checksum(out[14 : 14 + size]).to_bytes(2, "big")
    start, end, protocol = 14 + size, 14 + int.from_bytes(out[16:18], "big"), out[23]
    at = start + {1: 2, 6: 16, 17: 6}.get(protocol, len(out))
    if end <= len(out) and at + 2 <= end:
        out[at : at + 2] = b"\0\0"
        initial = 0 if protocol == 1 else pseudo_sum(bytes(out[26:30]), bytes(out[30:34]), protocol, end - start)
        out[at : at + 2] = checksum(out[start:end], initial).to_bytes(2, "big")
    return bytes(out)


def answer(stack: Stack, now: float) -> None:
    """Take the events, and do with each what an owner may."""
    while (event := stack.next_event()) is not None:
        if isinstance(event, events.ConnectionRequest):
            if stack._pending.get(event.key) is not event:
                continue
            match event.local_port % 4:
                case 0:
                    stack.reject(event, now)
                case 1:
                    stack.unreachable(event, 1, now)
                case 2:
                    stack.drop(event)
                case _:
                    stack.accept(event, now)
        elif isinstance(event, events.Connected):
            event.connection.send(b"x" * min(5000, event.connection.send_room()), now)
        elif isinstance(event, events.Readable):
            while event.connection.receive(65_536, now):
                pass
        elif isinstance(event, events.PeerClosed):
            event.connection.shutdown(now)
        elif isinstance(event, events.EchoRequested):
            stack.send_echo_reply(event, event.payload, now)


def run(frames: list[bytes]) -> None:
    stack, now = Stack(NETWORK, random.Random(0)), 1.0
    for frame in frames:
        buffer = bytearray(frame)
        stack.receive(memoryview(buffer), frame[11] & 1, now)
        buffer[:] = b"\xdd" * len(buffer)
        answer(stack, now)
        assert all(len(headers) + len(payload) >= 14 for _, headers, payload in stack.frames_to_send(now))
        now += 0.01
    for _ in range(WAKE_UPS):
        deadline = stack.poll_at()
        if deadline is None:
            return
        now = max(now, deadline)
        stack.handle_timer(now)
        stack.frames_to_send(now)
        answer(stack, now)
        stack.frames_to_send(now)
        after = stack.poll_at()
        assert after is None or after > now, (after, now)


def fuzz_one(data: bytes) -> None:
    frames, offset = [], 0
    while offset + 2 <= len(data):
        end = offset + 2 + int.from_bytes(data[offset : offset + 2], "big")
        if end - offset - 2 >= 14:  # the least that a link hands on
            frames.append(data[offset + 2 : end])
        offset = end
    frames = [frame for frame in frames if len(frame) >= 14]
    run(frames)
    run([put_right(frame) for frame in frames])
