"""A scripted peer that reads like tcpdump: ``peer.send(SYN, seq=100)``, ``peer.expect(SYN | ACK, ack=101)``.

It is the guest of a `BareStack`. Sequence numbers are relative: `send` counts from the peer's initial number, `expect` and
``ack=`` from the stack's, so that the first byte of data is 1 on both sides; ``absolute`` numbers never appear in a test.
"""

from __future__ import annotations

from math import inf
from typing import Any, TypeVar

from sulla_trio.netstack.tcp import TcpConnection, TcpOptions
from sulla_trio.netstack.tcp_state import State
from sulla_trio.wire import inet, ipv4, tcp
from tests.support.bare_stack import GATEWAY_IP, GATEWAY_MAC, GUEST_IP, GUEST_MAC, BareStack

MASK = 0xFFFFFFFF
E = TypeVar("E")
ANY: Any = object()


class Peer:
    """One connection's other end. `now` moves only with `wait`."""

    def __init__(
        self, *, options: TcpOptions | None = None, mss: int = 1460, irs: int = 0xFFFFFF00, iss: int = 0xFFFFF000
    ) -> None:
        self.stack = BareStack(options or TcpOptions(), mss=mss, isn=iss)
        self.irs, self.iss = irs, iss
        self.now = 50.0
        self.seq = self.ack = 0
        self.window = 65_535
        self.local_port = 80
        self.timestamps: tuple[int, int] | None = None
        self.sent: list[tcp.Segment] = []
        self.payloads: list[bytes] = []
        self.sent_at: list[float] = []
        self.events: list[Any] = []
        self._connection: TcpConnection | None = None

    @property
    def connection(self) -> TcpConnection:
        if self._connection is None:
            self._connection = self.stack.accepted[0]
        return self._connection

    @property
    def state(self) -> State:
        return self.connection.state

    # Sending

    def send(
        self,
        flags: int = tcp.ACK,
        data: bytes = b"",
        *,
        seq: int | None = None,
        ack: int | None = None,
        window: int | None = None,
        options: bytes = b"",
    ) -> None:
        """One segment to the stack. By default it goes on where the last one ended and acknowledges all that was seen."""
        seq = self.seq if seq is None else seq
        ack = self.ack if ack is None else ack
        if self.timestamps is not None and not options:
            options = tcp.emit_options(timestamps=self.timestamps)
        header = tcp.emit(
            GUEST_IP,
            40_000,
            GATEWAY_IP,
            self.local_port,
            (self.irs + seq) & MASK,
            (self.iss + ack) & MASK if flags & tcp.ACK else 0,
            flags,
            self.window if window is None else window,
            data,
            options=options,
        )
        datagram = header + data
        frame = bytearray(
            GATEWAY_MAC
            + GUEST_MAC
            + b"\x08\0"
            + ipv4.emit(GUEST_IP, GATEWAY_IP, inet.IPPROTO_TCP, len(datagram))
            + datagram
        )
        self.seq = max(self.seq, seq + len(data) + (flags & tcp.SYN != 0) + (flags & tcp.FIN))
        self.stack.receive(memoryview(frame), 0, self.now)
        frame[:] = b"\xdb" * len(frame)

    def wait(self, seconds: float) -> None:
        """Let time pass, with every timer at its moment. What is sent meanwhile waits for `expect`."""
        self._collect()
        end = self.now + seconds
        while (at := self.stack.poll_at() or inf) <= end:
            self.now = max(self.now, at)
            self.stack.handle_timer(self.now)
            self._collect()
        self.now = end

    # Receiving

    def _collect(self) -> None:
        for _, header, payload in self.stack.frames_to_send(self.now):
            frame = header + bytes(payload)
            assert frame[:14] == GUEST_MAC + GATEWAY_MAC + b"\x08\0"
            ip = ipv4.parse(frame, 14)
            assert (ip.source, ip.destination, ip.total_length) == (GATEWAY_IP, GUEST_IP, len(frame) - 14)
            segment = tcp.parse(frame, 34, len(frame), GATEWAY_IP, GUEST_IP)
            self.sent.append(segment)
            self.sent_at.append(self.now)
            self.payloads.append(frame[segment.payload_offset :])
        while (event := self.stack.next_event()) is not None:
            self.events.append(event)

    def expect(
        self, flags: int | None = None, data: bytes | None = None, *, seq: Any = ANY, ack: Any = ANY, window: Any = ANY
    ) -> tcp.Segment:
        """The next segment of the stack, which must have these flags (PSH does not matter) and numbers."""
        self._collect()
        assert self.sent, "nothing was sent"
        segment, payload = self.sent.pop(0), self.payloads.pop(0)
        text = tcp.format(segment)
        relative = (segment.seq - self.iss) & MASK
        if flags is not None:
            assert segment.flags & ~tcp.PSH == flags & ~tcp.PSH, text
        if data is not None:
            assert payload == data, text
        assert seq is ANY or relative == seq, f"seq {relative}, not {seq}: {text}"
        if ack is not ANY:
            assert (segment.ack - self.irs) & MASK == ack, f"ack {(segment.ack - self.irs) & MASK}, not {ack}: {text}"
        assert window is ANY or segment.window == window, text
        end = relative + len(payload) + (segment.flags & tcp.SYN != 0) + (segment.flags & tcp.FIN)
        if not segment.flags & tcp.RST and relative < 1 << 31:
            self.ack = max(self.ack, end)
        return segment

    def times(self, seconds: float) -> list[float]:
        """When, in the next `seconds` and counted from now, the stack sends a segment; they are not kept."""
        self._collect()
        start, before = self.now, len(self.sent_at)
        self.wait(seconds)
        count = len(self.sent_at) - before
        del self.sent[len(self.sent) - count :], self.payloads[len(self.payloads) - count :]
        return [round(at - start, 6) for at in self.sent_at[before:]]

    def expect_nothing(self) -> None:
        self._collect()
        assert not self.sent, [tcp.format(segment) for segment in self.sent]

    def event(self, kind: type[E]) -> E:
        """The next event, which must be of that kind."""
        self._collect()
        assert self.events, f"no event, expected {kind.__name__}"
        event = self.events.pop(0)
        assert isinstance(event, kind), event
        return event

    def no_event(self) -> None:
        self._collect()
        assert not self.events, self.events


