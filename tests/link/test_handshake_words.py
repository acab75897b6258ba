"""Words over an endpoint: whole, in pieces, cut short, and never a byte more."""

from __future__ import annotations

import socket

import pytest
import trio

from sulla_trio.link.endpoint import Endpoint
from sulla_trio.link.handshake_words import hear, say
from sulla_trio.wire.handshake import Expected


def endpoint_and_socket() -> tuple[Endpoint, socket.socket]:
    ours, theirs = socket.socketpair()
    return Endpoint(ours, "test"), theirs


async def test_what_follows_a_word_stays_unread() -> None:
    endpoint, theirs = endpoint_and_socket()
    async with endpoint:
        with theirs:
            theirs.send(b"READYframes")
            word = Expected(b"READY")
            assert await hear(endpoint, word)
            assert word.matches
            buffer = memoryview(bytearray(20))
            assert bytes(buffer[: endpoint.recv_into(buffer)]) == b"frames"


async def test_a_word_in_pieces_and_one_cut_short() -> None:
    endpoint, theirs = endpoint_and_socket()
    async with endpoint, trio.open_nursery() as nursery:

        async def drip() -> None:
            for piece in (b"R", b"EA", b"D"):
                theirs.send(piece)
                await trio.sleep(0.001)
            theirs.close()

        nursery.start_soon(drip)
        word = Expected(b"READY")
        assert not await hear(endpoint, word)
        assert word.missing == 1


async def test_a_text_longer_than_the_buffers_is_sent_whole() -> None:
    endpoint, theirs = endpoint_and_socket()
    text = bytes(range(256)) * 65536
    received = bytearray()
    async with endpoint, trio.open_nursery() as nursery:

        async def read() -> None:
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
            async with stream:
                while len(received) < len(text):
                    received.extend(await stream.receive_some(1 << 20))

        nursery.start_soon(read)
        await say(endpoint, text)
    assert received == text


async def test_a_peer_that_has_gone_is_an_oserror() -> None:
    endpoint, theirs = endpoint_and_socket()
    theirs.close()
    async with endpoint:
        with pytest.raises(OSError):
            await say(endpoint, b"READY")
