"""The transmission control block (RFC 9293 section 3.3.1): what is remembered about one connection."""

from __future__ import annotations

from typing import Any

from sulla_trio.netstack.seqnum import MASK
from sulla_trio.netstack.tcp_header import HeaderTemplate
from sulla_trio.netstack.tcp_host import Sink, TcpHost
from sulla_trio.netstack.tcp_options import NEVER
from sulla_trio.netstack.tcp_recv import Receiver
from sulla_trio.netstack.tcp_send import Sender
from sulla_trio.netstack.tcp_state import State


class TransmissionControlBlock:
    """The variables of a connection and its two halves; what happens to them is in `TcpConnection` and the ``tcp_*``
    files.

    `key` is remote_ip(4) local_ip(4) remote_port(2) local_port(2), as the guest's own segments carry them. Frames go to
    `mac` on switch port `port` (None and -1 until resolved). `error` is the reason that `Closed` had. `bytes_in` and
    `bytes_out` count payload taken from the guest and given to `send`. Deadlines are seconds of the stack's clock.
    """

    __slots__ = (
        "armed_at",
        "blocked",
        "bytes_in",
        "bytes_out",
        "challenged_at",
        "closed_raised",
        "delack_at",
        "dirty",
        "eof_raised",
        "error",
        "header",
        "host",
        "key",
        "last_heard",
        "life_at",
        "local_ip",
        "local_port",
        "mac",
        "owner",
        "owner_closed",
        "port",
        "probe",
        "probed_at",
        "rcv",
        "readable_raised",
        "remote_ip",
        "remote_port",
        "reset",
        "sack",
        "sent_batch",
        "sink",
        "sink_closed",
        "snd",
        "state",
        "syn_due",
        "timestamps",
        "ts_offset",
        "unanswered",
    )

    def __init__(
        self,
        host: TcpHost,
        remote: tuple[bytes, int],
        local: tuple[bytes, int],
        route: tuple[bytes | None, int],
        isn: int,
        mss: int,
        now: float,
    ) -> None:
        self.host = host
        self.remote_ip, self.remote_port = remote
        self.local_ip, self.local_port = local
        self.key = remote[0] + local[0] + remote[1].to_bytes(2, "big") + local[1].to_bytes(2, "big")
        self.mac, self.port = route
        self.state = State.CLOSED
        self.sink: Sink | None = None
        self.owner: Any = None
        self.error: str | None = None
        self.bytes_in = self.bytes_out = 0
        self.snd = Sender(host.options, isn, min(mss, host.path_mss(remote[0])))
        self.rcv = Receiver(host.options, host.credit, mss)
        self.header: HeaderTemplate | None = None
        self.timestamps = self.sack = True
        self.ts_offset = isn * 2_654_435_761 & MASK  # RFC 7323 section 7.1: not the same clock for everybody
        self.last_heard = self.probed_at = now
        self.challenged_at = -NEVER
        self.unanswered = 0
        self.sent_batch = -1
        """The batch in which something that can be lost (not a pure ACK) was sent last."""
        self.delack_at = self.life_at = self.armed_at = NEVER
        self.syn_due = self.probe = False
        self.reset: tuple[int, int, int] | None = None
        """(seq, ack, flags) of a RST that is due."""
        self.dirty = self.blocked = self.readable_raised = self.eof_raised = self.closed_raised = False
        self.owner_closed = self.sink_closed = False
        if self.mac is not None:
            self.make_header(self.mac)

    def make_header(self, mac: bytes) -> None:
        """The route is known: prepare the constant part of every frame."""
        self.header = HeaderTemplate(
            self.host.gateway_mac, mac, self.local_ip, self.local_port, self.remote_ip, self.remote_port
        )

    def poll_at(self) -> float | None:
        """When `handle_timer` wants to be called; None: no timer runs."""
        at = min(self.snd.retransmit_at, self.delack_at, self.life_at)
        return None if at == NEVER else at
