"""A frame never leaves by the port it came in by, nor by one that is gone; the CAM never exceeds its bound.

The input is a train of four-byte steps: what, port, destination, source.
"""

from __future__ import annotations

from sulla_trio.netstack.counters import Counters
from sulla_trio.netstack.switch import BROADCAST, Switch

GATEWAY = b"\x02\0\0\0\0\xfe"
CAM_LIMIT = 8


def mac(number: int) -> bytes:
    """255 is broadcast, 254 the gateway, 240 to 253 groups, all else a guest."""
    if number == 255:
        return BROADCAST
    return bytes((1 if 240 <= number < 254 else 2, 0, 0, 0, 0, number))


def fuzz_one(data: bytes) -> None:
    switch = Switch(GATEWAY, Counters(), CAM_LIMIT)
    live = {switch.add_port() for _ in range(3)}
    for at in range(0, len(data) - 3, 4):
        what, port, destination, source = data[at : at + 4]
        if what == 0:
            live.add(switch.add_port())
        elif what == 1:
            switch.remove_port(port)
            live.discard(port)
        else:
            ethertype = b"\x88\xb5" if what == 2 else b"\x08\x00"
            to_gateway, ports = switch.ingress(port, mac(destination) + mac(source) + ethertype)
            assert port not in ports
            assert set(ports) <= live
            assert len(set(ports)) == len(ports)
            assert what != 2 or not ports
            assert port in live or (not to_gateway and not ports)
        cam = switch.cam()
        assert len(cam) <= CAM_LIMIT
        assert set(cam.values()) <= live
        assert GATEWAY not in cam
        assert not any(known[0] & 1 for known in cam)
        assert set(switch.egress(mac(destination))) <= live
