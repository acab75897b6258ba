"""network-setup as a program, on a machine of its own, with real namespaces and a host that is scripted byte for byte."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.support.runs import MARK, wait_until
from tests.support.setup_world import PHRASE, VM_SWITCH, ScriptedHost, World
from tests.support.systemd_stub import bus_with_systemd

pytestmark = pytest.mark.e2e

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGINT)
PID_FILE = "/run/wsl-init.pid"
KILLED = "vm-switch exited with error: signal: killed"


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def host(world: World) -> ScriptedHost:
    return ScriptedHost(world)


def namespace(pid: int, kind: str = "net") -> str:
    return os.readlink(f"/proc/{pid}/ns/{kind}")


def test_the_machine_that_it_makes(world: World, host: ScriptedHost) -> None:
    world.start()
    with host.attach() as link:
        size = link.recv(2, socket.MSG_WAITALL)
        frame = link.recv(int.from_bytes(size, "little"), socket.MSG_WAITALL)
        assert frame[6:12] == bytes.fromhex("5a94efe40cee")
        number, net, pid_namespace, mounts = world.wait_file(world.init_record).split()
        vm_switch = world.vm_switch_pid()

        # PID 1, in namespaces of its own; its parent is the process in the file, network-setup's child.
        recorded = world.wait_file(world.file(PID_FILE))
        assert recorded.isdecimal()
        assert world.file(PID_FILE).stat().st_mode & 0o777 == 0o600
        unshare = int(recorded)
        assert unshare in world.children(world.pid)
        (init,) = world.children(unshare)
        assert number == "1"
        for kind, seen in (("net", net), ("pid", pid_namespace), ("mnt", mounts)):
            assert namespace(init, kind) == seen != namespace(world.pid, kind)
        assert Path(f"/proc/{unshare}/cmdline").read_bytes().split(b"\0")[:-1] == [
            b"/usr/bin/unshare", b"--pid", b"--mount-proc", b"--fork", b"--propagation", b"slave", bytes(world.init)
        ]  # fmt: skip
        assert os.listdir(f"/proc/{init}/root/proc/1")

        # vm-switch: in the new network, but in no other new namespace.
        assert namespace(vm_switch) == net
        assert namespace(vm_switch, "pid") == namespace(world.pid, "pid")
        assert namespace(vm_switch, "mnt") == namespace(world.pid, "mnt")
        assert Path(f"/proc/{vm_switch}/comm").read_text() == "vm-switch\n"

        ours, theirs = world.address("veth-rd-wsl"), world.address("veth-rd-ns", vm_switch)
        assert ours is not None
        assert theirs is not None
        assert (ours["local"], ours["prefixlen"], ours["broadcast"]) == ("192.168.143.2", 24, "192.168.143.255")
        assert (theirs["local"], theirs["prefixlen"], theirs["broadcast"]) == ("192.168.143.1", 24, "192.168.143.255")
        world.run("ping", "-c", "1", "-W", "5", "192.168.143.1")
        forwarding = ("cat", "/proc/sys/net/ipv4/ip_forward")
        assert world.run("nsenter", f"--target={init}", "--net", "--", *forwarding) == "1\n"
        assert world.run(*forwarding) == "0\n"

        assert world.stop() == 1
        assert world.fatal() == KILLED
        assert link.recv(1 << 20) is not None  # its end may come behind frames
        world.assert_nothing_left()
    log = world.log.read_text()
    for text in ("starting handshake process with host-switch", "created a new namespace",
                 "created veth pair veth-rd-wsl and veth-rd-ns", "tearing down link veth-rd-wsl: <nil>"):  # fmt: skip
        assert f'level=info msg="{text}' in log


def test_what_vm_switch_is_given(world: World, host: ScriptedHost) -> None:
    arguments = ("-subnet", "10.1.2.0/24", "-trace-packets", "-dhcp-script", "/a script", "-tap-interface", "eth7")
    world.start(*arguments, "--no-forward", vm_switch=world.quiet)
    with host.attach():
        seen = json.loads(world.wait_file(world.quiet_record))
        assert seen["argv"] == [
            str(world.quiet), "-tap-interface", "eth7", "-subnet", "10.1.2.0/24", "-tap-mac-address", "5a:94:ef:e4:0c:ee",
            "-dhcp-script", "/a script", "-logfile", str(world.vm_log), "-debug", "-trace-packets"
        ]  # fmt: skip
        assert seen["blocking"] is True
        assert seen["descriptors"] == [0, 1, 2, 3, 4]  # the link, the control descriptor, nothing else
        environment = world.watched.environment
        assert seen["environment"][MARK] == environment[MARK]
        assert seen["environment"]["SULLA_CTL_FD"] == "4"
        init = int(world.wait_file(world.file(PID_FILE)))
        assert b"SULLA_CTL_FD" not in Path(f"/proc/{init}/environ").read_bytes()
        assert sorted(os.listdir(f"/proc/{init}/fd"), key=int) == ["0", "1", "2"]
        forwarding = ("nsenter", f"--target={init}", "--net", "--", "cat", "/proc/sys/net/ipv4/ip_forward")
        assert world.run(*forwarding) == "0\n"
        assert world.stop() == 1
        world.assert_nothing_left()


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("running", [False, True], ids=["in the handshake", "running"])
def test_signals(world: World, host: ScriptedHost, number: signal.Signals, running: bool) -> None:
    world.start(vm_switch=world.quiet)
    if running:
        with host.attach() as link:
            world.wait_file(world.quiet_record)
            world.wait_file(world.init_record)
            assert world.stop(number) == 1
            assert link.recv(1) == b""
        assert world.fatal() == KILLED
    else:
        with host.dial() as silent:
            assert silent.recv(len(PHRASE), socket.MSG_WAITALL) == PHRASE
            assert world.stop(number) == 1
            assert silent.recv(1) == b""
        assert world.fatal() == f"signal caught: {signal.strsignal(number)}".lower()
    world.assert_nothing_left()


def test_signals_at_any_moment_leave_nothing(world: World, host: ScriptedHost) -> None:
    for step in range(12):
        world.start(vm_switch=world.quiet)
        host.dial().close()
        world.data.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(world.data))
            listener.listen()
            host.ready()
            time.sleep(step * 0.01)
            assert world.stop() == 1
        world.assert_nothing_left()


def test_killed_it_takes_vm_switch_with_it_and_is_started_again(world: World, host: ScriptedHost) -> None:
    world.start(vm_switch=world.quiet)
    with host.attach():
        seen = json.loads(world.wait_file(world.quiet_record))
        first = world.wait_file(world.init_record)
        os.kill(world.pid, signal.SIGKILL)
        world.wait()
        wait_until(lambda: str(world.quiet) not in world.watched.processes().get(seen["pid"], ""))
    assert "veth-rd-wsl" in world.links()
    world.quiet_record.unlink()
    world.init_record.unlink()
    world.start(vm_switch=world.quiet)
    with host.attach():
        world.wait_file(world.quiet_record)
        assert world.wait_file(world.init_record).split()[1] != first.split()[1]
        assert world.log.read_text().count("tearing down link veth-rd-wsl: <nil>") == 1
        assert world.stop() == 1
    assert world.links() == {"lo"}


def test_a_vm_switch_that_fails_at_once_is_the_end(world: World, host: ScriptedHost) -> None:
    world.start()
    world.run("mount", "-t", "tmpfs", "tmpfs", "/dev/net")
    with host.attach() as link:
        assert world.wait() == 1
        assert link.recv(1) == b""
    assert world.fatal().startswith("vm-switch exited with error: exit status 1: /dev/net/tun is missing")
    world.assert_nothing_left()


FAULTS = {
    "no vm-switch path": (("-vm-switch-path", ""), "path to the vm-switch process must be provided"),
    "no program": (("--unshare-args", ""), "unshare program arg must be provided"),
    "no such vm-switch": (("-vm-switch-path", "/nowhere/vm"), "starting vm-switch failed: /nowhere/vm: no such file"),
    "not a program": (("-vm-switch-path", "/etc/passwd"), "starting vm-switch failed: /etc/passwd: cannot be executed"),
    "no such program": (
        ("-unshare-arg", "/nowhere/init"),
        "starting the unshare program failed: /nowhere/init: no such",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_missing_is_one_line(world: World, fault: str) -> None:
    arguments, text = FAULTS[fault]
    world.start(*arguments)
    assert world.wait() == 1
    assert world.fatal().startswith(text)
    world.assert_nothing_left()


def test_a_missing_unshare_is_one_line(world: World) -> None:
    world.run("mount", "--bind", "/dev/null", "/usr/bin/unshare")
    world.start()
    assert world.wait() == 1
    assert world.fatal() == "starting unshare failed: /usr/bin/unshare: cannot be executed"
    world.assert_nothing_left()


def test_a_name_that_cannot_be_freed_is_one_line(world: World) -> None:
    world.run("ip", "link", "set", "lo", "name", "veth-rd-wsl")
    world.start()
    assert world.wait() == 1
    assert world.fatal() == "tearing down link veth-rd-wsl: operation not supported"
    world.run("ip", "link", "set", "veth-rd-wsl", "name", "lo")
    world.assert_nothing_left()


def test_a_taken_handshake_endpoint_is_one_line(world: World) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as taken:
        taken.bind(str(world.handshake))
        taken.listen()
        world.start()
        assert world.wait() == 1
    assert str(world.handshake) in world.fatal()
    assert "in use" in world.fatal()
    world.handshake.unlink()
    world.assert_nothing_left()


def test_without_privileges_it_is_one_line(world: World) -> None:
    line = world.inside("setpriv", "--bounding-set=-net_admin,-sys_admin", str(VM_SWITCH.with_name("network-setup")))
    line += ["-logfile", str(world.log), "-vm-switch-path", str(VM_SWITCH), "-unshare-arg", str(world.init)]
    assert subprocess.run(line, check=False, timeout=60).returncode == 1
    assert world.fatal() == "network-setup needs CAP_NET_ADMIN and CAP_SYS_ADMIN: run it as root"
    world.assert_nothing_left()


def test_inits_end_is_told_and_the_network_stays(world: World, host: ScriptedHost) -> None:
    world.start(vm_switch=world.quiet)
    with host.attach():
        world.wait_file(world.init_record)
        (init,) = world.children(int(world.wait_file(world.file(PID_FILE))))
        os.kill(init, signal.SIGKILL)
        world.wait_log(f"{world.init}, PID 1 of the namespaces, ended:")
        wait_until(lambda: not world.file(PID_FILE).exists())
        assert world.address("veth-rd-wsl") is not None
        assert world.stop() == 1
    world.assert_nothing_left()


def test_a_new_vm_switch_for_one_that_died(world: World, host: ScriptedHost) -> None:
    world.start()
    with host.attach() as link:
        assert link.recv(2)
        world.wait_log("vm-switch carries frames")
        first = world.vm_switch_pid()
        init = int(world.wait_file(world.file(PID_FILE)))
        index = world.index("veth-rd-wsl")
        os.kill(first, signal.SIGKILL)
        while link.recv(65536):  # the end of the connection: no duplicate of it is left
            pass
    with host.attach() as link:
        assert link.recv(2)
        second = world.vm_switch_pid()
        assert second != first
        assert namespace(second) == namespace(init)
        assert world.index("veth-rd-wsl") == index
        assert int(world.file(PID_FILE).read_text()) == init
        assert world.stop() == 1
    world.assert_nothing_left()


def test_a_new_link_for_the_vm_switch_that_runs(world: World) -> None:
    """host-switch is killed and started again: the guest keeps its card, its address and its processes."""
    line = [sys.executable, "-m", "sulla_trio.cli.daemons", "host-switch", "--listen", "none"]
    line += ["--vm", f"unix://{world.handshake}", "--data", f"unix://{world.data}"]
    world.start()
    vm_switch = index = 0
    for attached in (1, 2, 3):
        switch = subprocess.Popen(line, env=world.watched.environment, stderr=subprocess.DEVNULL)
        try:
            world.wait_log("successful handshake", attached)
            vm_switch = vm_switch or world.vm_switch_pid()
            wait_until(partial(world.address, "eth0", vm_switch), world.story)
            index = index or world.index("eth0", vm_switch)
            world.run("nsenter", f"--target={vm_switch}", "--net", "ping", "-c", "1", "-W", "10", "192.168.127.1")
        finally:
            switch.kill()
            switch.wait()
        world.wait_log("data connection lost: ", attached)
        found = world.address("eth0", vm_switch)
        assert found is not None
        assert found["local"] == "192.168.127.2"
        assert world.index("eth0", vm_switch) == index
        assert world.vm_switch_pid() == vm_switch
    assert world.stop() == 1
    world.assert_nothing_left()


@pytest.mark.slow
def test_a_quiet_vm_switch_is_replaced_when_the_host_hangs_up(world: World, host: ScriptedHost) -> None:
    world.start(vm_switch=world.quiet)
    with host.attach():
        first = json.loads(world.wait_file(world.quiet_record))
        world.quiet_record.unlink()
        world.wait_log("vm-switch says nothing; watching its connection")
    wait_until(lambda: not Path(f"/proc/{first['helper']}").exists())
    with host.attach():
        second = json.loads(world.wait_file(world.quiet_record))
        assert second["pid"] == world.vm_switch_pid() != first["pid"]
        assert world.stop() == 1
    world.assert_nothing_left()


UNIT_PATH = "/org/freedesktop/systemd1/unit/network_2dnamespace_2eservice"


@pytest.fixture
def unit(world: World) -> Iterator[int]:
    """The main process of a unit with a network namespace of its own; its pid."""
    line = world.inside("unshare", "-n", "sh", "-c", "echo ready && exec cat")
    process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield process.pid
    process.communicate()


def test_systemds_namespace(world: World, host: ScriptedHost, unit: int) -> None:
    with bus_with_systemd({UNIT_PATH: unit}) as address:
        world.start(SYSTEMD_EXEC_PID="1", DBUS_SYSTEM_BUS_ADDRESS=address)
        with host.attach() as link:
            assert link.recv(2)
            vm_switch = world.vm_switch_pid()
            assert namespace(vm_switch) == namespace(unit) != namespace(world.pid)
            found = world.address("veth-rd-ns", unit)
            assert found is not None
            assert found["local"] == "192.168.143.1"
            assert world.children(world.pid) == [vm_switch]
            assert not world.file(PID_FILE).exists()
            assert f'level=warning msg="-unshare-arg {world.init} is ignored' in world.log.read_text()
            forwarding = ("cat", "/proc/sys/net/ipv4/ip_forward")
            assert world.run("nsenter", f"--target={unit}", "--net", "--", *forwarding) == "0\n"
            assert world.stop() == 1
        assert os.path.exists(f"/proc/{unit}/ns/net"), "the unit is not ours to end"
        assert "veth-rd-ns" not in world.run("nsenter", f"--target={unit}", "--net", "ip", "link")
        world.assert_nothing_left()


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (("ip", "tuntap", "add", "eth0", "mode", "tap"),
         "vm-switch exited with error: exit status 1: eth0 interface already exist, exiting now"),
        (("ip", "tuntap", "add", "veth-rd-ns", "mode", "tap"),
         "creating veth pair veth-rd-wsl and veth-rd-ns failed: file exists"),
    ],
    ids=["eth0", "veth-rd-ns"],
)  # fmt: skip
def test_a_name_taken_in_systemds_namespace_is_one_line(
    world: World, host: ScriptedHost, unit: int, command: tuple[str, ...], text: str
) -> None:
    world.run("nsenter", f"--target={unit}", "--net", "--", *command)
    with bus_with_systemd({UNIT_PATH: unit}) as address:
        world.start(init=False, SYSTEMD_EXEC_PID="1", DBUS_SYSTEM_BUS_ADDRESS=address)
        with host.attach() as link:
            assert world.wait() == 1
            assert link.recv(1) == b""
    assert world.fatal() == text
    world.assert_nothing_left()


def test_no_main_process_is_one_line(world: World, host: ScriptedHost) -> None:
    with bus_with_systemd({UNIT_PATH: 0}) as address:
        world.start(init=False, SYSTEMD_EXEC_PID="1", DBUS_SYSTEM_BUS_ADDRESS=address)
        host.attach().close()
        assert world.wait() == 1
    assert world.fatal().startswith("network-namespace.service has no main process (MainPID is 0)")
    world.assert_nothing_left()
