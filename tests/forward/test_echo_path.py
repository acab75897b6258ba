"""Echo sockets over a scripted kernel: what goes out, whose answers come back. Real ones: e2e/test_hops.py."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from sulla_trio.config import parse_ip
from sulla_trio.forward import datagram_socket, echo_path
from sulla_trio.forward.echo_path import Echo, EchoAnswer, EchoSocket, open_ping_socket, open_raw_socket
from sulla_trio.wire import icmp, ipv4

REMOTE, ROUTER = parse_ip("93.184.216.34"), parse_ip("203.0.113.1")
TTL = [(socket.IPPROTO_IP, socket.IP_TTL, struct.pack("=i", 57))]
Received = tuple[bytes, list[tuple[int, int, bytes]], int, tuple[str, int]]


class ScriptedKernel:
    """What `EchoSocket` needs of a socket, with two queues that the test fills."""

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair()
        self.options: dict[tuple[int, int], Any] = {}
        self.sent: list[tuple[bytes, tuple[str, int]]] = []
        self.data: deque[Received | OSError] = deque()
        self.errors: deque[Received] = deque()

    def setblocking(self, flag: bool) -> None:
        self._ours.setblocking(flag)

    def setsockopt(self, level: int, name: int, value: Any) -> None:
        self.options[level, name] = value

    def sendto(self, data: bytes, address: tuple[str, int]) -> None:
        self.sent.append((data, address))

    def recvmsg(self, size: int, ancillary: int, flags: int = 0) -> Received:
        queue = self.errors if flags & datagram_socket.MSG_ERRQUEUE else self.data
        if not queue:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        item = queue.popleft()
        if isinstance(item, OSError):
            raise item
        return item

    def fileno(self) -> int:
        return self._ours.fileno()

    def close(self) -> None:
        self._ours.close()
        self._theirs.close()

    def wake(self) -> None:
        self._theirs.send(b"!")

    def reply(
        self, rest: int, payload: bytes, *, raw: bool = False, kind: int = icmp.ECHO_REPLY, damage: int = 0
    ) -> None:
        message = icmp.emit(kind, 0, rest ^ damage, payload)
        if damage:
            message = message[:4] + rest.to_bytes(4, "big") + message[8:]
        header = ipv4.emit(REMOTE, bytes((10, 0, 0, 1)), 1, len(message)) if raw else b""
        self.data.append((header + message, TTL, 0, ("93.184.216.34", 0)))

    def error(self, rest: int, kind: int = icmp.ECHO_REQUEST) -> None:
        body = struct.pack("=IBBBBII", 113, 2, 11, 0, 0, 0, 0) + struct.pack("=HH", 2, 0) + ROUTER + bytes(8)
        quoted = icmp.emit(kind, 0, rest, b"")
        ancillary = [(socket.IPPROTO_IP, datagram_socket.IP_RECVERR, body), *TTL]
        self.errors.append((quoted, ancillary, 0, ("93.184.216.34", 0)))


async def answers(kernel: ScriptedKernel, path: EchoSocket) -> list[EchoAnswer]:
    """What `run` hands over when woken once."""
    got: list[EchoAnswer] = []
    kernel.wake()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(path.run, got.append)
        for _ in range(10):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    return got


@pytest.fixture
def kernel() -> ScriptedKernel:
    return ScriptedKernel()


def opened(kernel: ScriptedKernel, identifier: int | None) -> EchoSocket:
    return EchoSocket(kernel, identifier)  # type: ignore[arg-type]


async def test_a_request(kernel: ScriptedKernel) -> None:
    path = opened(kernel, 0x0BAD)
    path.send(Echo(REMOTE, 7, b"payload", 64, True))
    assert kernel.sent == [(icmp.emit(icmp.ECHO_REQUEST, 0, 0x0BAD_0007, b"payload"), ("93.184.216.34", 0))]
    assert kernel.options[socket.IPPROTO_IP, socket.IP_TTL] == 63
    assert kernel.options[socket.IPPROTO_IP, datagram_socket.IP_MTU_DISCOVER] == datagram_socket.PMTUDISC_PROBE
    path.close()


async def test_a_ping_socket_gives_messages(kernel: ScriptedKernel) -> None:
    path = opened(kernel, None)
    kernel.reply(0x7777_0001, b"one")  # the kernel's identifier: whatever it is, it is ours
    kernel.reply(0x7777_0002, b"two")
    assert await answers(kernel, path) == [
        EchoAnswer(REMOTE, 1, b"one", 57, None),
        EchoAnswer(REMOTE, 2, b"two", 57, None),
    ]
    path.close()


async def test_a_raw_socket_gives_packets_and_everybodys(kernel: ScriptedKernel) -> None:
    path = opened(kernel, 0x0BAD)
    kernel.reply(0x0BAD_0001, b"ours", raw=True)
    kernel.reply(0x0BAE_0001, b"another program's", raw=True)
    kernel.reply(0x0BAD_0001, b"our own request, on loopback", raw=True, kind=icmp.ECHO_REQUEST)
    kernel.reply(0x0BAD_0002, b"damaged", raw=True, damage=0xFF)
    kernel.data.append((b"\x45", TTL, 0, ("93.184.216.34", 0)))
    assert await answers(kernel, path) == [EchoAnswer(REMOTE, 1, b"ours", 57, None)]
    path.close()


@pytest.mark.parametrize("identifier", [None, 0x0BAD])
async def test_errors_name_the_router_and_the_echo(kernel: ScriptedKernel, identifier: int | None) -> None:
    path = opened(kernel, identifier)
    kernel.error(0x0BAD_0009)
    kernel.error(0x0BAD_0009, kind=icmp.ECHO_REPLY)
    if identifier is not None:
        kernel.error(0x0BAE_0009)
    kernel.data.append(OSError(errno.EHOSTUNREACH, "the same error, as the next call's"))
    (answer,) = await answers(kernel, path)
    assert (answer.target, answer.sequence, answer.ttl) == (REMOTE, 9, 57)
    assert answer.error is not None
    assert (answer.error.sender, answer.error.type) == (ROUTER, icmp.TIME_EXCEEDED)
    path.close()


async def test_a_socket_that_cannot_be_set_up_is_closed(
    kernel: ScriptedKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(level: int, name: int, value: Any) -> None:
        raise OSError(errno.ENOPROTOOPT, "no")

    monkeypatch.setattr(kernel, "setsockopt", refuse)
    with pytest.raises(OSError, match="no"):
        opened(kernel, None)
    assert kernel.fileno() == -1


@pytest.mark.parametrize("opener", [open_ping_socket, open_raw_socket])
def test_a_closed_way_says_so(opener: Callable[[], EchoSocket], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> socket.socket:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(echo_path.socket, "socket", refuse)
    with pytest.raises(PermissionError) as raised:
        opener()
    assert raised.value.errno in echo_path.NOT_HERE


async def test_the_raw_sockets_filter_is_its_identifier(
    kernel: ScriptedKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program's bytes, by hand: struct sock_filter of linux/filter.h."""
    programs = []

    def create(data: bytes) -> Any:
        programs.append(data)
        return real(data)

    real = echo_path.ctypes.create_string_buffer
    monkeypatch.setattr(echo_path.ctypes, "create_string_buffer", create)
    monkeypatch.setattr(echo_path.socket, "socket", lambda *_: kernel)
    monkeypatch.setattr(echo_path.secrets, "randbelow", lambda bound: 0x0BAC)
    open_raw_socket().close()
    loads = struct.pack("=HBBI", 0xB1, 0, 0, 0) + struct.pack("=HBBI", 0x48, 0, 0, 4)
    assert programs == [
        loads
        + struct.pack("=HBBI", 0x15, 0, 1, 0x0BAD)
        + struct.pack("=HBBI", 0x06, 0, 0, 0xFFFF)
        + struct.pack("=HBBI", 0x06, 0, 0, 0)
    ]
    assert kernel.options[255, 1] == struct.pack("=I", 0xFFFFFFFE)  # all types are blocked but 0, echo reply
