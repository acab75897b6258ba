"""A VMM's reply, in any pieces, is a port or BadPacket; never a byte beyond the line is taken, nor more than the longest line.

The input is a stream as it comes from the VMM's socket: the reply, and behind it the guest's.
"""

from __future__ import annotations

from sulla_trio.errors import BadPacket
from sulla_trio.wire import hybrid_vsock

DICTIONARY = (b"OK ", b"CONNECT ", b"\n", b"4294967295", b"4294967296", b"1073741824")


def fuzz_one(data: bytes) -> None:
    taken = bytearray()
    for byte in data:
        if hybrid_vsock.is_whole(taken):
            break
        taken.append(byte)
    assert len(taken) <= hybrid_vsock.MAX_REPLY
    assert b"\n" not in taken[:-1]
    try:
        port = hybrid_vsock.parse_reply(bytes(taken))
    except BadPacket:
        pass
    else:
        assert taken.endswith(b"\n")
        assert hybrid_vsock.parse_reply(hybrid_vsock.emit_reply(port)) == port
    try:
        port = hybrid_vsock.parse_connect(data)
    except BadPacket:
        return
    assert hybrid_vsock.parse_connect(hybrid_vsock.emit_connect(port)) == port
