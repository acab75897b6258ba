"""The tap: one clear line when it cannot be had; the real device in a network namespace of its own (e2e)."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

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
    with pytest.raises(ConfigError, match=r"^/nowhere/tun is missing .*modprobe tun"):
        tap.check_device()


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
