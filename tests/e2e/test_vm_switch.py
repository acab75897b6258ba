"""vm-switch as a program, with a real tap in a network namespace of its own, against a scripted host.

Real here: the kernel's tap and its addresses, util-linux's unshare and nsenter, busybox's udhcpc.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sulla_trio.link import control
from tests.support.guest_peer import DISCOVER, REQUEST, GuestPeer

pytestmark = pytest.mark.e2e

FRAME = b"\xff" * 6 + bytes.fromhex("5a94efe40cee0806") + bytes(46)
PATIENCE = 60


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


def start(
    link: socket.socket,
    script: str,
    *flags: str,
    control: socket.socket | None = None,
    stdin: socket.socket | None = None,
) -> subprocess.Popen[str]:
    """vm-switch and then `script`, in one network namespace; the script sees vm-switch as $vm."""
    own = ["unshare", "-n"] if os.geteuid() == 0 else ["unshare", "-rn"]
    words = [sys.executable, "-m", "sulla_trio.cli.daemons", "vm-switch", "-logfile", "/dev/stderr", *flags]
    shell = f'"$@" -vsock-fd {link.fileno()} & vm=$!\n{script}'
    environment, inherited = dict(os.environ), [link.fileno()]
    if control is not None:
        environment["SULLA_CTL_FD"] = str(control.fileno())
        inherited.append(control.fileno())
    return subprocess.Popen(
        [*own, "sh", "-c", shell, "sh", *words],
        env=environment,
        pass_fds=inherited,
        stdin=stdin or subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=60)
    return out, err


UP = "until ip addr show eth0 2>/dev/null | grep -q 'inet '; do kill -0 $vm || exit 98; sleep 0.05; done\n"


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


def test_a_deleted_tap_ends_it(peer: tuple[GuestPeer, socket.socket]) -> None:
    _, link = peer
    out, err = finish(start(link, UP + "ip link delete eth0; wait $vm; echo status $?"))
    assert out == "status 1\n"
    assert "packet" in err.splitlines()[-1]
    assert "Traceback" not in err


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


def test_an_interface_of_that_name_is_one_line() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        out, err = finish(start(theirs, "wait $vm; echo status $?", "-tap-interface", "lo"))
    assert out == "status 1\n"
    assert err.count("\n") == 1
    assert "lo interface already exist, exiting now" in err


# Another link


class Setup:
    """network-setup's side of the control descriptor, and the hosts it is given links to."""

    def __init__(self) -> None:
        self.channel, self._theirs = control.socket_pair()
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []

    def host(self) -> tuple[GuestPeer, socket.socket]:
        """A scripted host, and the guest's end of a link to it."""
        ours, theirs = socket.socketpair()
        found = GuestPeer(ours)
        thread = threading.Thread(target=found.serve)
        thread.start()
        self._threads.append(thread)
        self._sockets += [ours, theirs]
        return found, theirs

    def replace_link(self) -> GuestPeer:
        host, link = self.host()
        control.send_link(self.channel, link.fileno())
        link.close()
        return host

    def start(self, link: socket.socket, script: str, *flags: str) -> subprocess.Popen[str]:
        process = start(link, script, *flags, control=self._theirs)
        self._theirs.close()
        link.close()
        return process

    def message(self) -> control.Message | None:
        assert select.select([self.channel], [], [], PATIENCE)[0]
        return control.receive(self.channel)

    def close(self) -> None:
        self.channel.close()
        self._theirs.close()
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for sock in self._sockets:
            sock.close()


@pytest.fixture
def setup() -> Iterator[Setup]:
    found = Setup()
    yield found
    found.close()


SHOW = "ip -o link show eth0 | cut -d: -f1; ip -o -4 addr show eth0 | grep -o 'inet [0-9./]*'; ip route show default\n"
PING = "ping -c3 -i0.2 -W5 192.168.127.1 >/dev/null && echo alive\n"


def wait_for(setup: Setup, process: subprocess.Popen[str], line: str) -> list[str]:
    """The lines before `line`."""
    assert process.stdout is not None
    found: list[str] = []
    while (text := process.stdout.readline()) != line + "\n":
        assert text, "it has ended"
        found.append(text)
    return found


