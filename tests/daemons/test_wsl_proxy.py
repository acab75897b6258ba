"""wsl-proxy as a task: its control socket under good, bad and slow clients, its files, its end."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from sulla_trio.api.client import ApiClient
from sulla_trio.api.location import ApiLocation
from sulla_trio.daemons import wsl_proxy as daemon
from sulla_trio.daemons.wsl_proxy import WslProxyConfig, wsl_proxy
from sulla_trio.errors import ConfigError
from tests.support.published import UPSTREAM, descriptors, free_port, until


def message(*bindings: tuple[str, str, int], remove: bool = False) -> bytes:
    """As the guest agent writes it: (container port and protocol, HostIp, HostPort)."""
    ports: dict[str, list[dict[str, str]]] = {}
    for key, ip, port in bindings:
        ports.setdefault(key, []).append({"HostIp": ip, "HostPort": str(port)})
    return json.dumps({"remove": remove, "ports": ports, "connectAddrs": None}).encode() + b"\n"


def answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
            probe.sendall(message())
        except OSError:
            return False
        return True


@contextlib.asynccontextmanager
async def running(path: Path, **options: str) -> AsyncIterator[trio.Nursery]:
    """The daemon, strict, on the socket `path`; SIGTERM ends it, with status 0 and nothing left."""
    before = set(descriptors().values())
    statuses = []

    async def run() -> None:
        statuses.append(await wsl_proxy(WslProxyConfig(str(path), UPSTREAM, strict=True, **options)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await until(lambda: answers(path) or statuses)
        yield nursery
        os.kill(os.getpid(), signal.SIGTERM)
        await until(lambda: statuses)
    assert statuses == [0]
    assert path.name not in os.listdir(path.parent)
    assert {what for what in descriptors().values() if "socket" in what or "pipe" in what} <= before


async def told(path: Path, data: bytes, *, half_close: bool = False) -> bytes:
    """What the daemon answers to `data`, to the end of the connection."""
    stream = await trio.open_unix_socket(str(path))
    async with stream:
        try:
            await stream.send_all(data)
            if half_close:
                await stream.send_eof()
            return b"".join([bytes(part) async for part in stream])
        except trio.BrokenResourceError:
            return b""  # it has closed before it had read all


async def refused(port: int) -> bool:
    try:
        await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
    except OSError:
        return True
    return False


async def test_published_tcp_port(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, port = tmp_path / "s", free_port()
    caplog.set_level(logging.INFO)
    (upstream,) = await trio.open_tcp_listeners(port, host=UPSTREAM)
    async with upstream, running(path):
        assert await refused(port)
        # Without the end of the stream: the listener exists when the client sees the end of its connection.
        assert await told(path, message(("80/tcp", "127.0.0.1", port))) == b""
        client = await trio.open_tcp_stream("127.0.0.1", port)
        far = await upstream.accept()
        await client.send_all(b"GET / HTTP/1.0\r\n\r\n")
        await client.send_eof()
        assert await far.receive_some() == b"GET / HTTP/1.0\r\n\r\n"
        assert await far.receive_some() == b""
        await far.send_all(b"HTTP/1.0 200 OK\r\n\r\n")
        await far.aclose()
        assert await client.receive_some() == b"HTTP/1.0 200 OK\r\n\r\n"
        await client.aclose()
        assert await told(path, message(("80/tcp", "127.0.0.1", port), remove=True)) == b""
        assert await refused(port)
    assert f"Proxy server started accepting on {path}, forwarding to {UPSTREAM}" in caplog.text
    assert caplog.records[-1].message == "Shutting down..."


async def test_published_udp_port(tmp_path: Path) -> None:
    path, port = tmp_path / "s", free_port()
    with trio.socket.socket(type=socket.SOCK_DGRAM) as upstream, trio.socket.socket(type=socket.SOCK_DGRAM) as client:
        await upstream.bind((UPSTREAM, port))
        async with running(path):
            await told(path, message(("53/UDP", "127.0.0.1", port)))
            await client.sendto(b"this is a test message", ("127.0.0.1", port))
            data, peer = await upstream.recvfrom(100)
            assert data == b"this is a test message"
            await upstream.sendto(b"and an answer", peer)
            assert await client.recvfrom(100) == (b"and an answer", ("127.0.0.1", port))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "EOF"),
        (b" \n", "EOF"),
        (b'{"remove":', "unexpected EOF"),
        (b"GET / HTTP/1.1\r\n\r\n", "invalid character 'G' looking for beginning of value"),
        (b"\0" * 100, "invalid character '\\x00' looking for beginning of value"),
        (b"[" * 60_000, "exceeded max depth"),
        (b'{"ports":' * 7000, "exceeded max depth"),
        (b'{"x":"' + b"y" * 200_000, "the message is larger than 65535 bytes"),
        (b" " * 200_000, "the message is larger than 65535 bytes"),
        (b'{"ports":{"80/tcp":[%s{}]}}' % (b"{}," * 3000), "the message has more than 2048 bindings"),
        (
            b'{"remove":false,"ports":{"80/tcp":[{"HostIp":"127.0.0.1","HostPort":8080}]}}',
            "json: cannot unmarshal number into Go struct field PortBinding.ports.HostPort of type string",
        ),
        (b'"text" ', "json: cannot unmarshal string into Go value of type types.PortMapping"),
        (b'{"a":' + b"9" * 60_000 + b"e}", "invalid character '}' in exponent of numeric literal"),
    ],
    ids=range(13),
)
async def test_what_is_no_mapping(tmp_path: Path, caplog: pytest.LogCaptureFixture, data: bytes, text: str) -> None:
    path, port = tmp_path / "s", free_port()
    async with running(path):
        assert await told(path, data, half_close=True) == b""
        await until(lambda: "payload error" in caplog.text)
        assert caplog.messages == [f"port server decoding received payload error: {text}"]
        await told(path, message(("80/tcp", "127.0.0.1", port)))
        assert not await refused(port)


async def test_a_mapping_in_pieces(tmp_path: Path) -> None:
    path, port = tmp_path / "s", free_port()
    async with running(path), await trio.open_unix_socket(str(path)) as stream:
        for byte in message(("80/tcp", "127.0.0.1", port)).strip():
            await stream.send_all(bytes([byte]))
            await trio.testing.wait_all_tasks_blocked()
        assert await stream.receive_some() == b""
        assert not await refused(port)


async def test_silent_and_dripping_clients_are_cut(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    path = tmp_path / "s"

    async def silent() -> None:
        async with await trio.open_unix_socket(str(path)) as stream:
            assert await stream.receive_some() == b""

    async def dripping() -> None:
        async with await trio.open_unix_socket(str(path)) as stream:
            with pytest.raises(trio.BrokenResourceError):
                while True:
                    await stream.send_all(b" ")
                    await trio.sleep(1)

    async with running(path) as nursery:
        start = trio.current_time()
        async with trio.open_nursery() as clients:
            clients.start_soon(silent)
            clients.start_soon(dripping)
        assert daemon.MESSAGE_TIMEOUT <= trio.current_time() - start <= daemon.MESSAGE_TIMEOUT + 5
        assert nursery.child_tasks
    assert caplog.text.count("not complete after 10 s") == 2


async def test_silent_clients_hold_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "MAX_CLIENTS", 3)
    path, port = tmp_path / "s", free_port()
    async with running(path), contextlib.AsyncExitStack() as stack:
        silent = []
        for _ in range(5):
            silent.append(await stack.enter_async_context(await trio.open_unix_socket(str(path))))
            await trio.testing.wait_all_tasks_blocked()
        for gone in silent[:2]:
            assert await gone.receive_some() == b""
        await told(path, message(("80/tcp", "127.0.0.1", port)))
        assert not await refused(port)
        await silent[4].send_all(message(("80/tcp", "127.0.0.1", port), remove=True))
        assert await silent[4].receive_some() == b""
        assert await refused(port)


async def test_mappings_take_effect_in_their_order(tmp_path: Path) -> None:
    path, port = tmp_path / "s", free_port()
    async with running(path):
        for _ in range(30):  # an agent that does not wait for the end of its connections
            for remove in (False, True):
                with socket.socket(socket.AF_UNIX) as agent:
                    agent.connect(str(path))
                    agent.sendall(message(("80/tcp", "127.0.0.1", port), remove=remove))
        await told(path, message())
        assert await refused(port)


async def test_the_end_comes_at_once_whatever_is_open(tmp_path: Path) -> None:
    path, port = tmp_path / "s", free_port()
    (upstream,) = await trio.open_tcp_listeners(port, host=UPSTREAM)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(upstream)
        statuses = []
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                statuses.append(await wsl_proxy(WslProxyConfig(str(path), UPSTREAM, strict=True)))

            nursery.start_soon(run)
            await until(lambda: answers(path))
            await told(path, message(("80/tcp", "127.0.0.1", port), ("80/udp", "127.0.0.1", port)))
            streams = [
                await trio.open_tcp_stream("127.0.0.1", port),
                await upstream.accept(),
                await trio.open_unix_socket(str(path)),
            ]
            for stream in streams:
                await stack.enter_async_context(stream)
            with trio.move_on_after(0.2):
                await streams[0].send_all(bytes(50_000_000))
            os.kill(os.getpid(), signal.SIGINT)
            await until(lambda: statuses)
        with pytest.raises(trio.BrokenResourceError):
            while await streams[0].receive_some():
                pass
        assert await streams[2].receive_some() == b""
    assert statuses == [0]
    assert await refused(port)
    assert not path.exists()


async def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    async with running(path):
        with pytest.raises(ConfigError, match=f"listen unix {path}: .* in use by a running listener"):
            await daemon.listen(str(path))
        assert await told(path, message()) == b""
    path.write_text("mine")
    with pytest.raises(ConfigError, match="exists and is not a socket"):
        await daemon.listen(str(path))
    assert path.read_text() == "mine"
    with pytest.raises(ConfigError, match=r"/nowhere/s: bind: no such file or directory"):
        await daemon.listen("/nowhere/s")
    with pytest.raises(ConfigError, match="failed to create listener for published ports: listen unix xxx"):
        await daemon.listen("x" * 200)


async def test_the_file_has_the_umasks_mode_and_somebody_elses_is_left(tmp_path: Path) -> None:
    path = tmp_path / "s"
    old = os.umask(0o027)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wsl_proxy, WslProxyConfig(str(path), UPSTREAM, strict=True))
            await until(lambda: answers(path))
            assert stat.S_IMODE(path.stat().st_mode) == 0o750
            path.unlink()
            path.write_text("another's")
            nursery.cancel_scope.cancel()
    finally:
        os.umask(old)
    assert path.read_text() == "another's"


async def test_events_are_served_where_asked(tmp_path: Path) -> None:
    path, port = tmp_path / "s", free_port()
    events = tmp_path / "events.sock"
    async with running(path, events=f"unix://{events}"):
        await until(events.exists)
        await told(path, message(("80/tcp", "127.0.0.1", port)))
        client = ApiClient(ApiLocation(f"unix://{events}"))
        with trio.fail_after(20):
            async with client.events(since=0, types=("forward",)) as stream:
                async for event in stream:
                    if event["type"] == "forward.opened":
                        break
                    assert (event["type"], event["source"]) == ("forward.added", "wsl-proxy")
                    assert (event["local"], event["remote"]) == (f"127.0.0.1:{port}", f"{UPSTREAM}:{port}")
                    assert not await refused(port)
    assert not events.exists()


async def test_events_that_cannot_be_served_end_it(tmp_path: Path) -> None:
    path = tmp_path / "s"
    (tmp_path / "file").write_text("mine")
    for url in (f"unix://{tmp_path}/file", f"unix://{tmp_path}/file/e", "fd://3"):
        with pytest.raises(BaseExceptionGroup) as caught:
            await wsl_proxy(WslProxyConfig(str(path), UPSTREAM, events=url, strict=True))
        error: BaseException = caught.value
        while isinstance(error, BaseExceptionGroup):
            (error,) = error.exceptions
        assert isinstance(error, ConfigError)
        assert not path.exists()
