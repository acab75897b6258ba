"""The handshake's words over an endpoint: say one, hear one, and not a byte more. `wire.handshake` has the words."""

from __future__ import annotations

from sulla_trio.link.endpoint import Endpoint
from sulla_trio.wire.handshake import Expected


async def say(endpoint: Endpoint, text: bytes) -> None:
    """Send all of `text`. Cancellation may leave part of it sent. Raises OSError."""
    while text:
        try:
            text = text[endpoint.send_gathered([text]) :]
        except BlockingIOError:
            await endpoint.wait_writable()


async def hear(endpoint: Endpoint, expected: Expected) -> bool:
    """Receive until all of `expected` has come; False at an earlier end of stream. What follows stays unread.

    Cancellation leaves what has come in `expected`. Raises OSError.
    """
    buffer = memoryview(bytearray(expected.missing))
    while expected.missing:
        try:
            count = endpoint.recv_into(buffer[: expected.missing])
        except BlockingIOError:
            await endpoint.wait_readable()
            continue
        if not count:
            return False
        expected.receive(bytes(buffer[:count]))
    return True
