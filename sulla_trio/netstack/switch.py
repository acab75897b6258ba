"""The learning switch: which ports a frame leaves by (DESIGN section 3; specs/gvproxy.md section 4.2)."""

from __future__ import annotations

from struct import Struct
from typing import Final

from sulla_trio.netstack.counters import Counters
from sulla_trio.wire.control import ETHERTYPE as CONTROL
from sulla_trio.wire.inet import Buffer

CAM_LIMIT: Final = 4096
"""MACs remembered: far more than a VM with containers shows, and 400 KB at most under a flood of forged ones."""
MAX_MOVES: Final = 256
"""MACs whose last move is remembered; a guest that forges its neighbours' does not fill more."""
BROADCAST: Final = b"\xff" * 6
_unpack: Final = Struct("!6s6sH").unpack_from
NONE: Final[tuple[int, ...]] = ()


class Switch:
    """Learns source MACs, sends unicast to where its MAC was seen, broadcast to all; never back to the ingress port.

    The gateway is not a port: `ingress` says whether a frame is for it, `egress` where its own frames go.
    """

    __slots__ = ("_cam", "_cam_limit", "_counters", "_gateway_mac", "_moves", "_next", "_ports", "duplicates")

    def __init__(self, gateway_mac: bytes, counters: Counters, cam_limit: int = CAM_LIMIT) -> None:
        self._gateway_mac = gateway_mac
        self._counters = counters
        self._cam_limit = cam_limit
        self._cam: dict[bytes, int] = {}
        self._ports: dict[int, None] = {}
        self._moves: dict[bytes, tuple[int, int, bool]] = {}
        """MAC to the ports of its last move, from and to, and whether it was told as a duplicate."""
        self._next = 0
        self.duplicates: list[tuple[bytes, int, int]] = []
        """(MAC, port, other port): two guests have it. Each once while both ports live; whoever tells them empties it."""

    def add_port(self) -> int:
        """The id of a new port: 0, 1, 2..., never used again."""
        port = self._next
        self._next += 1
        self._ports[port] = None
        return port

    def remove_port(self, port: int) -> None:
        """Forget a port and every MAC learned on it."""
        self._ports.pop(port, None)
        self._cam = {mac: at for mac, at in self._cam.items() if at != port}
        self._moves = {mac: move for mac, move in self._moves.items() if port not in move[:2]}

    def ingress(self, port: int, frame: Buffer) -> tuple[bool, tuple[int, ...]]:
        """Learn from `frame` (at least 14 bytes), which came in by `port`: (is it for the gateway, the other ports it goes to).

        Link negotiation (EtherType 0x88B5) never goes to another port; what is addressed to the gateway the stack drops.
        """
        destination, source, ethertype = _unpack(frame)
        cam = self._cam
        if cam.get(source) != port and not self._learn(source, port):
            return False, NONE
        if destination == self._gateway_mac:
            return True, NONE
        if ethertype == CONTROL:
            self._counters.drop("switch_control")
            return False, NONE
        if destination == BROADCAST:
            return True, tuple(other for other in self._ports if other != port)
        at = cam.get(destination)
        if at is None or at == port:
            self._counters.drop("switch_multicast" if destination[0] & 1 else "switch_unknown")
            return False, NONE
        return False, (at,)

    def _learn(self, source: bytes, port: int) -> bool:
        """False: a source that no guest may have, or a port that is gone."""
        if port not in self._ports:
            self._counters.drop("switch_port_gone")
            return False
        if source == self._gateway_mac:
            self._counters.drop("switch_spoofed_gateway")
            return False
        if source[0] & 1:
            self._counters.drop("switch_group_source")
            return False
        cam = self._cam
        before = cam.pop(source, None)  # a MAC that moves becomes the newest
        if before is not None:
            self._moved(source, before, port)
        if len(cam) >= self._cam_limit:
            del cam[next(iter(cam))]
            self._counters.drop("switch_cam_full")
        cam[source] = port
        return True

    def _moved(self, mac: bytes, before: int, port: int) -> None:
        """A MAC that moves once is a guest with a new link, whose old one has not ended yet; one that moves back is two."""
        move = self._moves.get(mac)
        if move is None or port not in move[:2]:
            if move is not None or len(self._moves) < MAX_MOVES:
                self._moves[mac] = (before, port, False)
        elif not move[2]:
            self._moves[mac] = (before, port, True)
            self.duplicates.append((mac, min(before, port), max(before, port)))

    def egress(self, destination: bytes) -> tuple[int, ...]:
        """The ports that a frame of the gateway to `destination` leaves by."""
        if destination == BROADCAST:
            return tuple(self._ports)
        at = self._cam.get(destination)
        return NONE if at is None else (at,)

    def cam(self) -> dict[bytes, int]:
        """A copy of what was learned: MAC to port."""
        return dict(self._cam)
