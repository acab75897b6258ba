"""Hybrid vsock: a guest's vsock ports behind one unix socket of its VMM (Firecracker, Cloud Hypervisor).

host -> VMM   ``CONNECT PORT\\n``, the guest's port in decimal
VMM -> host   ``OK PORT\\n``, the host-side port that the VMM chose; or the connection is closed: nobody listens there
guest -> host the VMM connects to the unix socket ``PATH_PORT``; no line is exchanged

After the newline the connection is the stream itself, and either side may send at once: read no byte beyond it.
"""

from __future__ import annotations

from typing import Final

from sulla_trio.errors import BadPacket

MAX_PORT: Final = 0xFFFFFFFF
MAX_REPLY: Final = len(b"OK 4294967295\n")
"""Bytes: the longest reply there is. What is longer is somebody else's protocol."""
_PREFIX: Final = b"OK "


def emit_connect(port: int) -> bytes:
    """The request for the guest's `port`."""
    return b"CONNECT %d\n" % port


def emit_reply(port: int) -> bytes:
    """The VMM's answer to a request that it has granted."""
    return b"%s%d\n" % (_PREFIX, port)


def parse_connect(line: bytes) -> int:
    """The guest's port that a whole request line asks for. Raises BadPacket."""
    return _port(line, b"CONNECT ")


def parse_reply(line: bytes) -> int:
    """The host-side port in a whole reply line. Raises BadPacket."""
    return _port(line, _PREFIX)


def is_whole(received: bytes | bytearray) -> bool:
    """Whether to stop reading: the line has ended, or it is too long to be one."""
    return received.endswith(b"\n") or len(received) >= MAX_REPLY


def _port(line: bytes, prefix: bytes) -> int:
    digits = line[len(prefix) : -1]
    if not line.startswith(prefix) or not line.endswith(b"\n") or not digits.isdigit() or len(digits) > 10:
        raise BadPacket("hybrid_vsock_line")
    port = int(digits)
    if port > MAX_PORT:
        raise BadPacket("hybrid_vsock_port")
    return port
