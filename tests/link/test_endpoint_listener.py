"""Listeners of endpoints: the connections, the files, the end."""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from sulla_trio.errors import ConfigError
from sulla_trio.link.endpoint import Endpoint, EndpointListener, connect, listen_endpoints, parse_endpoint
from tests.support.endpoint_io import receive, receive_all, send


@pytest.fixture(params=["unix", "tcp", "hybrid"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    urls = {"unix": f"unix://{tmp_path}/s", "tcp": "tcp://127.0.0.1:0", "hybrid": f"vsock+unix://{tmp_path}/s:7"}
    return urls[request.param]


def dialled(listener: EndpointListener) -> str:
    """The URL of the other side: hybrid vsock's listening file is a plain unix socket for the VMM."""
    text = listener.url.text
    return f"unix://{listener.url.host}_{listener.url.port}" if listener.url.scheme == "vsock+unix" else text


async def test_serve_listeners_runs_on_it(url: str, nursery: trio.Nursery) -> None:
    async def echo(endpoint: Endpoint) -> None:
        async with endpoint:
            await send(endpoint, (await receive(endpoint)).upper())

    listener = await listen_endpoints(parse_endpoint(url))
    nursery.start_soon(trio.serve_listeners, echo, [listener])
    for word in (b"one", b"two"):
        async with await connect(parse_endpoint(dialled(listener))) as endpoint:
            await send(endpoint, word)
            assert await receive_all(endpoint) == word.upper()
    nursery.cancel_scope.cancel()


async def test_the_real_port_is_told() -> None:
    async with await listen_endpoints(parse_endpoint("tcp://127.0.0.1:0")) as listener:
        assert listener.url.port
        assert listener.url.text == f"tcp://127.0.0.1:{listener.url.port}"


async def test_close_wakes_who_accepts(url: str, nursery: trio.Nursery) -> None:
    listener = await listen_endpoints(parse_endpoint(url))

    async def accept() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()

    nursery.start_soon(accept)
    await trio.testing.wait_all_tasks_blocked()
    await listener.aclose()
    await listener.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()


async def test_a_connection_that_has_gone_is_still_one(url: str) -> None:
    async with await listen_endpoints(parse_endpoint(url)) as listener:
        gone = await connect(parse_endpoint(dialled(listener)))
        gone._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # RST where there is one
        await gone.aclose()
        async with await connect(parse_endpoint(dialled(listener))) as client:
            async with await listener.accept():
                pass
            async with await listener.accept() as second:
                await send(client, b"x")
                assert await receive(second) == b"x"


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    held = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
        with pytest.raises(OSError, match="Too many"):
            for _ in range(highest + 2):
                held.append(os.dup(0))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in held:
            os.close(descriptor)


async def test_out_of_descriptors_is_told_and_passes(url: str) -> None:
    async with (
        await listen_endpoints(parse_endpoint(url)) as listener,
        await connect(parse_endpoint(dialled(listener))) as client,
    ):
        with no_descriptor_left(), pytest.raises(OSError, match="Too many") as caught:
            await listener.accept()
        assert caught.value.errno == errno.EMFILE  # what serve_listeners waits for and goes on
        async with await listener.accept() as accepted:
            await send(client, b"x")
            assert await receive(accepted) == b"x"


async def test_the_file_is_the_owners_and_goes_with_the_listener(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with await listen_endpoints(parse_endpoint(f"unix://{path}")):
        assert path.stat().st_mode & 0o777 == 0o600
    assert not path.exists()


async def test_a_file_that_another_has_put_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with await listen_endpoints(parse_endpoint(f"unix://{path}")):
        path.rename(tmp_path / "moved")  # its inode lives on, as in no other test, and cannot be given to the next file
        path.write_text("another's")
    assert path.read_text() == "another's"


async def test_a_dead_listeners_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    async with (
        await listen_endpoints(parse_endpoint(f"unix://{path}")) as listener,
        await connect(listener.url),
        await listener.accept(),
    ):
        pass


async def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="is not a socket"):
        await listen_endpoints(parse_endpoint(f"unix://{path}"))
    assert path.read_text() == "mine"


@pytest.mark.parametrize(("backlog", "text"), [(5, "in use by a running listener"), (0, "does not answer")])
async def test_a_live_listeners_file_is_left_alone(tmp_path: Path, backlog: int, text: str) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as alive, socket.socket(socket.AF_UNIX) as first:
        alive.bind(str(path))
        alive.listen(backlog)
        first.connect(str(path))
        with pytest.raises(ConfigError, match=text):
            await listen_endpoints(parse_endpoint(f"unix://{path}"))
    assert path.exists()


async def test_where_nothing_can_be_bound(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        await listen_endpoints(parse_endpoint(f"unix://{tmp_path}/none/s"))
    with pytest.raises(ConfigError, match="name a place"):
        await listen_endpoints(parse_endpoint("fd://3"))


async def test_a_listener_that_cannot_be_finished_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chmod(path: str, mode: int) -> None:
        raise PermissionError(errno.EPERM, "a file system without modes")

    monkeypatch.setattr(os, "chmod", chmod)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(PermissionError):
        await listen_endpoints(parse_endpoint(f"unix://{tmp_path}/s"))
    assert os.listdir(tmp_path) == []
    assert set(os.listdir("/proc/self/fd")) == before
