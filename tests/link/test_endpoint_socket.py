"""The socket under an endpoint: options, who is at the other end, connecting."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

import pytest
import trio
import trio.testing

from sulla_trio.errors import ConfigError
from sulla_trio.link import endpoint_socket
from sulla_trio.link.endpoint import MAX_BUFFERS, Endpoint, connect, listen_endpoints, parse_endpoint
from sulla_trio.link.endpoint_socket import connect_socket, new_socket, peer_of, tune


class Foreign:
    """A socket of a family that this system may not have, as far as `peer_of` and `tune` look at one."""

    def __init__(self, family: int, peer: object) -> None:
        self.family = family
        self.options: list[tuple[int, int, int]] = []
        self._peer = peer
        self.credentials: bytes | OSError = b""

    def getpeername(self) -> object:
        if isinstance(self._peer, OSError):
            raise self._peer
        return self._peer

    def getsockopt(self, level: int, option: int, length: int) -> bytes:
        if isinstance(self.credentials, OSError):
            raise self.credentials
        assert len(self.credentials) in (0, length)
        return self.credentials

    def setsockopt(self, *option: int) -> None:
        self.options.append(option)  # type: ignore[arg-type]


async def test_join_path_of_systems_without_sendmsg() -> None:
    left, right = socket.socketpair()
    endpoint = Endpoint(left, "left")
    endpoint._gather = None
    assert endpoint.send_gathered([b"a", b"b", b"c"]) == 3
    assert right.recv(9) == b"abc"
    endpoint.close()
    right.close()


def test_iovec_limit() -> None:
    left, right = socket.socketpair()
    endpoint = Endpoint(left, "left")
    assert endpoint.send_gathered([b"x"] * (MAX_BUFFERS + 10)) == MAX_BUFFERS
    endpoint._socket.close()
    right.close()


def test_a_vsock_has_the_buffers_of_both_peers() -> None:
    family = endpoint_socket.AF_VSOCK
    assert family is not None
    sock = Foreign(family, None)
    tune(sock)  # type: ignore[arg-type]
    buffers = {(socket.SOL_SOCKET, option, 256 << 10) for option in (socket.SO_SNDBUF, socket.SO_RCVBUF)}
    assert set(sock.options) == buffers


async def test_peer_of_a_unix_socket_is_its_user(tmp_path: Path) -> None:
    async with (
        await listen_endpoints(parse_endpoint(f"unix://{tmp_path}/s")) as listener,
        await connect(listener.url) as left,
        await listener.accept() as right,
    ):
        assert left.peer == right.peer == f"unix:{os.getuid()}"


async def test_peer_of_tcp_is_its_address() -> None:
    async with (
        await listen_endpoints(parse_endpoint("tcp://127.0.0.1:0")) as listener,
        await connect(listener.url) as left,
        await listener.accept() as right,
    ):
        assert left.peer == right.peer == "tcp:127.0.0.1"


@pytest.mark.parametrize(
    ("family", "name", "peer"),
    [
        ("AF_VSOCK", (3, 49152), "vsock:3"),
        ("AF_HYPERV", ("2F3A9B1C-77AA-4E0D-9C55-0123456789AB", "x"), "hyperv:2f3a9b1c-77aa-4e0d-9c55-0123456789ab"),
        ("AF_INET", OSError("gone"), "tcp:?"),
        ("AF_VSOCK", OSError("gone"), "vsock:?"),
        ("AF_NONE", ("x",), "fd:?"),
    ],
)
def test_peer_of_what_the_kernel_tells(monkeypatch: pytest.MonkeyPatch, family: str, name: object, peer: str) -> None:
    numbers = {"AF_VSOCK": 40, "AF_HYPERV": 34, "AF_INET": socket.AF_INET, "AF_NONE": 99}
    monkeypatch.setattr(endpoint_socket, "AF_VSOCK", 40)
    monkeypatch.setattr(endpoint_socket, "AF_HYPERV", 34)
    assert peer_of(Foreign(numbers[family], name)) == peer  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("platform", "credentials", "peer"),
    [
        ("linux", struct.pack("=iII", 77, 1000, 100), "unix:1000"),
        ("linux", b"", "unix:?"),
        ("darwin", struct.pack("=IIhxx16I", 0, 501, 1, 20, *[0] * 15), "unix:501"),
        ("darwin", OSError("gone"), "unix:?"),
        ("win32", b"", "unix:?"),
    ],
)
def test_peer_of_a_unix_socket_on_each_platform(
    monkeypatch: pytest.MonkeyPatch, platform: str, credentials: bytes | OSError, peer: str
) -> None:
    monkeypatch.setattr(endpoint_socket.sys, "platform", platform)
    sock = Foreign(socket.AF_UNIX, None)
    sock.credentials = credentials
    assert peer_of(sock) == peer  # type: ignore[arg-type]


def test_a_family_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="vsock://2:1: this system has no vsock sockets"):
        new_socket(None, parse_endpoint("vsock://2:1"))


async def test_connecting_waits_for_room_in_a_unix_listeners_queue(tmp_path: Path, nursery: trio.Nursery) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(path)
        listener.listen(0)
        first.connect(path)
        second = socket.socket(socket.AF_UNIX)
        second.setblocking(False)
        nursery.start_soon(connect_socket, second, path)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(OSError, match="not connected"):
            second.getpeername()
        listener.accept()[0].close()
        while True:
            try:
                assert second.getpeername() == path
                break
            except OSError:
                await trio.sleep(0.005)
        second.close()


async def test_a_cancelled_connect_closes_its_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(path)
        listener.listen(0)
        first.connect(path)
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        with trio.move_on_after(0.05) as scope:
            await connect_socket(sock, path)
        assert scope.cancelled_caught
        assert sock.fileno() == -1


async def test_a_refused_connect_closes_its_socket() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        sock = socket.socket()
        sock.setblocking(False)
        with pytest.raises(ConnectionRefusedError):
            await connect_socket(sock, bound.getsockname())
        assert sock.fileno() == -1
