"""The relay between two kernel sockets, by pipe and by buffer: bytes, half-closes, resets, back-pressure, nothing left."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
from collections.abc import AsyncIterator, Callable

import pytest
import trio
import trio.testing

from sulla_trio.forward import splice
from sulla_trio.forward.host_sockets import reset_on_close
from sulla_trio.forward.splice import BufferChannel, Channel, Channels, PipeChannel, SpliceRelay

Make = Callable[[], Channel]


@pytest.fixture(params=[PipeChannel, BufferChannel])
def make(request: pytest.FixtureRequest) -> Make:
    return request.param


async def tcp_pair() -> tuple[trio.SocketStream, socket.socket]:
    """(one end as a stream, the other as the relay wants it)."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        near = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
        far = await listener.accept()
    sock = socket.socket(fileno=far.socket.detach())
    sock.setblocking(False)
    return near, sock


@contextlib.asynccontextmanager
async def relayed(make: Make) -> AsyncIterator[tuple[trio.SocketStream, trio.SocketStream, SpliceRelay]]:
    """(client, upstream, their relay); leaves when the relay has ended, with nothing open."""
    before = set(os.listdir("/proc/self/fd"))
    client, client_side = await tcp_pair()
    upstream, upstream_side = await tcp_pair()
    channels = Channels(make)
    relay = SpliceRelay(client_side, upstream_side, channels)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay.run)
            async with client, upstream:
                yield client, upstream, relay
    channels.close()
    assert (client_side.fileno(), upstream_side.fileno()) == (-1, -1)
    assert set(os.listdir("/proc/self/fd")) == before


async def receive_all(stream: trio.SocketStream) -> bytes:
    return b"".join([bytes(part) async for part in stream])


async def test_half_close_in_both_orders(make: Make) -> None:
    async with relayed(make) as (client, upstream, relay):
        await client.send_all(b"question")
        await client.send_eof()
        assert await receive_all(upstream) == b"question"
        await upstream.send_all(b"answer")
        await upstream.send_eof()
        assert await receive_all(client) == b"answer"
    assert (relay.reason, relay.bytes_in, relay.bytes_out) == ("eof", 8, 6)
    async with relayed(make) as (client, upstream, relay):
        await upstream.send_eof()
        assert await receive_all(client) == b""
        await client.send_all(b"still open")
        await client.send_eof()
        assert await receive_all(upstream) == b"still open"
    assert (relay.reason, relay.bytes_in, relay.bytes_out) == ("eof", 10, 0)


async def test_much_both_ways_at_once_against_a_slow_reader(make: Make) -> None:
    source = random.Random(7)
    up, down = source.randbytes(5_000_001), source.randbytes(3_000_001)
    received: dict[str, bytes] = {}

    async def send(stream: trio.SocketStream, data: bytes) -> None:
        await stream.send_all(data)
        await stream.send_eof()

    async def receive(name: str, stream: trio.SocketStream) -> None:
        data = bytearray()
        while part := await stream.receive_some(50_000):
            data += part
            await trio.lowlevel.checkpoint()
        received[name] = bytes(data)

    async with relayed(make) as (client, upstream, relay):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, client, up)
            nursery.start_soon(send, upstream, down)
            nursery.start_soon(receive, "client", client)
            nursery.start_soon(receive, "upstream", upstream)
    assert received == {"client": down, "upstream": up}
    assert (relay.reason, relay.bytes_in, relay.bytes_out) == ("eof", len(up), len(down))


@pytest.mark.parametrize("who", ["client", "upstream"])
@pytest.mark.parametrize("half_closed", [False, True])
async def test_a_reset_is_a_reset(make: Make, who: str, half_closed: bool) -> None:
    async with relayed(make) as (client, upstream, relay):
        ends = {"client": client, "upstream": upstream}
        one = ends.pop(who)
        (other,) = ends.values()
        if half_closed:
            await other.send_eof()
            assert await one.receive_some() == b""
        reset_on_close(one.socket)  # type: ignore[arg-type]
        await one.aclose()
        with pytest.raises(trio.BrokenResourceError):
            assert await other.receive_some() == b"nothing"
    assert relay.reason == {"client": "host_reset", "upstream": "guest_reset"}[who]


