"""The two lines of hybrid vsock."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sulla_trio.errors import BadPacket
from sulla_trio.wire import hybrid_vsock


@pytest.mark.parametrize(
    ("line", "port"),
    [(b"OK 1073741824\n", 1073741824), (b"OK 0\n", 0), (b"OK 4294967295\n", 4294967295), (b"OK 007\n", 7)],
)
def test_replies(line: bytes, port: int) -> None:
    assert hybrid_vsock.parse_reply(line) == port


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"\n", b"OK", b"OK\n", b"OK \n", b"OK 1", b"OK 1\r\n", b"OK  1\n", b"OK -1\n", b"OK +1\n", b"ok 1\n"),
        *(b"OK 1 \n", b"OK 1_0\n", b"OK 4294967296\n", b"OK 00000000001\n", b"NO 1\n", b"CONNECT 1\n", b"\xff" * 14),
    ],
)
def test_bad_replies(line: bytes) -> None:
    with pytest.raises(BadPacket, match="hybrid_vsock_"):
        hybrid_vsock.parse_reply(line)


@settings(deadline=None)
@given(st.integers(0, hybrid_vsock.MAX_PORT))
def test_round_trips(port: int) -> None:
    assert hybrid_vsock.parse_connect(hybrid_vsock.emit_connect(port)) == port
    reply = hybrid_vsock.emit_reply(port)
    assert hybrid_vsock.parse_reply(reply) == port
    assert hybrid_vsock.is_whole(reply)
    assert not any(hybrid_vsock.is_whole(reply[:end]) for end in range(len(reply)))


def test_a_line_without_end_is_not_waited_for() -> None:
    assert hybrid_vsock.is_whole(b"x" * hybrid_vsock.MAX_REPLY)
