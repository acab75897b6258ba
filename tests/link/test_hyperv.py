"""AF_HYPERV with injected constants and sockets: addresses, the self-test, and the same endpoint either way."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from sulla_trio.errors import ConfigError
from sulla_trio.link import hyperv
from sulla_trio.link.endpoint import Endpoint, EndpointListener, connect, listen_endpoints, parse_endpoint
from sulla_trio.link.endpoint_threads import ThreadedEndpoint, ThreadedListener
from sulla_trio.link.hyperv import connect_hyperv, listen_hyperv, readiness_works, system_hyperv
from tests.support.endpoint_io import receive, send
from tests.support.endpoint_pairs import wait_for_no_thread
from tests.support.fake_hyperv import FakeHyperVSockets

URL = parse_endpoint("hyperv://2F3A9B1C-77AA-4E0D-9C55-0123456789AB:6656")


@pytest.fixture
def sockets(tmp_path: Path) -> Iterator[FakeHyperVSockets]:
    before = set(os.listdir("/proc/self/fd"))
    sockets = FakeHyperVSockets(tmp_path)
    yield sockets
    wait_for_no_thread()
    sockets.made.clear()
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("readiness", "kinds"), [(True, (Endpoint, EndpointListener)), (False, (ThreadedEndpoint, ThreadedListener))]
)
async def test_dial_and_listen(
    sockets: FakeHyperVSockets, readiness: bool, kinds: tuple[type[Endpoint], type[EndpointListener]]
) -> None:
    system = sockets.hyperv(readiness)
    async with await listen_hyperv(URL, system) as listener:
        assert type(listener) is kinds[1]
        assert (sockets.directory / "00001a00").is_socket()  # 6656
        async with await connect_hyperv(URL, system) as left, await listener.accept() as right:
            assert type(left) is type(right) is kinds[0]
            assert left.name == right.name == URL.text
            await send(left, b"frame")
            assert await receive(right) == b"frame"


@pytest.mark.parametrize("readiness", [True, False])
async def test_failures_leave_no_socket(sockets: FakeHyperVSockets, readiness: bool) -> None:
    system = sockets.hyperv(readiness)
    with pytest.raises(FileNotFoundError):
        await connect_hyperv(URL, system)
    (sockets.directory / "00001a00").touch()
    with pytest.raises(OSError, match="in use"):
        await listen_hyperv(URL, system)
    assert [sock.fileno() for sock in sockets.made] == [-1, -1]


async def test_a_cancelled_dial_leaves_no_socket_though_its_thread_still_blocks(sockets: FakeHyperVSockets) -> None:
    path = str(sockets.directory / "00001a00")
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first:
        busy.bind(path)
        busy.listen(0)
        first.connect(path)  # its queue is full: the next connect blocks
        with trio.move_on_after(0.05) as scope:
            await connect_hyperv(URL, sockets.hyperv(False))
        assert scope.cancelled_caught
        assert [sock.fileno() for sock in sockets.made] == [-1]


async def test_the_self_test_passes_where_readiness_works(sockets: FakeHyperVSockets) -> None:
    assert await readiness_works(sockets.new_socket)
    assert all(sock.fileno() == -1 for sock in sockets.made)


async def test_no_loopback_means_threads(sockets: FakeHyperVSockets) -> None:
    sockets.directory.rmdir()
    assert not await readiness_works(sockets.new_socket)
    assert all(sock.fileno() == -1 for sock in sockets.made)
    sockets.directory.mkdir()


@pytest.mark.parametrize("failure", ["never", "refused"])
async def test_sockets_that_cannot_be_waited_for(
    sockets: FakeHyperVSockets,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
    failure: str,
) -> None:
    async def wait(sock: object) -> None:
        if failure == "refused":
            raise OSError(22, "not a socket that AFD knows")
        await trio.sleep_forever()

    monkeypatch.setattr(trio.lowlevel, "wait_readable", wait)
    start = trio.current_time()
    assert not await readiness_works(sockets.new_socket)
    assert trio.current_time() - start <= hyperv.SELF_TEST_TIMEOUT
    assert all(sock.fileno() == -1 for sock in sockets.made)


async def test_the_self_test_runs_once_for_many_dials(sockets: FakeHyperVSockets) -> None:
    system = sockets.hyperv(None)
    answers: list[bool] = []

    async def ask() -> None:
        answers.append(await system.needs_threads())

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask)
    assert answers == [False] * 5
    assert len(sockets.made) == 2


@pytest.mark.parametrize("verb", [connect, listen_endpoints])
async def test_without_the_constants_one_line_says_what_is_needed(verb: object) -> None:
    assert callable(verb)
    with pytest.raises(ConfigError) as caught:
        await verb(URL)
    assert str(caught.value) == f"{URL.text}: AF_HYPERV needs Python 3.12 or newer on Windows"


async def test_the_constants_make_the_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, ...]] = []
    options: list[tuple[int, ...]] = []

    class Recording:
        family = 34

        def __init__(self, *how: int) -> None:
            made.append(how)

        def setsockopt(self, *option: int) -> None:
            options.append(option)

    monkeypatch.setattr(socket, "socket", Recording)
    system_hyperv(SimpleNamespace(AF_HYPERV=34, HV_PROTOCOL_RAW=1, HVSOCKET_CONNECT_TIMEOUT=1)).new_socket()
    assert made == [(34, socket.SOCK_STREAM, 1)]
    assert (1, 1, 2000) in options


async def test_one_system_for_each_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("AF_HYPERV", 34), ("HV_PROTOCOL_RAW", 1), ("HVSOCKET_CONNECT_TIMEOUT", 1)):
        monkeypatch.setattr(socket, name, value, raising=False)
    assert hyperv.current_hyperv() is hyperv.current_hyperv()