class CollectingSink:
    """Takes up to `room` bytes more; CLOSED once `closed`."""

    def __init__(self, room: float = inf) -> None:
        self.room, self.closed = room, False
        self.data = bytearray()

    def try_write(self, view: memoryview) -> int:
        if self.closed:
            return -1
        count = int(min(self.room, len(view)))
        self.data += view[:count]
        self.room -= count
        return count


# One constructor per state.


def listening(offer: bytes = b"", **arguments: Any) -> Peer:
    """The stack has had our SYN: SYN-RECEIVED, its SYN-ACK not yet looked at."""
    peer = Peer(**arguments)
    peer.send(tcp.SYN, seq=0, options=offer)
    return peer


def established(offer: bytes = b"", **arguments: Any) -> Peer:
    """Opened by the peer; every event and segment of the handshake consumed."""
    peer = listening(offer or tcp.emit_options(mss=1460), **arguments)
    answer = peer.expect(tcp.SYN | tcp.ACK, seq=0, ack=1)
    if answer.ts_value is not None:
        peer.timestamps = (1000, answer.ts_value)
    peer.send()
    peer._collect()
    peer.events.clear()
    assert peer.state is State.ESTABLISHED
    return peer


def syn_sent(**arguments: Any) -> Peer:
    """Opened by the stack; its SYN is the next segment."""
    peer = Peer(**arguments)
    peer._connection = peer.stack.connect(GUEST_IP, 40_000, peer.now, local_port=80)
    return peer


def close_wait(**arguments: Any) -> Peer:
    peer = established(**arguments)
    peer.send(tcp.FIN | tcp.ACK)
    peer.expect(tcp.ACK, ack=2)
    peer.events.clear()
    assert peer.state is State.CLOSE_WAIT
    return peer


def last_ack(**arguments: Any) -> Peer:
    peer = close_wait(**arguments)
    peer.connection.shutdown(peer.now)
    peer.expect(tcp.FIN | tcp.ACK, seq=1)
    assert peer.state is State.LAST_ACK
    return peer


def fin_wait_1(**arguments: Any) -> Peer:
    peer = established(**arguments)
    peer.connection.shutdown(peer.now)
    peer.expect(tcp.FIN | tcp.ACK, seq=1)
    assert peer.state is State.FIN_WAIT_1
    return peer


def fin_wait_2(**arguments: Any) -> Peer:
    peer = fin_wait_1(**arguments)
    peer.send()
    assert peer.state is State.FIN_WAIT_2
    return peer


def closing(**arguments: Any) -> Peer:
    peer = fin_wait_1(**arguments)
    peer.send(tcp.FIN | tcp.ACK, ack=1)
    peer.expect(tcp.ACK, ack=2)
    peer.events.clear()
    assert peer.state is State.CLOSING
    return peer


def time_wait(**arguments: Any) -> Peer:
    peer = fin_wait_2(**arguments)
    peer.send(tcp.FIN | tcp.ACK)
    peer.expect(tcp.ACK, ack=2)
    peer.events.clear()
    assert peer.state is State.TIME_WAIT
    return peer
