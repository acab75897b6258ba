"""One TCP connection: the public face of the machine (RFC 9293), without I/O and without a clock.

The stack owns connections. It finds one by key, hands it each segment (`segment_received`), calls `frames` for those
that marked themselves dirty and `handle_timer` when a deadline they armed has come. The owner (a relay, a stream)
uses the application verbs. Neither ever waits. The rest of the machine: `tcp_arrival` (the slow path of what comes),
`tcp_output` (what goes), `tcp_timers`, `tcp_lifecycle` (opening and ending), and the two halves `tcp_send.Sender` and
`tcp_recv.Receiver`.
"""

from __future__ import annotations

from typing import Final

from sulla_trio.errors import LocalError
from sulla_trio.netstack import tcp_arrival, tcp_lifecycle, tcp_output, tcp_timers
from sulla_trio.netstack.events import Readable, SinkClosed, Writable
from sulla_trio.netstack.seqnum import MASK, gt
from sulla_trio.netstack.tcp_block import TransmissionControlBlock
from sulla_trio.netstack.tcp_host import CLOSED, Sink, TcpHost
from sulla_trio.netstack.tcp_options import NEVER, TcpOptions
from sulla_trio.netstack.tcp_state import State, Trigger
from sulla_trio.wire.tcp import ACK, SYN, Segment

__all__ = ["CLOSED", "Sink", "TcpConnection", "TcpHost", "TcpOptions"]

READ_CHUNK: Final = 64 << 10
DRAIN_CHUNK: Final = 256 << 10
"""Most that one write offers to a sink."""
_PREDICTED: Final = 0x10
_UNPREDICTED: Final = 0x37
"""The flags header prediction looks at (all but PSH, ECE and CWR) must be ACK alone."""
_HALF: Final = 0x80000000
_ESTABLISHED: Final = State.ESTABLISHED
_MAY_CLOSE: Final = frozenset({State.ESTABLISHED, State.CLOSE_WAIT})


