"""Many concurrent TCP flows with random sizes, half-closes and resets. ``serve`` is the far end, else HOST PORT FLOWS.

Each flow says in 16 bytes how much comes (u64) and what ending it will have; the server echoes everything.
"""

from __future__ import annotations

import hashlib
import random
import resource
import socket
import struct
import sys

import trio

HEADER = struct.Struct("!QQ")
ECHO, HALF_CLOSE, RESET = range(3)


def pattern(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


async def serve_one(stream: trio.SocketStream) -> None:
    try:
        async with stream:
            async for data in stream:
                await stream.send_all(data)
            await stream.send_eof()
    except trio.BrokenResourceError:
        pass


async def serve() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=2048)
    print(listeners[0].socket.getsockname()[1], flush=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve_one, listeners)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


async def flow(host: str, port: int, seed: int, wrong: list[str], done: list[int]) -> None:
    size, ending = random.Random(seed).choice((0, 1, 1460, 20_000, 200_000)), seed % 3
    data = HEADER.pack(size, ending) + pattern(seed, size)
    stream = await trio.open_tcp_stream(host, port)
    async with stream, trio.open_nursery() as nursery:

        async def send() -> None:
            await stream.send_all(data)
            if ending == HALF_CLOSE:
                await stream.send_eof()

        nursery.start_soon(send)
        got = b""
        wanted = len(data) if ending != HALF_CLOSE else len(data) + 1
        while len(got) < wanted and (more := await stream.receive_some()):
            got += more
        if hashlib.sha256(got).digest() != hashlib.sha256(data).digest():
            wrong.append(f"seed {seed}: {len(got)} bytes of {len(data)}")
        if ending == RESET:
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    done.append(seed)


async def flood(host: str, port: int, flows: int) -> int:
    wrong: list[str] = []
    done: list[int] = []
    async with trio.open_nursery() as nursery:
        for seed in range(flows):
            nursery.start_soon(flow, host, port, seed, wrong, done)
    print(f"{len(done) - len(wrong)} flows right", *wrong, sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if sys.argv[1] == "serve":
        trio.run(serve)
    else:
        sys.exit(trio.run(flood, sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
