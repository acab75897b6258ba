"""Command lines of the daemons: flags to configurations, statuses and what is on stderr, and what is imported."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sulla_trio.cli import daemons
from sulla_trio.config import PortForward
from sulla_trio.errors import ConfigError


def host(*arguments: str):
    return daemons.host_switch_config(daemons.host_switch_flags("host-switch").parse(arguments))


def vm(*arguments: str):
    return daemons.vm_switch_config(daemons.vm_switch_flags("vm-switch").parse(arguments))


def run(*arguments: str, code: str = "from sulla_trio.cli.daemons import main; raise SystemExit(main())", **options):
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "TZ": "UTC", **options},
    )


def test_host_switch_defaults() -> None:
    config = host()
    assert str(config.network.subnet) == "192.168.127.0/24"
    assert (config.network.mtu, config.network.host_loopback, config.network.host_loopback_ports) == (1500, True, None)
    assert (config.forwards, config.data, config.debug, config.strict) == ((), "", False, False)
    assert config.listen[0].startswith("unix:///")
    assert config.listen[0].endswith("/sulla/host-switch.sock")


def test_host_switch_flags() -> None:
    config = host(
        "-debug", "--subnet", "10.1.2.77/16", "--mtu=65000", "--listen", "none", "--data", "fd://5", "--strict",
        "-port-forward", "127.0.0.1:1=10.1.2.2:1", "-port-forward", "udp:127.0.0.1:1=10.1.2.2:1",
        "-port-forward=127.0.0.1:1=10.1.2.2:2",
        "--no-host-loopback", "--host-loopback-ports", "80,8000-8002", "--deny-out", "10.0.0.0/8", "--deny-out=1.1.1.1",
    )  # fmt: skip
    assert config.network.gateway_ip == bytes([10, 1, 2, 1])
    assert (config.network.mtu, config.data, config.debug, config.strict) == (65000, "fd://5", True, True)
    assert config.listen == ()
    assert config.forwards == (
        PortForward("127.0.0.1:1", "10.1.2.2:2"),  # the last of the same local address
        PortForward("127.0.0.1:1", "10.1.2.2:1", "udp"),
    )
    assert config.network.host_loopback is False
    assert config.network.host_loopback_ports == {80, 8000, 8001, 8002}
    assert [str(network) for network in config.network.deny_out] == ["10.0.0.0/8", "1.1.1.1/32"]
    assert host("--listen", "unix:///a", "--listen=tcp://h:1").listen == ("unix:///a", "tcp://h:1")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["-subnet", "garbage"], "validating subnet: invalid CIDR address: garbage"),
        (["-subnet", "fd00::/64"], "validating subnet: fd00::/64 is IPv6"),
        (["-subnet", "10.0.0.0/30"], "validating subnet: 10.0.0.0/30 is too small"),
        (["--mtu", "70000"], "mtu 70000 is out of range"),
        (["-port-forward", "80=90"], "address 80: missing port in address"),
        (["-port-forward", "x"], 'input ["x"] not in expected format: HostIP:Port=GuestIP:Port'),
        (["--deny-out", "x"], "--deny-out x: want an IPv4 network"),
        (["--deny-out", "::/0"], "--deny-out ::/0: want an IPv4 network"),
        (["--host-loopback-ports", "80,x"], "--host-loopback-ports 80,x: 'x' is not a port"),
        (["--host-loopback-ports", "0"], "--host-loopback-ports 0: '0' is not a port"),
        (["--host-loopback-ports", "1-70000"], "--host-loopback-ports 1-70000: '1-70000' is not a port"),
        (["--host-loopback-ports", "9" * 5000], "is not a port"),
        (["--listen", "none", "--listen", "unix:///a"], "--listen none and --listen URL contradict each other"),
    ],
)
def test_host_switch_refuses(arguments: list[str], text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(text)):
        host(*arguments)


def test_vm_switch_flags() -> None:
    config = vm()
    assert (config.link, config.tap_interface, config.tap_mac) == ("fd://3", "eth0", bytes.fromhex("5a94efe40cee"))
    assert (config.resolv_conf, config.ready_fd, config.debug, config.trace_packets) == (None, None, False, False)
    config = vm(
        "-tap-interface", "tap1", "-subnet", "x", "-tap-mac-address", "", "-dhcp-script", "", "-logfile", "l",
        "-vsock-fd", "7", "--resolv-conf", "/r", "--ready-fd=0", "-trace-packets", "-logfile-append",
    )  # fmt: skip
    assert (config.link, config.tap_interface, config.tap_mac) == ("fd://7", "tap1", None)
    assert (config.resolv_conf, config.ready_fd, config.trace_packets) == ("/r", 0, True)
    assert vm("--link", "unix:///l").link == "unix:///l"
    for name in ("", "x" * 16, "a/b", "é" * 8):
        with pytest.raises(ConfigError, match="is not an interface name"):
            vm("-tap-interface", name)
    with pytest.raises(ConfigError, match="invalid MAC address: zz"):
        vm("-tap-mac-address", "zz")


def test_usage_errors_exit_2_and_help_0() -> None:
    for name in daemons.DAEMONS:
        done = run(name, "-nonsense")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"flag provided but not defined: -nonsense\nUsage of {name}:\n  -")
        done = run(name, "--help")
        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr.startswith(f"Usage of {name}:\n")
    assert run("no-such-daemon").returncode == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("host-switch", "-subnet", "garbage"),
        ("host-switch", "--logfile", "/nowhere/log"),
        ("host-switch", "--listen", "gopher://x"),
        ("host-switch", "--listen", "none", "--data", "fd://99"),
        ("vm-switch", "-logfile", "/nowhere/log"),
        ("vm-switch", "-logfile", "/dev/stderr", "-tap-mac-address", "zz"),
        ("vm-switch", "-logfile", "/dev/stderr", "-vsock-fd", "99"),
    ],
)
def test_bad_values_are_one_fatal_line_and_status_1(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    lines = [line for line in done.stderr.splitlines() if "level=info" not in line]
    assert len(lines) == 1, done.stderr
    assert re.fullmatch(r'time="\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ" level=fatal msg=".*"', lines[0])
    assert arguments[-1].removeprefix("fd://") in lines[0]


def test_log_on_a_full_disk_changes_nothing(tmp_path: Path) -> None:
    done = run("host-switch", "--logfile", "/dev/full", "--listen", "gopher://x")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


IMPORTED = """
import sys
from sulla_trio.cli import daemons
values = daemons.{flags}("x").parse([])
daemons.{config}(values)
from sulla_trio.daemons import {module}
print(*sorted({{name.partition(".")[0] for name in sys.modules}}))
"""


def test_vm_switch_loads_nothing_of_the_api() -> None:
    code = IMPORTED.format(flags="vm_switch_flags", config="vm_switch_config", module="vm_switch")
    done = run(code=code)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "trio" in loaded
    assert not loaded & {
        "quart",
        "quart_trio",
        "hypercorn",
        "click",
        "rich",
        "h11",
        "werkzeug",
        "jinja2",
        "platformdirs",
    }


def test_host_switch_loads_quart_later() -> None:
    code = IMPORTED.format(flags="host_switch_flags", config="host_switch_config", module="host_switch")
    done = run(code=code)
    assert done.returncode == 0, done.stderr
    assert not set(done.stdout.split()) & {"quart", "quart_trio", "hypercorn", "click", "rich", "h11", "scapy"}
