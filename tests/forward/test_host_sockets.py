"""Options and names of the host's sockets, and what a failed bind is called."""

from __future__ import annotations

import socket

import pytest
import trio

from sulla_trio.forward.host_sockets import (
    RESERVED,
    Descriptors,
    address_text,
    bind_error,
    peer_text,
    reset_on_close,
    tune,
)
from sulla_trio.link.endpoint import take_socket


async def test_an_accepted_stream_is_tuned_for_bulk() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        client = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
        with take_socket(await listener.accept()) as sock:
            tune(sock)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 0
            assert peer_text(sock) == "127.0.0.1:%d" % client.socket.getsockname()[1]
            reset_on_close(sock)
        with pytest.raises(trio.BrokenResourceError):
            await client.receive_some()
        await client.aclose()
    reset_on_close(sock)
    with socket.socket() as alone:
        assert peer_text(alone) == "gone"


def test_addresses() -> None:
    assert address_text("0.0.0.0", 80) == "0.0.0.0:80"
    assert address_text("::", 80) == "[::]:80"


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (OSError(98, "Address already in use"), "bind", "address already in use"),
        (OSError(99, "x"), "bind", "cannot assign requested address"),
        (OSError(97, "Address family not supported"), "bind", "address family not supported"),
        (
            PermissionError(13, "Permission denied"),
            "privileged",
            "permission denied; use a port from 1024 up, or lower",
        ),
    ],
)
def test_bind_errors(error: OSError, code: str, text: str) -> None:
    failure = bind_error("tcp", "127.0.0.1:80", error)
    assert failure.code == code
    assert str(failure).startswith(f"listen tcp 127.0.0.1:80: bind: {text}")


def test_descriptors_are_taken_whole_or_not_at_all() -> None:
    descriptors = Descriptors(RESERVED + 10)
    assert descriptors.take(6)
    assert not descriptors.take(6)
    assert descriptors.take(4)
    descriptors.give(6)
    assert descriptors.free == 6
    assert not Descriptors(RESERVED - 1).take(1)
