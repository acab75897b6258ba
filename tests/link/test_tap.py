"""The tap: one clear line when it cannot be had; the real device in a network namespace of its own (e2e)."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from sulla_trio.errors import ConfigError
from sulla_trio.link import tap


@pytest.mark.parametrize("name", ["", "a" * 16, "a/b", "a b", "..", "é" * 8])
def test_bad_names(name: str) -> None:
    with pytest.raises(ConfigError, match="invalid tap interface name"):
        tap.open_tap(name, None)


def test_an_existing_interface() -> None:
    with pytest.raises(ConfigError, match=r"^lo interface already exist, exiting now$"):
        tap.open_tap("lo", None)


def test_a_missing_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tap, "DEVICE", "/nowhere/tun")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert tap.is_missing()
    tap.load_module()  # nothing: this is not root
    for call in (tap.check_device, lambda: tap.open_tap("sulla9", None)):
        with pytest.raises(ConfigError, match=r"^/nowhere/tun is missing .*modprobe tun"):
            call()


class Modprobe:
    """A modprobe found first in PATH, by one who is taken for root."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.device = directory / "tun"
        self.called = directory / "called"
        self._program = directory / "modprobe"
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        monkeypatch.setattr(tap, "DEVICE", str(self.device))
        monkeypatch.setattr(tap, "_SBIN", "/nowhere")
        monkeypatch.setenv("PATH", str(directory))

    def install(self, body: str) -> None:
        self._program.write_text(f'#!/bin/sh\necho "$*" >>{self.called}\n{body}\n')
        self._program.chmod(0o755)


@pytest.fixture
def modprobe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Modprobe:
    return Modprobe(tmp_path, monkeypatch)


def test_the_module_is_loaded_once(modprobe: Modprobe) -> None:
    modprobe.install(f": >{modprobe.device}")
    tap.check_device()
    tap.check_device()
    assert modprobe.called.read_text() == "tun\n"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            "echo 'modprobe: FATAL: Module tun not found in /lib' >&2; exit 1",
            "modprobe: FATAL: Module tun not found in /lib",
        ),
        ("exit 3", "modprobe ended with status 3"),
        ("exit 0", "modprobe ended with status 0"),
        ("read x <&1; while :; do :; done", "modprobe did not end within 0 s"),
        (None, "modprobe cannot be started: no such file or directory"),
    ],
)
def test_a_module_that_does_not_load_is_one_line(
    modprobe: Modprobe, monkeypatch: pytest.MonkeyPatch, body: str | None, said: str
) -> None:
    if "0 s" in said:
        monkeypatch.setattr(tap, "MODPROBE_TIMEOUT", 0.1)
    if body is not None:
        modprobe.install(body)
    with pytest.raises(ConfigError) as caught:
        tap.check_device()
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{modprobe.device} is missing and `modprobe tun` did not help ({said}): ")


def test_something_else_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tap, "DEVICE", "/")
    with pytest.raises(ConfigError, match=r"^/ is mode 0755 and cannot be opened"):
        tap.check_device()


def inside(code: str, *wrapper: str) -> str:
    """Output of a program in a network namespace of its own."""
    program = "import os, socket, time\nfrom sulla_trio.link import tap\n" + textwrap.dedent(code)
    own = ("unshare", "-n") if os.geteuid() == 0 else ("unshare", "-rn")
    done = subprocess.run([*own, *wrapper, sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.e2e
def test_mac_mtu_and_flags() -> None:
    out = inside("""
        fd = tap.open_tap("eth0", bytes.fromhex("5a94efe40cee"), 9000)
        print(tap.hardware_address("eth0").hex(), os.get_blocking(fd), os.get_inheritable(fd))
        for name in ("mtu", "flags"):
            print(os.popen("ip link show eth0").read())
    """)
    assert out.startswith("5a94efe40cee False False")
    assert "mtu 9000" in out
    assert "UP" in out


@pytest.mark.e2e
def test_whether_it_has_an_address() -> None:
    out = inside("""
        fd = tap.open_tap("eth0", None)
        print(tap.has_address("eth0"))
        os.system("ip addr add 192.0.2.1/24 dev eth0")
        print(tap.has_address("eth0"), tap.has_address("eth1"))
    """)
    assert out == "False\nTrue False\n"


@pytest.mark.e2e
def test_it_goes_with_its_descriptor() -> None:
    out = inside("""
        fd = tap.open_tap("eth0", None)
        print(sorted(name for _, name in socket.if_nameindex()))
        os.close(fd)
        print(sorted(name for _, name in socket.if_nameindex()))
    """)
    assert out == "['eth0', 'lo']\n['lo']\n"


@pytest.mark.e2e
def test_frames_pass_both_ways() -> None:
    out = inside("""
        open("/proc/sys/net/ipv6/conf/default/disable_ipv6", "w").write("1")
        tap.bring_up_loopback()
        fd = tap.open_tap("eth0", None)
        frame = b"\\xff" * 6 + bytes(6) + b"\\x88\\xb5" + bytes(50)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as raw:
            raw.bind(("eth0", 3))
            raw.send(frame)
            print(os.read(fd, 65536) == frame)
            os.write(fd, frame)
            raw.settimeout(10)
            while (received := raw.recvfrom(65536))[1][2] == socket.PACKET_OUTGOING:
                pass
            print(received[0] == frame)
    """)
    assert out == "True\nTrue\n"


@pytest.mark.e2e
def test_without_the_capability() -> None:
    out = inside(
        """
        from sulla_trio.errors import ConfigError
        try:
            tap.open_tap("eth0", None)
        except ConfigError as error:
            print(error)
        """,
        "setpriv",
        "--bounding-set=-net_admin",
        "--inh-caps=-all",
    )
    assert out == (
        "creating tap device eth0 failed: operation not permitted (it needs CAP_NET_ADMIN in this network namespace)\n"
    )
