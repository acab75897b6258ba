"""Only BadPacket escapes, a message is what its bytes begin with, and whatever a later version appends changes nothing."""

from __future__ import annotations

from sulla_trio.errors import BadPacket
from sulla_trio.wire import control

DICTIONARY = (b"SLLA", b"SLLA\x01\x01", b"SLLA\x01\x02", b"SLLA\x01\x03", b"\xff\xff", b"\x05\xdc", b"\x18")


def fuzz_one(data: bytes) -> None:
    try:
        message = control.parse(memoryview(data))
    except BadPacket:
        return
    known = control.emit(message)
    assert data.startswith(known)
    assert control.parse(known) == control.parse(data + b"\xff") == message
    assert control.format(message).isprintable()
    if isinstance(message, control.Welcome):
        assert 1 <= message.prefix <= 30
        assert 576 <= message.mtu <= 65_520
