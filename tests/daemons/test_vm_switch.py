"""vm-switch in this process, its tap a socket: signals, what it cannot have, what it says. (tests/e2e has the real tap.)"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Iterator

import pytest
import trio

from sulla_trio.daemons import vm_switch as daemon
from sulla_trio.daemons.vm_switch import VmSwitchConfig
from sulla_trio.errors import ConfigError
from sulla_trio.link import address, control, endpoint, tap
from tests.support.guest_peer import DISCOVER, GuestPeer

FRAME = b"\xff" * 6 + bytes.fromhex("5a94efe40cee0806") + bytes(46)


class Inside:
    """The daemon in this process, its tap a seqpacket socket."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tap, inner = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.link, self._theirs = socket.socketpair()
        for sock in (self.tap, inner, self.link):
            sock.setblocking(False)
        self._tap_inner = inner
        monkeypatch.setattr(tap, "open_tap", lambda name, mac: inner.detach())
        monkeypatch.setattr(tap, "bring_up_loopback", lambda: None)
        monkeypatch.setattr(tap, "is_missing", lambda: False)
        monkeypatch.setattr(address, "disable_ipv6", lambda name: None)
        monkeypatch.setattr(address, "preload", lambda: None)
        self.status: int | None = None

    async def run(self, **more: object) -> None:
        url = more.pop("link", None) or f"fd://{self._theirs.detach()}"
        self.status = await daemon.vm_switch(VmSwitchConfig(link=str(url), **more))  # type: ignore[arg-type]

    async def frame(self) -> bytes:
        """The next frame that the host gets."""
        await trio.lowlevel.wait_readable(self.link)
        return self.link.recv(int.from_bytes(self.link.recv(2), "little"))

    def close(self) -> None:
        for sock in (self.tap, self._tap_inner, self.link, self._theirs):
            sock.close()


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> Iterator[Inside]:
    found = Inside(monkeypatch)
    yield found
    found.close()


@contextlib.asynccontextmanager
async def running(inside: Inside, **more: object) -> AsyncIterator[Inside]:
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: inside.run(**more))
            yield inside
            while inside.status is None:
                await trio.sleep(0.001)
            assert inside.status == 1


@pytest.mark.parametrize(
    ("number", "text"),
    [(signal.SIGTERM, "signal caught: terminated"), (signal.SIGINT, "signal caught: interrupt")],
)
async def test_a_signal_ends_it(
    inside: Inside, caplog: pytest.LogCaptureFixture, number: signal.Signals, text: str
) -> None:
    async with running(inside):
        await inside.frame()
        os.kill(os.getpid(), number)
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR] == [text]


async def test_a_signal_ends_a_link_that_does_not_come(
    inside: Inside, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    waiting = trio.Event()

    async def connect(url: endpoint.EndpointUrl) -> endpoint.Endpoint:
        waiting.set()
        await trio.sleep_forever()
        raise AssertionError

    monkeypatch.setattr(endpoint, "connect", connect)
    async with running(inside, link="vsock://2:6656"):
        await waiting.wait()
        os.kill(os.getpid(), signal.SIGTERM)
    assert caplog.records[-1].getMessage() == "signal caught: terminated"


async def test_a_signal_ends_a_module_that_does_not_load(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    loading, release = trio.Event(), threading.Event()

    def load() -> None:
        trio.from_thread.run_sync(loading.set)
        release.wait(30)

    monkeypatch.setattr(tap, "is_missing", lambda: True)
    monkeypatch.setattr(tap, "load_module", load)
    async with running(inside):
        await loading.wait()
        os.kill(os.getpid(), signal.SIGTERM)
    release.set()


async def test_tracing_is_toggled(inside: Inside, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with running(inside):
        await inside.frame()
        for value in ("true", "false"):
            os.kill(os.getpid(), signal.SIGUSR1)
            while not any(f"tracing is now {value}" in record.getMessage() for record in caplog.records):
                await trio.sleep(0.001)
            inside.tap.send(FRAME)
            while await inside.frame() != FRAME:
                pass
        os.kill(os.getpid(), signal.SIGTERM)
    lines = [record.getMessage() for record in caplog.records]
    assert sum(line.startswith(f"wrote packet (vm -> host {len(FRAME)}): ") for line in lines) == 1


async def test_a_lost_link_is_one_line(inside: Inside, caplog: pytest.LogCaptureFixture) -> None:
    async with running(inside):
        await inside.frame()
        inside.link.close()
    assert [record.getMessage() for record in caplog.records if record.levelno > logging.INFO] == [
        "link lost: end of stream"
    ]


async def test_with_a_control_descriptor_it_outlives_its_link(inside: Inside) -> None:
    """The DHCP client asks on the new link at once, and the end of the control descriptor ends it."""
    ours, theirs = control.socket_pair()
    async with running(inside, control=theirs.detach()):
        await trio.lowlevel.wait_readable(ours)
        assert control.receive(ours) == control.Message("up", "", None)
        first = await inside.frame()
        assert GuestPeer.dhcp_type(first) == DISCOVER
        inside.link.close()
        await trio.lowlevel.wait_readable(ours)
        assert control.receive(ours) == control.Message("lost", "end of stream", None)
        inside.link, link = socket.socketpair()
        inside.link.setblocking(False)
        control.send_link(ours, link.fileno())
        link.close()
        second = await inside.frame()
        assert GuestPeer.dhcp_type(second) == DISCOVER
        ours.close()


async def test_what_it_cannot_have(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="not an inherited socket"):
        await inside.run(link="fd://999")
    with pytest.raises(ConfigError, match="cannot connect the link unix:///nowhere"):
        await inside.run(link="unix:///nowhere")
    with pytest.raises(ConfigError, match="SULLA_CTL_FD=998 is not an inherited socket"):
        await inside.run(control=998)


async def test_a_subnet_that_is_none_is_not_compared(inside: Inside, caplog: pytest.LogCaptureFixture) -> None:
    async with running(inside, subnet="nonsense"):
        assert GuestPeer.option(await inside.frame(), 60) == b""
        inside.link.close()
    assert "-subnet nonsense is not an IPv4 network" in caplog.records[0].getMessage()


async def test_a_script_without_udhcpc_is_one_error_and_our_own_client(
    inside: Inside, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    async with running(inside, dhcp_script="/bin/true"):
        assert GuestPeer.dhcp_type(await inside.frame()) == DISCOVER
        os.kill(os.getpid(), signal.SIGTERM)
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert errors == [
        "dhcp error: udhcpc cannot be started: not found in PATH; the built-in DHCP client is used instead",
        "signal caught: terminated",
    ]