class TcpConnection(TransmissionControlBlock):
    """One connection between a guest ("remote") and an address it dialled, or ours ("local").

    Created by the stack alone, with `passive` or `active`. No verb waits, none raises for what the peer does.

    `sink` and `owner` are the owner's to set: without a sink in-order bytes are queued for `receive`; `owner` is
    opaque here, the driver dispatches events to it.
    """

    __slots__ = ()

    @classmethod
    def passive(
        cls,
        host: TcpHost,
        segment: Segment,
        remote_ip: bytes,
        local_ip: bytes,
        mac: bytes,
        port: int,
        *,
        isn: int,
        mss: int,
        now: float,
    ) -> TcpConnection:
        """Answer the SYN `segment`: a connection in SYN-RECEIVED whose SYN-ACK is the next frame.

        `isn` is our initial sequence number (RFC 6528), `mss` ours (MTU - 40). The caller puts it into its table.
        """
        remote, local = (remote_ip, segment.source_port), (local_ip, segment.destination_port)
        c = cls(host, remote, local, (mac, port), isn, mss, now)
        host.counters.tcp_passive_opens += 1
        tcp_lifecycle.transition(c, Trigger.PASSIVE_OPEN)
        tcp_lifecycle.synchronize(c, segment, now)
        tcp_lifecycle.transition(c, Trigger.RCV_SYN)
        c.syn_due = True
        c.touch()
        return c

    @classmethod
    def active(
        cls,
        host: TcpHost,
        remote_ip: bytes,
        remote_port: int,
        local_ip: bytes,
        local_port: int,
        mac: bytes | None,
        port: int,
        *,
        isn: int,
        mss: int,
        now: float,
    ) -> TcpConnection:
        """Open to a guest: a connection in SYN-SENT whose SYN is the next frame, once `mac` is known (else
        `resolved`)."""
        c = cls(host, (remote_ip, remote_port), (local_ip, local_port), (mac, port), isn, mss, now)
        host.counters.tcp_active_opens += 1
        tcp_lifecycle.transition(c, Trigger.ACTIVE_OPEN)
        c.snd.retransmit_at = now + c.snd.rtt.rto
        c.arm(c.snd.retransmit_at)
        c.syn_due = True
        c.touch()
        return c

    # The stack's verbs

    def resolved(self, mac: bytes, port: int) -> None:
        """ARP answered: what is due goes out."""
        self.mac, self.port = mac, port
        self.make_header(mac)
        self.touch()

    def segment_received(self, segment: Segment, view: memoryview, now: float) -> None:
        """Process one segment whose checksum was verified.

        The payload is ``view[segment.payload_offset:segment.payload_end]``, valid only during the call. Never raises.
        What most segments are is predicted: ESTABLISHED, in order, only ACK and PSH, inside the window, acknowledging
        nothing that was not sent. Everything else is `tcp_arrival`.
        """
        _, _, seq, ack, flags, window, _, start, end, _, _, _, blocks, ts_value, _ = segment
        rcv, snd = self.rcv, self.snd
        self.last_heard = now
        size = end - start
        acked = (ack - snd.una) & MASK
        if (
            self.state is not _ESTABLISHED
            or seq != rcv.nxt
            or flags & _UNPREDICTED != _PREDICTED
            or rcv._ranges is not None
            or blocks
            or snd.retransmits
            or acked > (snd.max - snd.una) & MASK
            or size > (rcv.edge - seq) & MASK
            or self.owner_closed
            or rcv.queued > rcv.capacity
        ):
            tcp_arrival.segment_arrives(self, segment, view, now)
            return
        if self.timestamps:
            if ts_value is None or (ts_value - rcv.ts_recent) & _HALF:
                tcp_arrival.segment_arrives(self, segment, view, now)
                return
            if rcv.last_ack == seq:  # RFC 7323 section 4.3
                rcv.ts_recent, rcv.ts_recent_at = ts_value, now
        if acked:
            self.acknowledged(acked, now)
            if window << snd.shift != snd.wnd:
                self.update_window(seq, ack, window)
            else:
                snd.wl1, snd.wl2 = seq, ack
        elif window << snd.shift != snd.wnd:
            self.update_window(seq, ack, window)
        elif not size and snd.max != snd.una:
            tcp_arrival.segment_arrives(self, segment, view, now)  # a duplicate ACK
            return
        if size:
            self.deliver(view[start:end], now)

    def reopens(self, segment: Segment) -> bool:
        """Whether `segment` is a SYN that may replace this connection (TIME-WAIT, newer timestamp or sequence number).

        RFC 9293 section 3.10.7.4 (MAY-2), RFC 6191. The stack asks for a SYN only; on True it calls `expire` and
        treats the SYN as new.
        """
        if self.state is not State.TIME_WAIT or not segment.flags & SYN or segment.flags & ACK:
            return False
        if self.timestamps and segment.ts_value is not None and segment.ts_value != self.rcv.ts_recent:
            return gt(segment.ts_value, self.rcv.ts_recent)
        return gt(segment.seq, self.rcv.nxt)

    def frames(self, now: float, out: list[tuple[int, bytes, bytes | memoryview]]) -> None:
        """Append what is due: (egress port, Ethernet + IPv4 + TCP header, payload)."""
        self.dirty = False
        if self.header is not None:
            tcp_output.due_frames(self, now, out)

    def handle_timer(self, now: float) -> None:
        """Act on every timer that is due and arm the next. Harmless when none is."""
        self.armed_at = NEVER
        tcp_timers.timers_due(self, now)
        at = self.poll_at()
        if at is not None and at < self.armed_at:
            self.arm(at)

    def expire(self) -> None:
        """End TIME-WAIT now, silently."""
        if self.state is State.TIME_WAIT:
            tcp_lifecycle.forget(self, Trigger.TWO_MSL)

    def fail(self, reason: str, now: float) -> None:
        """End at once without a word to the peer: its port is gone (``reset``), ARP had no answer (``timeout``)."""
        tcp_lifecycle.end(self, Trigger.ABORT, reason)
        self.expire()

    # The owner's verbs

    def send_room(self) -> int:
        """Bytes `send` takes now without exceeding the bound; 0 means that `Writable` will be raised."""
        snd = self.snd
        room = snd.bound(self.host.credit.send_share()) - snd.queued
        if room <= 0:
            self.blocked = True
            return 0
        return room

    def preferred_read(self) -> int:
        """How much to read at once for `send`: whole segments, about 64 KiB at most; 0: `Writable` will be raised."""
        room = self.send_room()
        mss = self.snd.mss
        if room >= mss:
            return (room if room < READ_CHUNK else max(READ_CHUNK, mss)) // mss * mss
        if not self.snd.queued:
            return room
        self.blocked = True
        return 0

    def send(self, data: bytes, now: float) -> None:
        """Queue `data`; it is kept by reference until acknowledged, and segments are slices of it.

        Ignored once the connection has ended.

        Raises:
            LocalError: after `shutdown`.
        """
        snd = self.snd
        if not data or self.state is State.CLOSED:
            return
        if snd.fin_queued:
            raise LocalError("send after shutdown")
        snd.enqueue(data)
        self.bytes_out += len(data)
        if not self.dirty:
            self.touch()

    def shutdown(self, now: float) -> None:
        """Send a FIN after what is queued; receiving goes on (half-close). Before the handshake is complete it waits
        for it."""
        snd = self.snd
        if snd.fin_queued or self.state is State.CLOSED:
            return
        snd.fin_queued = True
        if self.state in _MAY_CLOSE:
            tcp_lifecycle.transition(self, Trigger.CLOSE)
            self.touch()

    def close(self, now: float) -> None:
        """The owner is done with both directions: FIN after what is queued; bytes that still come are answered with
        RST.

        With received bytes unread it is an `abort` (RFC 9293 section 3.10.4, RFC 2525 section 2.17).
        """
        if self.rcv.queued or self.state is State.SYN_SENT:
            self.abort(now)
            return
        self.owner_closed = True
        self.shutdown(now)
        if self.state is State.FIN_WAIT_2:
            tcp_timers.start_life_timer(self, now)
        tcp_lifecycle.surface_end(self)

    def abort(self, now: float) -> None:
        """Send RST and forget everything (RFC 9293 section 3.10.5); `Closed` follows with reason ``aborted``."""
        tcp_lifecycle.end(self, Trigger.ABORT, "aborted", reset=self.state is not State.SYN_SENT)

    def receive(self, limit: int, now: float) -> bytes:
        """Take up to `limit` queued in-order bytes; b"" when there are none. Opens the window."""
        data = self.rcv.take(limit)
        if data:
            self._drained()
        return data

    def drain_to_sink(self, now: float) -> bool:
        """Offer queued bytes to the sink until it is full; True when nothing is queued any more."""
        rcv, sink = self.rcv, self.sink
        while rcv.queue is not None and sink is not None:
            with memoryview(rcv.queue) as whole, whole[:DRAIN_CHUNK] as part:
                taken, offered = sink.try_write(part), len(part)
            if taken < 0:
                rcv.discard(rcv.queued)
                self._sink_is_closed()
                return True
            if taken:
                rcv.discard(taken)
                self._drained()
            if taken < offered:
                break
        return not rcv.queued

    @property
    def eof_received(self) -> bool:
        """Whether the peer's FIN has come in order (bytes may still be queued before it)."""
        return self.rcv.fin_received

    @property
    def read_closed(self) -> bool:
        """Whether nothing will ever be read again: FIN and empty queue, or the end."""
        return not self.rcv.queued and (self.rcv.fin_received or self.state is State.CLOSED)

    # What the parts of the machine share

    def touch(self) -> None:
        """Something is due to be sent."""
        if not self.dirty:
            self.dirty = True
            self.host.mark_dirty(self)

    def arm(self, deadline: float) -> None:
        """Have `handle_timer` called at `deadline`, which is earlier than what is armed."""
        self.armed_at = deadline
        self.host.arm(self, deadline)

    def ack_at_once(self) -> None:
        self.rcv.ack_now = True
        self.touch()

    def challenge(self, now: float) -> None:
        """A challenge ACK, at a limited rate (RFC 5961 sections 3.2, 4.2, 5.2 and 7)."""
        if now - self.challenged_at >= self.host.options.challenge_interval:
            self.challenged_at = now
            self.ack_at_once()

    def send_reset(self, seq: int, ack: int, flags: int) -> None:
        """A RST that leaves the connection as it is."""
        self.reset = (seq, ack, flags)
        self.touch()

    def deliver(self, view: memoryview, now: float) -> int:
        """Hand in-order bytes to the sink or the queue; returns how many were taken: all, or none once the sink is
        closed."""
        size = len(view)
        rcv, sink = self.rcv, self.sink
        if sink is None or rcv.queued or self.sink_closed:
            if self.sink_closed:
                return 0
            rcv.enqueue(view)
        else:
            taken = sink.try_write(view)
            if taken == size:
                rcv.delivered += size
            elif taken < 0:
                self._sink_is_closed()
                return 0
            else:
                rcv.delivered += taken
                rcv.enqueue(view[taken:])
        if rcv.queued and not self.readable_raised:
            self.readable_raised = True
            self.host.raise_event(Readable(self))
        self.bytes_in += size
        rcv.position += size
        rcv.nxt = (rcv.nxt + size) & MASK
        unacked = rcv.unacked = rcv.unacked + size
        if unacked >= rcv.ack_threshold:
            rcv.ack_now = True
            if not self.dirty:
                self.touch()
        elif self.delack_at == NEVER:
            at = self.delack_at = now + self.host.options.delayed_ack
            if at < self.armed_at:
                self.arm(at)
        return size

    def _sink_is_closed(self) -> None:
        if not self.sink_closed:
            self.sink_closed = True
            self.host.raise_event(SinkClosed(self))

    def _drained(self) -> None:
        """The owner took queued bytes."""
        if not self.rcv.queued:
            self.readable_raised = False
            if self.rcv.fin_received:
                tcp_lifecycle.surface_end(self)
        if not self.rcv.fin_received and self.rcv.window_opened():
            self.ack_at_once()

    def acknowledged(self, count: int, now: float) -> None:
        """The peer acknowledged `count` new octets."""
        snd = self.snd
        snd.acknowledged(count, now)
        if snd.retransmit_at < self.armed_at:
            self.arm(snd.retransmit_at)
        if (snd.unsent or snd.recovering or (snd.fin_queued and not snd.fin_sent)) and not self.dirty:
            self.touch()
        if self.blocked:
            self._unblock()

    def update_window(self, seq: int, ack: int, window: int) -> None:
        """The peer's window, from a segment that is new enough."""
        snd = self.snd
        snd.update_window(seq, ack, window)
        if snd.unsent and not self.dirty:
            self.touch()
        if self.blocked:
            self._unblock()

    def _unblock(self) -> None:
        """Raise `Writable` when at least half of the bound is free again."""
        snd = self.snd
        if not snd.fin_queued and snd.queued * 2 <= snd.bound(self.host.credit.send_share()):
            self.blocked = False
            self.host.raise_event(Writable(self))
