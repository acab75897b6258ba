"""The flow table: who talks to whom, how much, in which state, and why the lately closed ones ended.

The table keeps books only: it owns no connection. The owner of a flow adds to its counters in place and closes it
exactly once with one of `REASONS`. Source: DESIGN section 5.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final, Literal, TypeAlias, get_args

from sulla_trio.errors import LocalError
from sulla_trio.services.events import EventLog

Kind: TypeAlias = Literal["tcp", "udp", "icmp", "forward"]
"""``forward`` is a connection that came in by an exposed port; the others are the guest's own."""
Direction: TypeAlias = Literal["out", "in"]
Reason: TypeAlias = Literal[
    "eof",  # both directions ended in order
    "guest_reset",
    "host_reset",
    "refused",
    "unreachable",
    "timeout",
    "denied",
    "idle",
    "replaced",  # an older mapping made room for a newer one
    "aborted",
    "port_gone",  # the guest's link went away
    "sink_closed",  # the host socket takes no more
    "host_error",  # no socket, no descriptor: ours to mend
    "internal_error",
    "shutdown",
]
REASONS: Final[frozenset[str]] = frozenset(get_args(Reason))
KEPT_CLOSED: Final = 512
"""Lately closed flows kept for ``/flows``: a page load of a browser is some tens of them."""


class Flow:
    """One flow. `bytes_out` and `bytes_in` are payload bytes, seen from the guest; the owner adds to them in place."""

    __slots__ = (
        "bytes_in",
        "bytes_out",
        "closed_at",
        "direction",
        "guest",
        "id",
        "kind",
        "opened_at",
        "reason",
        "remote",
        "state",
    )

    def __init__(self, id: int, kind: Kind, guest: str, remote: str, direction: Direction, now: float) -> None:
        self.id = id
        """1, 2, 3..., never reused."""
        self.kind: Kind = kind
        self.guest = guest
        """``address:port`` text of the guest's end."""
        self.remote = remote
        """``address:port`` text of the other end, as the guest sees it (before NAT)."""
        self.direction: Direction = direction
        self.state = "opening"
        """The owner's word for where it stands (``dialling``, ``established``...); ``closed`` at last."""
        self.bytes_in = 0
        self.bytes_out = 0
        self.opened_at = now
        self.closed_at: float | None = None
        self.reason: str | None = None

    def as_dict(self, now: float) -> dict[str, Any]:
        """What ``/flows`` shows; `seconds` is the age of a live flow and the life of a closed one."""
        end = now if self.closed_at is None else self.closed_at
        return {
            "id": self.id,
            "kind": self.kind,
            "direction": self.direction,
            "guest": self.guest,
            "remote": self.remote,
            "state": self.state,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "seconds": round(end - self.opened_at, 3),
            "reason": self.reason,
        }


class FlowTable:
    """Live flows, and the last `keep` closed ones.

    The live ones are bounded by what they stand for (sockets, pending dials), not here. With an `EventLog` each opening
    and closing is an event ``flow.opened`` or ``flow.closed``; without one the table says nothing.
    """

    def __init__(self, events: EventLog | None = None, *, keep: int = KEPT_CLOSED) -> None:
        self._events = events
        self._live: dict[int, Flow] = {}
        self._closed: deque[Flow] = deque(maxlen=keep)
        self._last_id = 0

    def opened(self, kind: Kind, guest: str, remote: str, now: float, *, direction: Direction | None = None) -> Flow:
        """A new live flow. `direction` is ``in`` for a ``forward`` and ``out`` for the others unless given."""
        self._last_id += 1
        flow = Flow(self._last_id, kind, guest, remote, direction or ("in" if kind == "forward" else "out"), now)
        self._live[flow.id] = flow
        if self._events is not None:
            self._events.emit(
                "flow.opened", flow=flow.id, kind=kind, direction=flow.direction, guest=guest, remote=remote
            )
        return flow

    def closed(self, flow: Flow, reason: str, now: float) -> None:
        """End `flow`. Closing it again changes nothing: the first reason is the true one.

        Raises:
            LocalError: `reason` is not one of `REASONS`; the flow is closed all the same, as ``internal_error``.
        """
        if self._live.pop(flow.id, None) is None:
            return
        known = reason in REASONS
        flow.reason = reason if known else "internal_error"
        flow.state = "closed"
        flow.closed_at = now
        self._closed.append(flow)
        if self._events is not None:
            self._events.emit(
                "flow.closed",
                flow=flow.id,
                kind=flow.kind,
                direction=flow.direction,
                guest=flow.guest,
                remote=flow.remote,
                bytes_in=flow.bytes_in,
                bytes_out=flow.bytes_out,
                reason=flow.reason,
            )
        if not known:
            raise LocalError(f"flow {flow.id} closed for an unknown reason: {reason}")

    def __len__(self) -> int:
        """How many are live."""
        return len(self._live)

    def live(self) -> list[Flow]:
        """Live flows, oldest first."""
        return list(self._live.values())

    def lately_closed(self) -> list[Flow]:
        """Closed flows, the newest first."""
        return list(reversed(self._closed))

    def all(self, now: float) -> list[dict[str, Any]]:
        """`Flow.as_dict` of the live ones, oldest first, then of the closed ones, newest first."""
        return [flow.as_dict(now) for flow in (*self.live(), *self.lately_closed())]
