"""host-switch with --state, as its user runs it: killed in the middle of its work, it has its forwards and leases again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from sulla_trio.config import format_ip
from sulla_trio.link.endpoint import Endpoint, take_socket
from sulla_trio.services.events import EventLog
from sulla_trio.services.flows import FlowTable
from sulla_trio.vnet.driver import Driver
from sulla_trio.vnet.sockets import TcpListener
from tests.forward.test_inbound import free_port
from tests.support.dhcp_link import DhcpLink, mac
from tests.support.two_drivers import GUEST, guest_config

pytestmark = pytest.mark.e2e

PATIENCE = 30.0
MACS = [mac(number) for number in range(1, 4)]


class HostSwitch:
    """The daemon's files in one directory."""

    def __init__(self, directory: Path) -> None:
        self.state, self.api, self.data = (directory / name for name in ("state.json", "api.sock", "data.sock"))
        self.log = directory / "log"

    @contextmanager
    def running(self, *flags: str, under: Sequence[str] = ()) -> Iterator[subprocess.Popen[bytes]]:
        """The daemon, started by the command `under`; killed at the end if it is still there."""
        command = [*under, sys.executable, "-m", "sulla_trio.cli.daemons", "host-switch", "--strict"]
        command += [
            "--state",
            str(self.state),
            "--listen",
            f"unix://{self.api}",
            "--vm",
            "none",
            "--data",
            f"unix://{self.data}",
        ]
        with self.log.open("wb") as log, subprocess.Popen([*command, *flags], stderr=log) as process:
            try:
                yield process
            finally:
                process.kill()

    async def curl(self, path: str, body: object = None) -> str:
        """What the host API answers, once it is there."""
        command = ["curl", "-sS", "--fail-with-body", "--retry", "40", "--retry-all-errors", "--retry-delay", "1"]
        command += ["--unix-socket", str(self.api), f"http://host-switch{path}"]
        if body is not None:
            command += ["--data", json.dumps(body)]
        done = await trio.run_process(command, capture_stdout=True)
        return done.stdout.decode()

    async def forwards(self) -> list[str]:
        return [one["local"] for one in json.loads(await self.curl("/services/forwarder/all"))]

    async def wait_written(self, *words: str) -> None:
        await until(lambda: self.state.exists() and all(word in self.state.read_text() for word in words))

    async def connect(self) -> trio.SocketStream:
        await until(self.data.exists)
        with trio.fail_after(PATIENCE):
            while True:
                try:
                    return await trio.open_unix_socket(str(self.data))
                except ConnectionRefusedError:  # the socket file of the one that was killed
                    await trio.sleep(0.02)

    @asynccontextmanager
    async def guest(self) -> AsyncIterator[None]:
        """The guest 192.168.127.2, whose port 80 says what it hears."""
        driver = Driver(guest_config(), EventLog(lambda: 0.0), FlowTable(), strict=True)
        listener = TcpListener(driver, GUEST, 80)
        driver.on_request = listener.requested
        async with trio.open_nursery() as nursery:
            await nursery.start(driver.run)
            nursery.start_soon(driver.serve_link, Endpoint(take_socket(await self.connect()), "guest"))
            nursery.start_soon(partial(trio.serve_listeners, echo, [listener]))
            yield
            nursery.cancel_scope.cancel()

    async def addresses(self, macs: Sequence[bytes]) -> list[str]:
        """What each of `macs` gets by DISCOVER and REQUEST, asking for nothing."""
        async with await self.connect() as stream:
            link = DhcpLink(stream)
            with trio.fail_after(PATIENCE):
                return [format_ip(await link.lease(mac)) for mac in macs]


@pytest.fixture
def host(tmp_path: Path) -> HostSwitch:
    return HostSwitch(tmp_path)


async def until(condition: object) -> None:
    assert callable(condition)
    with trio.fail_after(PATIENCE):
        while not condition():
            await trio.sleep(0.02)


async def echo(stream: trio.abc.HalfCloseableStream) -> None:
    async with stream:
        while data := await stream.receive_some():
            await stream.send_all(data)


async def ask(local: str) -> bytes:
    """What comes back through a forward."""
    async with await trio.open_tcp_stream("127.0.0.1", int(local.rpartition(":")[2])) as stream:
        with trio.fail_after(PATIENCE):
            await stream.send_all(b"hello")
            return bytes(await stream.receive_some())


