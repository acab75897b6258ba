"""What an endpoint's URL leads to, and the end of it."""

import os
import socket

import pytest
import trio
import trio.testing

from sulla_trio.errors import ConfigError
from sulla_trio.link import endpoint
from sulla_trio.link.endpoint import (
    Endpoint,
    EndpointListener,
    connect,
    listen,
    listen_endpoints,
    parse_endpoint,
    take_socket,
)
from tests.support.cancelling import cancel_at_each_checkpoint
from tests.support.hybrid_vmm import Greeter, HybridVmm


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
    link = await connect(parse_endpoint(f"fd://{left.detach()}"))
    right.sendall(b"x")
    await link.wait_readable()
    assert link.recv_into(memoryview(bytearray(4))) == 1
    await link.aclose()
    assert right.recv(1) == b""
    right.close()


async def test_fd_that_is_no_socket() -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    try:
        with pytest.raises(ConfigError, match=f"fd://{fd}"):
            await connect(parse_endpoint(f"fd://{fd}"))
    finally:
        os.close(fd)


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


@pytest.mark.parametrize("wait", ["wait_readable", "wait_writable"])
async def test_after_the_end_every_call_says_so(wait: str) -> None:
    left, right = socket.socketpair()
    async with Endpoint(left, "left") as endpoint:
        pass
    await endpoint.aclose()
    assert right.recv(1) == b""
    right.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        endpoint.recv_into(memoryview(bytearray(1)))
    with pytest.raises(OSError, match="Bad file descriptor"):
        endpoint.send_gathered([b"x"])
    with pytest.raises(trio.ClosedResourceError):
        await getattr(endpoint, wait)()


async def test_any_is_no_place_to_connect_to() -> None:
    with pytest.raises(ConfigError, match="vsock://ANY:1: ANY is for listening"):
        await connect(parse_endpoint("vsock://ANY:1"))


@pytest.mark.parametrize("url", ["vsock://ANY:1", "vsock+unix:///x:1", "fd://3"])
async def test_a_plain_listener_is_unix_or_tcp(url: str) -> None:
    with pytest.raises(ConfigError, match="want unix:///path or tcp://host:port"):
        await listen(parse_endpoint(url))


async def test_ipv6_if_that_is_what_is_written() -> None:
    assert await endpoint._resolve(parse_endpoint("tcp://[::1]:80")) == (socket.AF_INET6, ("::1", 80, 0, 0))
    assert await endpoint._resolve(parse_endpoint("tcp://127.0.0.1:80")) == (socket.AF_INET, ("127.0.0.1", 80))


@pytest.mark.parametrize("scheme", ["unix", "tcp", "vsock+unix"])
async def test_a_connect_cancelled_at_any_checkpoint_leaves_nothing(tmp_path, nursery, scheme: str) -> None:
    vmm = HybridVmm(tmp_path / "s")
    vmm.ports[7] = Greeter(b"hello")
    await nursery.start(vmm.run)
    where = parse_endpoint("tcp://127.0.0.1:0" if scheme == "tcp" else f"unix://{tmp_path}/other")
    async with await listen_endpoints(where) as listener:
        urls = {"unix": f"unix://{tmp_path}/other", "tcp": listener.url.text, "vsock+unix": f"{vmm.url}:7"}
        before = set(os.listdir("/proc/self/fd"))

        async def nothing_left() -> None:
            with trio.fail_after(20):
                while set(os.listdir("/proc/self/fd")) != before:  # the other side goes a little later
                    with trio.move_on_after(0):
                        await (await listener.accept()).aclose()
                    await trio.sleep(0.001)

        assert await cancel_at_each_checkpoint(
            lambda: connect(parse_endpoint(urls[scheme])), Endpoint.aclose, nothing_left
        )
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("url", ["unix://{}/s", "vsock+unix://{}/s:7", "tcp://127.0.0.1:0"])
async def test_a_listen_cancelled_at_any_checkpoint_leaves_nothing(tmp_path, url: str) -> None:
    before = set(os.listdir("/proc/self/fd"))

    async def nothing_left() -> None:
        assert set(os.listdir("/proc/self/fd")) == before
        assert os.listdir(tmp_path) == []

    where = parse_endpoint(url.format(tmp_path))
    assert await cancel_at_each_checkpoint(lambda: listen_endpoints(where), EndpointListener.aclose, nothing_left)
