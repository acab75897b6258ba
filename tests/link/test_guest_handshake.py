"""The guest's side of the handshake against scripted hosts, byte for byte, over unix sockets."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from sulla_trio.errors import ConfigError
from sulla_trio.link import endpoint, guest_handshake
from sulla_trio.link.endpoint import Endpoint, parse_endpoint
from sulla_trio.link.guest_handshake import MAX_CONNECTIONS, GuestHandshake
from sulla_trio.wire.handshake import DIALECTS

RD1 = DIALECTS["rd1"]
PHRASE = RD1.signature


class Guest:
    """A handshake under way, and what a host sees of it."""

    def __init__(self, directory: Path, nursery: trio.Nursery) -> None:
        self.handshake_path, self.data_path = str(directory / "handshake"), str(directory / "data")
        self.nursery = nursery
        self.attached = trio.Event()
        self.link: Endpoint | None = None
        self._machine = GuestHandshake(
            parse_endpoint(f"unix://{self.handshake_path}"), parse_endpoint(f"unix://{self.data_path}"), RD1
        )

    def start(self) -> None:
        self.nursery.start_soon(self._attach)

    async def _attach(self) -> None:
        self.link = await self._machine.attach()
        self.attached.set()

    async def dial(self) -> trio.SocketStream:
        for _ in range(1000):
            try:
                return await trio.open_unix_socket(self.handshake_path)
            except OSError:
                await trio.sleep(0.01)
        raise TimeoutError("the guest does not listen for the handshake")

    async def listen(self) -> trio.SocketListener:
        return await endpoint.listen(parse_endpoint(f"unix://{self.data_path}"))


@pytest.fixture
async def guest(tmp_path: Path) -> AsyncIterator[Guest]:
    async with trio.open_nursery() as nursery:
        made = Guest(tmp_path, nursery)
        yield made
        nursery.cancel_scope.cancel()
    if made.link is not None:
        made.link.close()


@asynccontextmanager
async def say_ready(guest: Guest) -> AsyncIterator[trio.SocketListener]:
    """A Go host from its READY on: listening for the data connection first, then the word, then hanging up."""
    async with await guest.listen() as listener:
        async with await guest.dial() as ready:
            await ready.send_all(b"READY")
        yield listener


async def test_probe_then_ready_then_data(guest: Guest) -> None:
    guest.start()
    async with await guest.dial() as probe:
        received = b""
        while len(received) < len(PHRASE):
            received += await probe.receive_some(100)
        assert received == PHRASE
    async with say_ready(guest) as listener:
        data = await listener.accept()
        await guest.attached.wait()
        assert guest.link is not None
        guest.link.send_gathered([b"frames"])
        assert await data.receive_some(100) == b"frames"
        await data.aclose()


async def test_nothing_listens_once_a_host_has_said_ready(guest: Guest) -> None:
    guest.start()
    async with say_ready(guest) as listener, await listener.accept():
        await guest.attached.wait()
        with pytest.raises(OSError):
            await trio.open_unix_socket(guest.handshake_path)


async def test_silent_and_half_finished_connections_keep_nobody_out(guest: Guest, autojump_clock: object) -> None:
    guest.start()
    silent = [await guest.dial() for _ in range(3)]
    await silent[1].send_all(b"REA")
    async with say_ready(guest) as listener, await listener.accept():
        await guest.attached.wait()
    for stream in silent:
        received = b""
        with pytest.raises((trio.BrokenResourceError, EOFError)):
            while True:
                chunk = await stream.receive_some(100)
                if not chunk:
                    raise EOFError
                received += chunk
        assert received == PHRASE
        await stream.aclose()


@pytest.mark.parametrize("word", [b"ready", b"READX", b"\0\0\0\0\0", b"GET / HTTP/1.1\r\n\r\n"])
async def test_another_word_is_closed_and_the_next_one_is_heard(guest: Guest, word: bytes) -> None:
    guest.start()
    async with await guest.dial() as liar:
        await liar.send_all(word)
        assert await receive_to_end(liar) == PHRASE
    async with say_ready(guest) as listener, await listener.accept():
        await guest.attached.wait()


async def test_ready_may_come_a_byte_at_a_time_and_with_more_behind_it(guest: Guest) -> None:
    guest.start()
    async with await guest.listen() as listener, await guest.dial() as host:
        for byte in b"READYfor anything":
            try:
                await host.send_all(bytes([byte]))
            except trio.BrokenResourceError:
                break
            await trio.sleep(0.001)
        async with await listener.accept():
            await guest.attached.wait()


async def test_a_slow_drip_is_cut_at_the_deadline(guest: Guest, autojump_clock: object) -> None:
    guest.start()
    async with await guest.dial() as host:
        for byte in b"READ":
            await host.send_all(bytes([byte]))
            await trio.sleep(guest_handshake.ANSWER_TIMEOUT / 5)
        assert await receive_to_end(host) == PHRASE
        with pytest.raises(trio.BrokenResourceError):
            await host.send_all(b"Y")
    assert not guest.attached.is_set()


async def test_a_host_that_is_gone_after_ready_is_waited_for_again(
    guest: Guest, caplog: pytest.LogCaptureFixture
) -> None:
    guest.start()
    async with await guest.dial() as phantom:
        await phantom.send_all(b"READY")
        await receive_to_end(phantom)
    with trio.fail_after(20):  # listening any sooner would be what the first dial finds
        while not any("failed connect()" in record.message for record in caplog.records):
            await trio.sleep(0.001)
    async with say_ready(guest) as listener, await listener.accept():
        await guest.attached.wait()


async def test_a_flood_is_bounded_and_passes(guest: Guest, autojump_clock: object) -> None:
    guest.start()
    flood = [await guest.dial() for _ in range(MAX_CONNECTIONS + 40)]
    answered = 0
    for stream in flood[:MAX_CONNECTIONS]:
        answered += (await stream.receive_some(100)) == PHRASE
    assert answered == MAX_CONNECTIONS
    for stream in flood:
        await stream.aclose()
    await wait_all_tasks_blocked()
    async with say_ready(guest) as listener, await listener.accept():
        await guest.attached.wait()


async def test_an_endpoint_that_is_taken_is_one_line(guest: Guest, tmp_path: Path) -> None:
    url = parse_endpoint(f"unix://{tmp_path}/no/such/directory/handshake")
    with pytest.raises(ConfigError, match=r"failed to listen on handshake port unix:.*no such file"):
        await GuestHandshake(url, url, RD1).attach()


async def test_cancelled_at_any_point_nothing_stays_open(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    for turns in range(12):
        async with trio.open_nursery() as nursery:
            guest = Guest(tmp_path, nursery)
            guest.start()

            async def host(guest: Guest = guest) -> None:
                async with say_ready(guest) as listener, await listener.accept():
                    await trio.sleep_forever()

            nursery.start_soon(host)
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        if guest.link is not None:
            guest.link.close()
    assert set(os.listdir("/proc/self/fd")) == before


async def receive_to_end(stream: trio.SocketStream) -> bytes:
    received = b""
    try:
        while chunk := await stream.receive_some(100):
            received += chunk
    except trio.BrokenResourceError:
        pass
    return received