async def test_a_reset_of_an_end_that_has_sent_its_fin_is_found(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splice, "RESET_CHECK", 0.001)
    async with relayed(make) as (client, upstream, relay):
        await client.send_eof()
        assert await upstream.receive_some() == b""
        reset_on_close(client.socket)  # type: ignore[arg-type]
        await client.aclose()
        while not relay.reason:
            await trio.sleep(0.001)
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await upstream.send_all(b"x")
    assert relay.reason == "host_reset"


async def test_writing_to_an_end_that_is_gone_resets_the_writer(make: Make) -> None:
    async with relayed(make) as (client, upstream, relay):
        await client.aclose()
        assert await upstream.receive_some() == b""
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await upstream.send_all(b"into the void")
                await trio.sleep(0.001)
    assert relay.reason == "host_reset"


@pytest.mark.parametrize("full", [False, True])
async def test_cancelling_resets_both_ends(make: Make, full: bool) -> None:
    before = set(os.listdir("/proc/self/fd"))
    client, client_side = await tcp_pair()
    upstream, upstream_side = await tcp_pair()
    channels = Channels(make)
    relay = SpliceRelay(client_side, upstream_side, channels)
    async with client, upstream, trio.open_nursery() as nursery:
        nursery.start_soon(relay.run)
        await client.send_all(b"x")
        assert await upstream.receive_some(1) == b"x"
        if full:  # a channel with bytes in it at the end
            with trio.move_on_after(0.1):
                await client.send_all(bytes(50_000_000))
        nursery.cancel_scope.cancel()
    assert relay.reason == "shutdown"
    channels.close()
    assert set(os.listdir("/proc/self/fd")) == before


async def test_idle_connections_hold_no_pipe() -> None:
    async with relayed(PipeChannel) as (client, upstream, _):
        await client.send_all(b"x")
        assert await upstream.receive_some() == b"x"
        await trio.testing.wait_all_tasks_blocked()
        held = [name for name in os.listdir("/proc/self/fd") if _is_pipe(name)]
        more = [await tcp_pair() for _ in range(4)]
        await trio.testing.wait_all_tasks_blocked()
        assert [name for name in os.listdir("/proc/self/fd") if _is_pipe(name)] == held
        for near, far in more:
            far.close()
            await near.aclose()


def _is_pipe(name: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{name}").startswith("pipe:")
    except FileNotFoundError:
        return False


def test_channels_with_bytes_in_them_are_not_lent_again(make: Make) -> None:
    left, right = socket.socketpair()
    with left, right:
        left.setblocking(False)
        right.setblocking(False)
        channels = Channels(make)
        channel = channels.take()
        left.send(b"secret")
        assert channel.fill(right) == 6
        channels.give(channel)
        again = channels.take()
        assert again is not channel
        assert again.held == 0
        channels.give(again)
        assert channels.take() is again
        kept = [channels.take() for _ in range(splice.KEPT_CHANNELS + 3)]
        for one in (again, *kept):
            channels.give(one)
        before = len(os.listdir("/proc/self/fd"))
        channels.close()
        pipes = 2 * splice.KEPT_CHANNELS if make is PipeChannel else 0
        assert before - len(os.listdir("/proc/self/fd")) == pipes


def test_without_descriptors_a_buffer_does() -> None:
    def none_left() -> Channel:
        raise OSError(errno.EMFILE, "Too many open files")

    assert isinstance(Channels(none_left).take(), BufferChannel)


def test_splice_is_used_where_it_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    channel = Channels().take()
    assert isinstance(channel, PipeChannel)
    channel.close()
    monkeypatch.delattr(os, "splice")
    assert isinstance(Channels().take(), BufferChannel)
