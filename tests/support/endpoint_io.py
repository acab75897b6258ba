"""Whole reads and writes over an endpoint's four calls, as their owner would make them."""

from __future__ import annotations

import trio

from sulla_trio.link.endpoint import Buffer, Endpoint


async def receive(endpoint: Endpoint, limit: int = 65_536) -> bytes:
    """What is there next, at most `limit` bytes; empty at end of stream."""
    buffer = bytearray(limit)
    while True:
        try:
            return bytes(buffer[: endpoint.recv_into(memoryview(buffer))])
        except BlockingIOError:
            await endpoint.wait_readable()


async def receive_exactly(endpoint: Endpoint, count: int) -> bytes:
    """`count` bytes, fewer only where the stream ends."""
    data = b""
    while len(data) < count and (piece := await receive(endpoint, count - len(data))):
        data += piece
    return data


async def receive_all(endpoint: Endpoint) -> bytes:
    """Everything until the end of the stream."""
    data = bytearray()
    while piece := await receive(endpoint):
        data += piece
        await trio.lowlevel.checkpoint()
    return bytes(data)


async def send(endpoint: Endpoint, data: Buffer) -> None:
    """All of `data`."""
    view = memoryview(data)
    while view:
        try:
            view = view[endpoint.send_gathered([view]) :]
        except BlockingIOError:
            await endpoint.wait_writable()
