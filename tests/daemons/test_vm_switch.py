"""vm-switch's pump between two sockets; and (e2e) the whole daemon with a real tap against a scripted host."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio

from sulla_trio.daemons import vm_switch as daemon
from sulla_trio.daemons.vm_switch import VmSwitchConfig
from sulla_trio.errors import ConfigError
from sulla_trio.link import address
from sulla_trio.link.endpoint import Endpoint
from tests.support.guest_peer import DISCOVER, REQUEST, GuestPeer, framed

MAC = bytes.fromhex("5a94efe40cee")
FRAME = b"\xff" * 6 + MAC + b"\x08\x06" + bytes(46)


class Pump:
    """The pump, whose tap is a seqpacket socket: one read or write, one frame."""

    def __init__(self, config: VmSwitchConfig) -> None:
        self.tap, self._tap_inner = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.link, link_inner = socket.socketpair()
        for sock in (self.tap, self._tap_inner, self.link):
            sock.setblocking(False)
        self._endpoint = Endpoint(link_inner, "test")
        self._pump = daemon._Pump(config, self._endpoint, self._tap_inner.fileno(), MAC)
        self.reason: str | None = None

    async def run(self) -> None:
        self.reason = await self._pump.run()

    def close(self) -> None:
        self._endpoint.close()
        for sock in (self.tap, self._tap_inner, self.link):
            sock.close()

    async def from_tap(self) -> bytes:
        """The next frame that the guest's kernel would get."""
        await trio.lowlevel.wait_readable(self.tap)
        return self.tap.recv(70_000)

    async def from_link(self, count: int) -> bytes:
        received = b""
        while len(received) < count:
            await trio.lowlevel.wait_readable(self.link)
            received += self.link.recv(count - len(received))
        return received


@contextlib.asynccontextmanager
async def running(config: VmSwitchConfig = VmSwitchConfig()) -> AsyncIterator[Pump]:  # noqa: B008
    pump = Pump(config)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pump.run)
            discover = int.from_bytes(await pump.from_link(2), "little")
            await pump.from_link(discover)
            yield pump
            nursery.cancel_scope.cancel()
    pump.close()


@pytest.fixture(autouse=True)
def _no_netlink(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "preload", lambda: None)


async def test_frames_pass_both_ways() -> None:
    async with running(VmSwitchConfig(strict=True)) as pump:
        frames = [FRAME + bytes([n]) * (n * 100) for n in range(12)]
        for frame in frames:
            pump.tap.send(frame)
        expected = b"".join(map(framed, frames))
        assert await pump.from_link(len(expected)) == expected
        pump.link.sendall(expected)
        assert [await pump.from_tap() for _ in frames] == frames


async def test_a_stream_cut_anywhere_is_the_same_frames() -> None:
    async with running(VmSwitchConfig(strict=True)) as pump:
        data = framed(FRAME) + framed(FRAME + b"x")
        for at in range(len(data)):
            pump.link.sendall(data[at : at + 1])
            await trio.testing.wait_all_tasks_blocked()
        assert (await pump.from_tap(), await pump.from_tap()) == (FRAME, FRAME + b"x")


async def test_short_frames_are_passed_over() -> None:
    async with running() as pump:
        pump.link.sendall(framed(b"") + framed(bytes(13)) + framed(FRAME))
        assert await pump.from_tap() == FRAME


async def test_neither_direction_waits_for_the_other() -> None:
    """The link takes nothing: frames for the guest still arrive."""
    async with running() as pump:
        sent = 0
        while True:
            try:
                pump.tap.send(FRAME * 200)
            except BlockingIOError:
                await trio.testing.wait_all_tasks_blocked()
                try:
                    pump.tap.send(FRAME * 200)
                except BlockingIOError:
                    break
            sent += 1
            assert sent < 100_000
        for _ in range(20):
            pump.link.sendall(framed(FRAME))
            assert await pump.from_tap() == FRAME
        expected = framed(FRAME * 200)
        for _ in range(sent):
            assert await pump.from_link(len(expected)) == expected


@pytest.mark.parametrize("cut", [b"", b"\x3c", framed(FRAME)[:-1]])
async def test_a_lost_link_ends_it_with_one_reason(cut: bytes) -> None:
    pump = Pump(VmSwitchConfig())
    pump.link.send(cut)
    pump.link.shutdown(socket.SHUT_WR)
    with trio.fail_after(30):
        await pump.run()
    inside = f" inside a frame ({len(cut)} bytes of it)" if cut else ""
    assert pump.reason == f"link lost: end of stream{inside}"
    pump.close()


async def test_a_reset_link_ends_it() -> None:
    pump = Pump(VmSwitchConfig())
    pump.link.close()
    with trio.fail_after(30):
        await pump.run()
    assert pump.reason is not None
    assert pump.reason.startswith("link lost: ")
    pump.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it(number: signal.Signals) -> None:
    async with running() as pump:
        os.kill(os.getpid(), number)
        while pump.reason is None:
            await trio.sleep(0.001)
        assert pump.reason.startswith("signal caught: ")


