"""The command line of network-setup: defaults, what goes to vm-switch, what is refused and in which order."""

from __future__ import annotations

import logging

import pytest

from sulla_trio.cli import network_setup
from sulla_trio.cli.goflags import FlagError
from sulla_trio.daemons.network_setup import NetworkSetupConfig
from sulla_trio.daemons.setup_vm_switch import VmSwitchCommand
from sulla_trio.errors import ConfigError
from sulla_trio.link.systemd import DEFAULT_SYSTEM_BUS

NEEDED = ("-vm-switch-path", "/vm", "-unshare-arg", "/init")


@pytest.fixture(autouse=True)
def no_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SYSTEMD_EXEC_PID", "DBUS_SYSTEM_BUS_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


def config(*arguments: str) -> NetworkSetupConfig:
    return network_setup.config(network_setup.flags("network-setup").parse(arguments))


def test_the_defaults_are_the_go_daemons() -> None:
    found = config(*NEEDED)
    assert found.vm_switch == VmSwitchCommand("/vm", "eth0", "192.168.127.0/24", "5a:94:ef:e4:0c:ee", "", "")
    assert (found.handshake.text, found.data.text) == ("vsock://ANY:6669", "vsock://2:6656")
    assert len(found.dialect.signature) == 60
    assert (found.unshare_arg, found.namespace_unit, found.forward, found.strict) == ("/init", "", True, False)
    values = network_setup.flags("x").parse([])
    assert values["logfile"] == "/var/log/network-setup.log"
    assert values["namespace-service"] == "network-namespace.service"


def test_the_command_line_of_rancher_desktop() -> None:
    line = "--logfile /l --vm-switch-path /vm --vm-switch-logfile /v -debug -trace-packets --unshare-arg /init"
    found = config(*line.split(), "-dhcp-script", "")
    assert found.vm_switch == VmSwitchCommand("/vm", logfile="/v", debug=True, trace_packets=True)


@pytest.mark.parametrize(
    ("arguments", "handshake", "data", "length"),
    [
        (("--dialect", "rd2"), "vsock://ANY:6670", "vsock://2:6657", 69),
        (("--dialect", "old"), "vsock://ANY:6669", "vsock://2:6656", 53),
        (("--dialect", "rd2", "-vsock-dial-port", "0x10"), "vsock://ANY:6670", "vsock://2:16", 69),
        (("-vsock-handshake-port", "7"), "vsock://ANY:7", "vsock://2:6656", 60),
        (("--handshake", "vsock://3", "--data", "unix:///d"), "vsock://3:6669", "unix:///d", 60),
        (("--signature", "fork"), "vsock://ANY:6669", "vsock://2:6656", 4),
    ],
)
def test_dialects_ports_and_endpoints(arguments: tuple[str, ...], handshake: str, data: str, length: int) -> None:
    found = config(*NEEDED, *arguments)
    assert (found.handshake.text, found.data.text, len(found.dialect.signature)) == (handshake, data, length)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "path to the vm-switch process must be provided"),
        (("-unshare-arg", "/init", "-vm-switch-path", ""), "path to the vm-switch process must be provided"),
        (("-vm-switch-path", "/vm"), "unshare program arg must be provided"),
        ((*NEEDED, "--dialect", "rd3"), "--dialect rd3: want one of rd1, old, rd2"),
        ((*NEEDED, "--signature", "x" * 1025), "--signature of 1025 bytes: at most 1024"),
        ((*NEEDED, "-vsock-dial-port", "-1"), "-vsock-dial-port -1: want a vsock port, 1 to 4294967294"),
        ((*NEEDED, "--handshake", "gopher://x"), "invalid endpoint gopher://x"),
    ],
)
def test_what_cannot_be_used_is_one_line(arguments: tuple[str, ...], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(*arguments)
    assert str(caught.value).startswith(text)


def test_the_alias_is_the_same_flag_and_not_listed() -> None:
    assert config("-vm-switch-path", "/vm", "-unshare-arg", "/a", "--unshare-args", "/b").unshare_arg == "/b"
    assert config("-vm-switch-path", "/vm", "-unshare-args=/a", "-unshare-arg", "/b").unshare_arg == "/b"
    declared = network_setup.flags("network-setup")
    assert "unshare-args" not in declared.usage()
    with pytest.raises(FlagError, match="flag needs an argument: -unshare-args"):
        declared.parse(["-unshare-args"])


def test_systemd_mode(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("SYSTEMD_EXEC_PID", "17")
    found = config("-vm-switch-path", "/vm")
    assert (found.namespace_unit, found.system_bus) == ("network-namespace.service", DEFAULT_SYSTEM_BUS)
    assert not caplog.records
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/bus")
    found = config(*NEEDED, "-namespace-service", "x.service")
    assert (found.namespace_unit, found.system_bus) == ("x.service", "unix:path=/bus")
    assert [(record.levelno, "-unshare-arg /init is ignored" in record.message) for record in caplog.records] == [
        (logging.WARNING, True)
    ]
    monkeypatch.setenv("SYSTEMD_EXEC_PID", "")
    assert config(*NEEDED).namespace_unit == ""
