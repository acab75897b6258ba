"""Endpoint URLs and the four calls."""

import os
import socket

import pytest
import trio
import trio.testing

from sulla_trio.errors import ConfigError
from sulla_trio.link import endpoint as endpoints
from sulla_trio.link.endpoint import Endpoint, connect, listen, parse_endpoint, take_socket


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("fd://5", ("fd", "", 5)),
        ("unix:///run/x.sock", ("unix", "/run/x.sock", 0)),
        ("tcp://127.0.0.1:80", ("tcp", "127.0.0.1", 80)),
        ("vsock://2:6656", ("vsock", "2", 6656)),
        ("vsock://ANY:6656", ("vsock", "ANY", 6656)),
    ],
)
def test_parse_endpoint(url: str, expected: tuple[str, str, int]) -> None:
    assert parse_endpoint(url)[:3] == expected


@pytest.mark.parametrize(
    "url",
    ["", "fd://", "fd://x", "unix://run/x", "tcp://1.2.3.4", "tcp://h:99999", "vsock://2", "vsock://a:1", "http://x"],
)
def test_bad_urls_are_one_line_that_names_them(url: str) -> None:
    with pytest.raises(ConfigError, match="invalid endpoint") as caught:
        parse_endpoint(url)
    assert url in str(caught.value)
    assert "\n" not in str(caught.value)


def test_default_port_of_the_dialect() -> None:
    assert parse_endpoint("vsock://3", 6669).port == 6669


async def test_unix_listen_connect_and_stale_files(tmp_path) -> None:
    path = tmp_path / "s.sock"
    url = parse_endpoint(f"unix://{path}")
    listener = await listen(url)
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="in use"):
        await listen(url)
    async with listener:
        await (await listener.accept()).aclose()  # the probe of the second listen
        client = await connect(url)
        server = Endpoint(take_socket(await listener.accept()), "server")
        assert client.send_gathered([b"ab", memoryview(b"cd")]) == 4
        await server.wait_readable()
        buffer = bytearray(10)
        while True:
            try:
                count = server.recv_into(memoryview(buffer))
                break
            except BlockingIOError:
                await trio.lowlevel.checkpoint()
        assert buffer[:count] == b"abcd"
        await client.aclose()
        await server.aclose()
    again = await listen(url)  # the file is still there, its listener is not
    await again.aclose()


async def test_a_file_that_is_no_socket_is_left_alone(tmp_path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(ConfigError):
        await listen(parse_endpoint(f"unix://{path}"))
    assert path.read_text() == "mine"


async def test_fd_takes_the_inherited_socket_over() -> None:
    left, right = socket.socketpair()
    endpoint = await connect(parse_endpoint(f"fd://{left.detach()}"))
    right.sendall(b"x")
    await endpoint.wait_readable()
    assert endpoint.recv_into(memoryview(bytearray(4))) == 1
    await endpoint.aclose()
    assert right.recv(1) == b""
    right.close()


async def test_fd_that_is_no_socket() -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    try:
        with pytest.raises(ConfigError, match=f"fd://{fd}"):
            await connect(parse_endpoint(f"fd://{fd}"))
    finally:
        os.close(fd)


async def test_join_path_of_systems_without_sendmsg() -> None:
    left, right = socket.socketpair()
    endpoint = Endpoint(left, "left")
    endpoint._gather = False
    assert endpoint.send_gathered([b"a", b"b", b"c"]) == 3
    assert right.recv(9) == b"abc"
    endpoint.close()
    right.close()


async def test_close_wakes_a_waiter(nursery) -> None:
    left, right = socket.socketpair()
    endpoint = Endpoint(left, "left")
    woken = trio.Event()

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await endpoint.wait_readable()
        woken.set()

    nursery.start_soon(wait)
    await trio.testing.wait_all_tasks_blocked()
    endpoint.close()
    await woken.wait()
    right.close()


def test_iovec_limit() -> None:
    left, right = socket.socketpair()
    endpoint = Endpoint(left, "left")
    assert endpoint.send_gathered([b"x"] * (endpoints.MAX_BUFFERS + 10)) == endpoints.MAX_BUFFERS
    endpoint._socket.close()
    right.close()
