"""The upstream list follows the file; dead and missing upstreams end in None within the bound."""

from __future__ import annotations

import os
import socket

import trio
import trio.testing

from sulla_trio.vnet import resolver as resolving
from sulla_trio.vnet.resolver import Resolver, receive_message

QUERY = bytes.fromhex("123401000001000000000000076578616d706c6503636f6d0000010001")


def test_the_list_is_read_again_when_it_changes(tmp_path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 10.0.0.1\nsearch corp.example\n")
    resolver = Resolver(str(path))
    assert resolver.servers == ("10.0.0.1",)
    assert resolver.search == ("corp.example",)
    new = tmp_path / "new"
    new.write_text("nameserver 10.0.0.2\nnameserver 10.0.0.3\n")
    os.replace(new, path)
    assert resolver.servers == ("10.0.0.2", "10.0.0.3")
    assert resolver.search == ()
    path.write_text("search vpn.example corp.example\n")
    assert resolver.search == ("vpn.example", "corp.example")
    path.unlink()
    assert (resolver.servers, resolver.search) == ((), ())


async def test_no_upstream_is_none_at_once() -> None:
    assert await Resolver(servers=()).forward(QUERY) is None


async def test_silent_upstream_ends_within_the_bound(monkeypatch) -> None:
    monkeypatch.setattr(resolving, "TRY_TIMEOUT", 0.01)
    monkeypatch.setattr(resolving, "TOTAL_TIMEOUT", 0.05)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        monkeypatch.setattr(resolving, "DNS_PORT", silent.getsockname()[1])
        assert await Resolver(servers=("127.0.0.1",)).forward(QUERY) is None


async def test_dead_upstream_does_not_hide_the_next(monkeypatch) -> None:
    monkeypatch.setattr(resolving, "TRY_TIMEOUT", 0.01)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as alive:
        alive.bind(("127.0.0.2", 0))
        monkeypatch.setattr(resolving, "DNS_PORT", alive.getsockname()[1])
        answers = []
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                answers.append(await Resolver(servers=("127.0.0.1", "127.0.0.2")).forward(QUERY))

            nursery.start_soon(ask)
            alive.setblocking(False)
            await trio.lowlevel.wait_readable(alive)
            query, peer = alive.recvfrom(512)
            alive.sendto(query[:2] + b"\x81\x80" + query[4:], peer)
        assert answers[0][:2] == QUERY[:2]


async def test_receive_message_cut_anywhere() -> None:
    send, receive = trio.testing.memory_stream_one_way_pair()
    message = b"\0\x03abc\0\x02de\0\x09cut"
    buffered = bytearray()
    async with trio.open_nursery() as nursery:

        async def drip() -> None:
            for byte in message:
                await send.send_all(bytes((byte,)))
            await send.aclose()

        nursery.start_soon(drip)
        assert await receive_message(receive, buffered) == b"abc"
        assert await receive_message(receive, buffered) == b"de"
        assert await receive_message(receive, buffered) is None