def test_tap_and_address_outlive_the_link(setup: Setup, tmp_path: Path) -> None:
    first, link = setup.host()
    go = tmp_path / "go"
    os.mkfifo(go)
    script = f"{UP}{SHOW}echo first; cat {go}; {SHOW}echo lost; cat {go}; {PING}{SHOW}echo second; cat {go}; {PING}"
    process = setup.start(link, script + "kill $vm; wait $vm; echo status $?")
    assert setup.message() == control.Message("up", "", None)
    before = wait_for(setup, process, "first")
    first.connection.sendall(b"\x3c\0half a fra")
    first.connection.shutdown(socket.SHUT_RDWR)
    lost = setup.message()
    assert lost == control.Message("lost", "end of stream inside a frame (12 bytes of it)", None)
    go.write_text("")
    assert wait_for(setup, process, "lost") == before
    second = setup.replace_link()
    go.write_text("")
    assert wait_for(setup, process, "second") == ["alive\n", *before]
    assert second.dhcp_types == [REQUEST]
    assert second.frames[0][42 + 12 : 42 + 16] == bytes((192, 168, 127, 2))  # ciaddr, in the first frame of all
    third = setup.replace_link()  # the second lives
    go.write_text("")
    out, err = finish(process)
    assert out == "alive\nstatus 1\n"
    assert third.dhcp_types == [REQUEST]
    assert "Traceback" not in err
    assert setup.message() is None


def test_the_end_of_network_setup_is_one_line_and_status_1(setup: Setup) -> None:
    _, link = setup.host()
    process = setup.start(link, UP + "echo up; wait $vm; echo status $?; ip -br link")
    wait_for(setup, process, "up")
    setup.channel.close()
    out, err = finish(process)
    assert "status 1" in out
    assert "eth0" not in out
    assert len([line for line in err.splitlines() if "level=info" not in line]) == 1
    assert "network-setup has gone" in err.splitlines()[-1]


# udhcpc


