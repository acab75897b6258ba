"""What is the threads' own: bounds, lingering, and that they end. (Their calls: test_endpoint_calls.)"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from sulla_trio.link import endpoint_threads
from sulla_trio.link.endpoint import Endpoint, connect, parse_endpoint
from sulla_trio.link.endpoint_threads import BUFFER, ThreadedEndpoint, ThreadedListener
from tests.support.endpoint_io import receive, receive_all, send
from tests.support.endpoint_pairs import threads_of_endpoints, wait_for_no_thread


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd"))
    yield
    wait_for_no_thread()
    assert set(os.listdir("/proc/self/fd")) == before


async def test_what_is_held_is_bounded_both_ways() -> None:
    left, right = socket.socketpair()
    with right:
        right.setblocking(False)
        async with ThreadedEndpoint(left, "left") as endpoint:
            assert len(threads_of_endpoints()) == 2
            assert endpoint.send_gathered([bytes(2 * BUFFER)]) == BUFFER
            with trio.move_on_after(0.1):
                while True:
                    try:
                        right.send(bytes(65_536))
                    except BlockingIOError:
                        await trio.sleep(0.002)
            assert len(endpoint._in.held) == BUFFER
            assert len(endpoint._out.held) <= BUFFER
            while True:  # or the kernel would hold what is to be sent
                try:
                    right.recv(1 << 20)
                except BlockingIOError:
                    if not endpoint._out.held:
                        break
                    await trio.sleep(0.002)


async def test_who_takes_nothing_does_not_hold_the_threads_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_threads, "LINGER", 0.05)
    left, right = socket.socketpair()
    with right:
        endpoint = ThreadedEndpoint(left, "left")
        while True:
            try:
                endpoint.send_gathered([bytes(BUFFER)])
            except BlockingIOError:
                with trio.move_on_after(0.05) as scope:
                    await endpoint.wait_writable()
                if scope.cancelled_caught:
                    break
        await endpoint.aclose()
        wait_for_no_thread()
        assert left.fileno() == -1


async def test_closing_within_a_cancelled_scope_leaves_nothing() -> None:
    left, right = socket.socketpair()
    with right, trio.CancelScope() as scope:
        endpoint = ThreadedEndpoint(left, "left")
        scope.cancel()
        await endpoint.aclose()
        assert left.fileno() == -1


async def test_how_windows_ends_a_stream() -> None:
    class BrokenPipe(OSError):
        winerror = 109

    class Ending:
        family = socket.AF_UNIX

        def recv_into(self, buffer: memoryview) -> int:
            raise BrokenPipe(errno.EPIPE, "The pipe has been ended")

        def __getattr__(self, name: str) -> object:
            return getattr(left, name)

    left, right = socket.socketpair()
    with right:
        async with ThreadedEndpoint(Ending(), "left") as endpoint:  # type: ignore[arg-type]
            assert await receive(endpoint) == b""


def test_threads_of_a_run_that_is_over_end() -> None:
    left, right = socket.socketpair()

    async def main() -> ThreadedEndpoint:
        endpoint = ThreadedEndpoint(left, "left")
        endpoint.send_gathered([b"x"])
        return endpoint

    endpoint = trio.run(main)
    right.sendall(b"y")
    assert right.recv(1) == b"x"
    endpoint.close()
    right.close()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "s")


def listening(path: str) -> ThreadedListener:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    sock.listen()
    return ThreadedListener(sock, parse_endpoint(f"unix://{path}"), file=path)


async def test_a_listener_is_served(path: str, nursery: trio.Nursery) -> None:
    async def echo(endpoint: Endpoint) -> None:
        async with endpoint:
            assert isinstance(endpoint, ThreadedEndpoint)
            await send(endpoint, await receive(endpoint))

    listener = listening(path)
    nursery.start_soon(trio.serve_listeners, echo, [listener])
    for word in (b"one", b"two", b"three"):
        async with await connect(listener.url) as client:
            await send(client, word)
            assert await receive_all(client) == word
    nursery.cancel_scope.cancel()


async def test_a_cancelled_accept_loses_no_connection(path: str) -> None:
    async with listening(path) as listener:
        with trio.move_on_after(0.01) as scope:
            await listener.accept()
        assert scope.cancelled_caught
        async with await connect(listener.url) as client, await listener.accept() as server:
            await send(client, b"x")
            assert await receive(server) == b"x"


async def test_a_listener_that_closes_wakes_who_accepts(path: str, nursery: trio.Nursery) -> None:
    listener = listening(path)
    woken = trio.Event()

    async def accept() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()
        woken.set()

    nursery.start_soon(accept)
    await trio.testing.wait_all_tasks_blocked()
    await listener.aclose()
    await woken.wait()
    assert os.path.basename(path) not in os.listdir(os.path.dirname(path))
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()


async def test_a_connection_that_nobody_accepted_ends_with_the_listener(path: str) -> None:
    listener = listening(path)
    async with await connect(listener.url) as first, await connect(listener.url) as second:
        with trio.fail_after(20):
            await listener._arrived.wait()
            await listener.aclose()
            for client in (first, second):
                try:
                    assert await receive(client) == b""
                except ConnectionResetError:
                    pass
