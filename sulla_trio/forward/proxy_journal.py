"""What a port proxy tells of itself: its events, in the shape of host-switch's, and its flows.

Source: DESIGN section 5. Bytes are counted as the guest sees them: in is towards the upstream.
"""

from __future__ import annotations

from typing import Any, Final

import trio

from sulla_trio.services.events import EventLog
from sulla_trio.services.flows import Flow, FlowTable

SOURCE: Final = "wsl-proxy"


class ProxyJournal:
    """Events and flows of one proxy."""

    def __init__(self, events: EventLog) -> None:
        self.events = events
        self.flows = FlowTable()

    def listener(self, what: str, protocol: str, local: str, remote: str, **more: Any) -> None:
        """``forward.added``, ``forward.removed`` or ``forward.failed``."""
        self.events.emit(
            f"forward.{what}", local=local, remote=remote, protocol=protocol, owner=None, source=SOURCE, **more
        )

    def opened(self, protocol: str, local: str, remote: str, peer: str) -> Flow:
        """A client has come."""
        flow = self.flows.opened("forward", remote, peer, trio.current_time())
        self.events.emit("forward.opened", local=local, remote=remote, protocol=protocol, peer=peer, flow=flow.id)
        return flow

    def closed(self, protocol: str, local: str, flow: Flow, reason: str) -> None:
        """A client has gone."""
        self.flows.closed(flow, reason, trio.current_time())
        self.events.emit(
            "forward.closed",
            local=local,
            remote=flow.guest,
            protocol=protocol,
            peer=flow.remote,
            flow=flow.id,
            bytes_in=flow.bytes_in,
            bytes_out=flow.bytes_out,
            reason=flow.reason,
        )