UDHCPC_SCRIPT = """#!/bin/sh
echo "$1 $NOTIFY_SOCKET ${SULLA_CTL_FD-no control}" >>"$SCRIPT_LOG"
case $1 in
deconfig) ip addr flush dev $interface; ip link set $interface up ;;
bound | renew) ip addr replace $ip/$mask dev $interface; ip route replace default via $router dev $interface ;;
esac
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "a script"
    path.write_text(UDHCPC_SCRIPT)
    path.chmod(0o755)
    monkeypatch.setenv("SCRIPT_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/notify")
    return path


def test_udhcpc_gets_the_lease_and_renews_it_on_another_link(setup: Setup, script: Path, tmp_path: Path) -> None:
    first, link = setup.host()
    go = tmp_path / "go"
    os.mkfifo(go)
    body = (
        f"{UP}ps -o args= --ppid $vm; {PING}echo first; cat {go}; {PING}kill $vm; wait $vm; echo status $?; ip -br link"
    )
    process = setup.start(link, body, "-dhcp-script", str(script))
    assert wait_for(setup, process, "first") == [f"udhcpc -f -i eth0 -s {script}\n", "alive\n"]
    assert first.dhcp_types == [DISCOVER, REQUEST]
    second = setup.replace_link()
    while not second.dhcp_types:
        time.sleep(0.02)
    go.write_text("")
    out, err = finish(process)
    assert out.startswith("alive\nstatus 1\n")
    assert "eth0" not in out
    assert second.dhcp_types == [REQUEST]
    assert (tmp_path / "log").read_text().splitlines() == [
        f"{word} /run/notify no control" for word in ("deconfig", "bound", "renew")
    ]
    assert "Traceback" not in err


def test_udhcpc_that_fails_is_started_again(peer: tuple[GuestPeer, socket.socket], script: Path) -> None:
    _, link = peer
    again = "kill -9 $(pgrep -P $vm udhcpc); until [ $(grep -c bound $SCRIPT_LOG) = 2 ]; do sleep 0.05; done\n"
    out, err = finish(start(link, UP + again + UP + PING + "kill $vm; wait $vm", "-dhcp-script", str(script)))
    assert out == "alive\n"
    assert "dhcp error: udhcpc: signal: killed; starting it again in 1 s" in err


def test_kill_9_leaves_nothing(peer: tuple[GuestPeer, socket.socket], script: Path) -> None:
    _, link = peer
    body = UP + "child=$(pgrep -P $vm udhcpc); kill -9 $vm; wait $vm; echo status $?; ip -br link | grep eth0\n"
    body += "while kill -0 $child 2>/dev/null; do sleep 0.05; done; echo gone"
    out, _ = finish(start(link, body, "-dhcp-script", str(script)))
    assert out == "status 137\ngone\n"


def test_a_script_that_is_missing_is_one_error_and_our_own_client(peer: tuple[GuestPeer, socket.socket]) -> None:
    _, link = peer
    out, err = finish(start(link, UP + PING + "kill $vm; wait $vm", "-dhcp-script", "/nowhere/script"))
    assert out == "alive\n"
    assert err.count("level=error") == 2
    assert "dhcp error: -dhcp-script /nowhere/script is not an executable file; the built-in" in err


# How network-setup starts it, and how it ends


EXEC_WITH_LINK_AS_3 = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.execvp(sys.argv[2], sys.argv[2:])"


@pytest.fixture
def namespace() -> Iterator[int]:
    """Descriptor of a network namespace that only it keeps alive."""
    own = ["unshare", "-n"] if os.geteuid() == 0 else ["unshare", "-rn"]
    with subprocess.Popen(
        [*own, "sh", "-c", "echo; read wait"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        descriptor = os.open(f"/proc/{holder.pid}/ns/net", os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def enter(namespace: int, link: socket.socket, *command: str, **more: object) -> subprocess.Popen[str]:
    line = ["nsenter", f"--net=/proc/self/fd/{namespace}", "-F", *command]
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
        [sys.executable, "-c", EXEC_WITH_LINK_AS_3, str(link.fileno()), *line],
        pass_fds=(namespace, link.fileno()),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def vm_switch_program() -> str:
    return str(Path(sys.executable).with_name("vm-switch"))


def interfaces(namespace: int) -> str:
    line = ["nsenter", f"--net=/proc/self/fd/{namespace}", "-F", "ip", "-br", "link"]
    return subprocess.run(line, pass_fds=(namespace,), capture_output=True, text=True, check=True).stdout


def test_started_by_nsenter_it_is_the_process_that_was_started(
    peer: tuple[GuestPeer, socket.socket], namespace: int, tmp_path: Path
) -> None:
    scripted, link = peer
    assert link.getblocking()
    arguments = (
        "-tap-interface", "eth0", "-subnet", "10.0.0.0/16", "-tap-mac-address", "5a:94:ef:e4:0c:ee",
        "-dhcp-script", "", "-logfile", str(tmp_path / "vm switch.log"), "-debug",
    )  # fmt: skip
    with enter(namespace, link, vm_switch_program(), *arguments) as process:
        while REQUEST not in scripted.dhcp_types:
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        assert Path(f"/proc/{process.pid}/comm").read_text() == "vm-switch\n"
        words = Path(f"/proc/{process.pid}/cmdline").read_bytes().decode().split("\0")[:-1]
        assert words[-len(arguments) - 1 :] == [vm_switch_program(), *arguments]
        assert os.stat(f"/proc/{process.pid}/fd/3").st_ino == os.fstat(link.fileno()).st_ino
        while "level=warning" not in (tmp_path / "vm switch.log").read_text():
            time.sleep(0.02)
        assert "eth0" in interfaces(namespace)
        process.terminate()
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (1, "", "")
    log = (tmp_path / "vm switch.log").read_text()
    (warning,) = re.findall(r"level=warning msg=(.*)", log)
    assert "192.168.127.0/24" in warning
    assert "10.0.0.0/16" in warning
    assert log.splitlines()[-1].endswith('level=error msg="signal caught: terminated"')
    assert "eth0" not in interfaces(namespace)


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.6, 1.0])
def test_terminated_at_any_moment(peer: tuple[GuestPeer, socket.socket], namespace: int, delay: float) -> None:
    """Before Python has taken the signal over it ends by it; nothing is left in either case."""
    _, link = peer
    with enter(namespace, link, vm_switch_program(), "-logfile", "/dev/stderr") as process:
        time.sleep(delay)
        process.terminate()
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode in (1, -signal.SIGTERM)
    assert ("signal caught: terminated" in err) == (process.returncode == 1)
    assert "Traceback" not in err
    assert "eth0" not in interfaces(namespace)


def test_without_a_tun_device_it_is_one_fatal_line(peer: tuple[GuestPeer, socket.socket]) -> None:
    _, link = peer
    line = [sys.executable, "-m", "sulla_trio.cli.daemons", "vm-switch", "-logfile", "/dev/stderr"]
    hidden = 'mount -t tmpfs none /dev/net && exec "$@"'
    own = ["unshare", "-nm"] if os.geteuid() == 0 else ["unshare", "-rnm"]
    done = subprocess.run(
        [*own, "sh", "-c", hidden, "sh", *line, "-vsock-fd", str(link.fileno())],
        pass_fds=(link.fileno(),),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 1
    (line_of_log,) = done.stderr.splitlines()
    assert "level=fatal" in line_of_log
    assert re.search(r"/dev/net/tun is missing .*modprobe tun", line_of_log)


def test_a_second_one_in_the_namespace_is_one_fatal_line(peer: tuple[GuestPeer, socket.socket]) -> None:
    _, link = peer
    left, right = socket.socketpair()
    second = f"{sys.executable} -m sulla_trio.cli.daemons vm-switch -logfile /dev/stdout -vsock-fd 0"
    with left, right:
        process = start(link, f"{UP}{second}; echo status $?; {PING}kill $vm; wait $vm", stdin=right)
        out, _ = finish(process)
    lines = out.splitlines()
    assert lines[0].endswith('level=fatal msg="eth0 interface already exist, exiting now"')
    assert lines[1:] == ["status 1", "alive"]
