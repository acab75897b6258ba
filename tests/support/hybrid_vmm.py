"""A stand-in for a VMM with hybrid vsock (Firecracker's unix-socket side): a guest that is reached and that reaches out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from sulla_trio.wire import hybrid_vsock

GuestPort = Callable[[trio.SocketStream], Awaitable[None]]
FIRST_LOCAL_PORT = 1 << 30
"""Firecracker numbers its host-side ports from here."""


class HybridVmm:
    """Listens at `path`; `ports` are the guest's listening ports. As Firecracker does, it closes what it cannot grant."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = f"vsock+unix://{path}"
        self.ports: dict[int, GuestPort] = {}
        self.requests: list[bytes] = []
        self._next_port = FIRST_LOCAL_PORT

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        sock = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
        await sock.bind(str(self.path))
        sock.listen(16)
        await trio.serve_listeners(self._survive, [trio.SocketListener(sock)], task_status=task_status)

    async def _survive(self, stream: trio.SocketStream) -> None:
        try:
            await self._serve(stream)
        except trio.BrokenResourceError:
            pass  # the host's program has gone with something unread

    async def _serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            line = b""
            while not line.endswith(b"\n"):
                byte = await stream.receive_some(1)
                if not byte:
                    return
                line += byte
            self.requests.append(line)
            guest = self.ports.get(hybrid_vsock.parse_connect(line))
            if guest is None:
                return
            # One write with what the guest says at once, so that a reader which takes too much is found out.
            reply, self._next_port = hybrid_vsock.emit_reply(self._next_port), self._next_port + 1
            await stream.send_all(reply + getattr(guest, "greeting", b""))
            await guest(stream)

    async def dial_host(self, port: int) -> trio.SocketStream:
        """The guest connects to the host's `port`. ConnectionRefusedError or FileNotFoundError where nobody listens."""
        return await trio.open_unix_socket(f"{self.path}_{port}")


class Greeter:
    """A guest's port that speaks first and then echoes until the end of the stream."""

    def __init__(self, greeting: bytes) -> None:
        self.greeting = greeting

    async def __call__(self, stream: trio.SocketStream) -> None:
        async for data in stream:
            await stream.send_all(data)