async def test_tracing_is_toggled(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger=daemon.__name__)
    async with running() as pump:
        os.kill(os.getpid(), signal.SIGUSR1)
        await trio.testing.wait_all_tasks_blocked()
        pump.link.sendall(framed(FRAME))
        pump.tap.send(FRAME)
        await pump.from_link(len(framed(FRAME)))
        await trio.testing.wait_all_tasks_blocked()
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "SIGUSR1 received: per-packet tracing is now true"
    assert any(line.startswith(f"wrote packet (vm -> host {len(FRAME)}): ") for line in lines)
    assert any(line.startswith(f"read packet (host -> vm {len(FRAME)}): ") for line in lines)


async def test_a_link_that_is_none() -> None:
    with pytest.raises(ConfigError, match="not an inherited socket"):
        await daemon.vm_switch(VmSwitchConfig(link="fd://999"))
    with pytest.raises(ConfigError, match="cannot connect the link unix:///nowhere"):
        await daemon.vm_switch(VmSwitchConfig(link="unix:///nowhere"))


# The whole daemon


@pytest.fixture
def peer() -> Iterator[tuple[GuestPeer, socket.socket]]:
    ours, theirs = socket.socketpair()
    found = GuestPeer(ours)
    thread = threading.Thread(target=found.serve)
    thread.start()
    yield found, theirs
    theirs.close()
    with contextlib.suppress(OSError):
        ours.shutdown(socket.SHUT_RDWR)
    thread.join()
    ours.close()


def start(link: socket.socket, script: str, *flags: str) -> subprocess.Popen[str]:
    """vm-switch and then `script`, in one network namespace; the script sees vm-switch as $vm."""
    own = ["unshare", "-n"] if os.geteuid() == 0 else ["unshare", "-rn"]
    words = [sys.executable, "-m", "sulla_trio.cli.daemons", "vm-switch", "-logfile", "/dev/stderr", *flags]
    shell = f'"$@" -vsock-fd {link.fileno()} & vm=$!\n{script}'
    return subprocess.Popen(
        [*own, "sh", "-c", shell, "sh", *words],
        pass_fds=(link.fileno(),),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=60)
    return out, err


UP = "until ip addr show eth0 2>/dev/null | grep -q 'inet '; do kill -0 $vm || exit 98; sleep 0.05; done\n"


@pytest.mark.e2e
def test_the_kernel_is_on_the_network(peer: tuple[GuestPeer, socket.socket]) -> None:
    scripted, link = peer
    scripted.mtu = 1400
    script = UP + "ip link show eth0; ip route; ping -c2 -i0.2 -W5 192.168.127.1; kill $vm; wait $vm; echo status $?"
    out, err = finish(start(link, script))
    assert "5a:94:ef:e4:0c:ee" in out
    assert "mtu 1400" in out
    assert "default via 192.168.127.1 dev eth0" in out
    assert "2 received" in out
    assert "status 1" in out
    assert "signal caught: terminated" in err
    assert scripted.dhcp_types == [DISCOVER, REQUEST]
    # No IPv6 at all, and nothing before the first DISCOVER.
    assert {frame[12:14] for frame in scripted.frames} <= {b"\x08\x00", b"\x08\x06"}
    assert scripted.frames[0][36:38] == b"\x00\x43"


@pytest.mark.e2e
def test_a_lost_link_is_one_line_and_status_1(peer: tuple[GuestPeer, socket.socket]) -> None:
    scripted, link = peer
    process = start(link, UP + "echo up; wait $vm; echo status $?; ip -br link")
    link.close()
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    scripted.connection.shutdown(socket.SHUT_RDWR)
    out, err = finish(process)
    assert "status 1" in out
    assert "eth0" not in out
    assert "link lost: end of stream" in err.splitlines()[-1]
    assert "Traceback" not in err


@pytest.mark.e2e
def test_a_deleted_tap_ends_it(peer: tuple[GuestPeer, socket.socket]) -> None:
    _, link = peer
    out, err = finish(start(link, UP + "ip link delete eth0; wait $vm; echo status $?"))
    assert out == "status 1\n"
    assert "packet" in err.splitlines()[-1]
    assert "Traceback" not in err


@pytest.mark.e2e
def test_a_tap_that_is_down_loses_frames_and_nothing_else(
    peer: tuple[GuestPeer, socket.socket], tmp_path: Path
) -> None:
    scripted, link = peer
    flag = tmp_path / "flag"
    script = f"""{UP} ip link set eth0 down; echo down; until test -e {flag}; do sleep 0.05; done
    ip link set eth0 up; ping -c1 -W5 192.168.127.1 >&2 && echo alive; kill $vm; wait $vm"""
    process = start(link, script)
    assert process.stdout is not None
    assert process.stdout.readline() == "down\n"
    for _ in range(5):
        scripted.send(FRAME)
    flag.touch()
    out, _ = finish(process)
    assert out == "alive\n"


@pytest.mark.e2e
def test_an_interface_of_that_name_is_one_line() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        out, err = finish(start(theirs, "wait $vm; echo status $?", "-tap-interface", "lo"))
    assert out == "status 1\n"
    assert err.count("\n") == 1
    assert "lo interface already exist, exiting now" in err