async def test_kill_9_and_start_again(host: HostSwitch) -> None:
    local, dropped, static = (f"127.0.0.1:{free_port()}" for _ in range(3))
    with host.running("-port-forward", f"{static}=192.168.127.2:80"):
        for one in (local, dropped):
            await host.curl("/services/forwarder/expose", {"local": one, "remote": "192.168.127.2:80"})
        await host.curl("/services/forwarder/unexpose", {"local": dropped})
        assert await host.addresses(MACS[:2]) == ["192.168.127.3", "192.168.127.4"]
        async with host.guest():
            assert await ask(local) == await ask(static) == b"hello"
        await until(lambda: dropped not in host.state.read_text())
        await host.wait_written(local, "192.168.127.4")
        assert static not in host.state.read_text()
        assert host.state.stat().st_mode & 0o777 == 0o600

    with host.running() as again:
        # Neither its turn nor its asking gives it .4: only the file knows.
        assert await host.addresses([MACS[2], MACS[1], MACS[0]]) == [f"192.168.127.{last}" for last in (5, 4, 3)]
        async with host.guest():
            assert await ask(local) == b"hello"
        assert await host.forwards() == [local]
        again.send_signal(signal.SIGTERM)
        assert await trio.to_thread.run_sync(again.wait) == 1
    assert list(host.state.parent.glob("state*")) == [host.state]


async def test_killed_at_any_moment_there_is_a_whole_file(host: HostSwitch) -> None:
    locals_ = [f"127.0.0.1:{free_port()}" for _ in range(5)]
    for number, local in enumerate(locals_):
        with host.running() as process:
            await host.curl("/services/forwarder/expose", {"local": local, "remote": "192.168.127.2:80"})
            if number % 2:
                await host.wait_written(local)
            process.kill()
            await trio.to_thread.run_sync(process.wait)
        json.loads(host.state.read_text())
        assert "cannot" not in host.log.read_text()
    with host.running():
        assert {locals_[1], locals_[3]} <= set(await host.forwards())
    assert not list(host.state.parent.glob("*.corrupt*"))


async def test_a_garbled_file_is_one_warning_and_no_obstacle(host: HostSwitch) -> None:
    host.state.write_bytes(os.urandom(10_000))
    with host.running():
        assert await host.forwards() == []
        events = host.log.read_text()
    assert events.count("level=warning") == 1
    assert "it is kept as" in events
    assert host.state.with_name("state.json.corrupt-1").stat().st_size == 10_000


async def test_the_port_of_a_forward_is_taken_meanwhile(host: HostSwitch) -> None:
    local = f"127.0.0.1:{free_port()}"
    with host.running() as process:
        await host.curl("/services/forwarder/expose", {"local": local, "remote": "192.168.127.2:80"})
        await host.wait_written(local)
        process.terminate()
        await trio.to_thread.run_sync(process.wait)
    with host.running():
        assert await host.forwards() == [local]
        # A second one, with a copy of the file: as if the first had been replaced and were slow to go.
        other = HostSwitch(host.state.parent / "other")
        other.state.parent.mkdir()
        other.state.write_bytes(host.state.read_bytes())
        with other.running():
            assert await other.forwards() == []
            assert other.log.read_text().count("level=warning") == 1
            await other.wait_written(local)
            await host.curl("/services/forwarder/unexpose", {"local": local})
            with trio.fail_after(PATIENCE):
                while await other.forwards() != [local]:
                    await trio.sleep(0.1)


async def test_a_full_disk_is_told_and_the_network_goes_on(host: HostSwitch) -> None:
    small = host.state.parent / "small"
    small.mkdir()
    host.state = small / "state.json"
    # In a mount namespace of its own, on a file system that is full.
    script = 'mount -t tmpfs -o size=4k none "$1" && head -c 4096 /dev/zero >"$1/full"; shift; exec "$@"'
    with host.running(under=["unshare", "-m", "sh", "-c", script, "sh", str(small)]) as process:
        local = f"127.0.0.1:{free_port()}"
        await host.curl("/services/forwarder/expose", {"local": local, "remote": "192.168.127.2:80"})
        await trio.sleep(1.5)
        assert await host.forwards() == [local]
        process.terminate()
        assert await trio.to_thread.run_sync(process.wait) == 1
    errors = [line for line in host.log.read_text().splitlines() if "level=error" in line]
    assert len(errors) == 1
    assert "no space left on device" in errors[0]
