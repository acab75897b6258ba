"""Address, route and MTU through pyroute2, in a network namespace of its own (e2e); the files it writes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from sulla_trio.link import address


@pytest.mark.parametrize(
    ("servers", "search", "text"),
    [
        (["192.0.2.1"], [], "nameserver 192.0.2.1\n"),
        (
            ["192.0.2.1", "192.0.2.2"],
            ["a.example", "b"],
            "search a.example b\nnameserver 192.0.2.1\nnameserver 192.0.2.2\n",
        ),
    ],
)
def test_resolv_conf_is_written_in_place(tmp_path: Path, servers: list[str], search: list[str], text: str) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("something much longer than what follows " * 10)
    inode = path.stat().st_ino
    address.write_resolv_conf(str(path), servers, search)
    assert path.read_text() == text
    assert path.stat().st_ino == inode


def test_ipv6_of_no_interface_is_no_error() -> None:
    address.disable_ipv6("no-such-if")


def inside(code: str) -> str:
    program = "import os\nfrom sulla_trio.link import address, tap\nfd = tap.open_tap('eth0', None)\n"
    program += "def ip(*words):\n    return os.popen('ip ' + ' '.join(words)).read()\n" + textwrap.dedent(code)
    own = ("unshare", "-n") if os.geteuid() == 0 else ("unshare", "-rn")
    done = subprocess.run(
        [*own, sys.executable, "-W", "ignore::ResourceWarning", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.e2e
def test_configured_and_again_and_withdrawn() -> None:
    out = inside("""
        address.preload()
        for _ in range(2):
            address.configure("eth0", "192.168.127.2", 24, "192.168.127.1", 1400)
        print(ip("-br", "-4", "addr", "show", "eth0"), ip("link", "show", "eth0"), ip("route"))
        address.configure("eth0", "10.0.0.9", 16, "10.0.0.1", None)
        print("then", ip("-br", "-4", "addr", "show", "eth0"), ip("route"))
        address.withdraw("eth0")
        print("last", ip("-4", "addr", "show", "eth0"), ip("route"))
    """)
    first, rest = out.split("then")
    second, last = rest.split("last")
    assert "192.168.127.2/24" in first
    assert "mtu 1400" in first
    assert first.count("default via 192.168.127.1 dev eth0") == 1
    assert "10.0.0.9/16" in second
    assert "192.168.127" not in second
    assert "default via 10.0.0.1" in second
    assert last.strip() == ""


@pytest.mark.e2e
def test_no_interface_is_an_os_error() -> None:
    out = inside("""
        for call in (lambda: address.configure("none0", "10.0.0.9", 16, None, None), lambda: address.withdraw("none0")):
            try:
                call()
            except OSError as error:
                print(error.errno, error.filename)
        try:
            address.configure("eth0", "10.0.0.9", 16, "192.0.2.1", 1400)
        except OSError as error:
            print(error.strerror)
    """)
    assert out == "19 none0\n19 none0\nNetwork is unreachable\n"
