"""wsl-proxy started as its user starts it, between two network namespaces that stand for a VM's default and isolated ones."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 60

# A TCP and UDP server of the isolated namespace. TCP: answers what it got, upper case, only after the client's FIN.
SERVER = """
import socket, sys, threading
port = int(sys.argv[1])
tcp = socket.create_server(("0.0.0.0", port))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("0.0.0.0", port))
def datagrams():
    while True:
        data, peer = udp.recvfrom(65535)
        udp.sendto(data.upper(), peer)
def serve(client):
    with client:
        data = b""
        while more := client.recv(65536):
            data += more
        client.sendall(data.upper())
threading.Thread(target=datagrams, daemon=True).start()
print("ready", flush=True)
while True:
    threading.Thread(target=serve, args=(tcp.accept()[0],), daemon=True).start()
"""

CLIENT = """
import socket, sys
kind, host, port, data = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4].encode()
if kind == "udp":
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(20)
    sock.connect((host, port))
    sock.send(data)
    print(sock.recv(65535).decode())
else:
    with socket.create_connection((host, port), 20) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        while more := sock.recv(65536):
            answer += more
        print(answer.decode())
"""


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


class Vm:
    """Two namespaces joined by a veth pair with the addresses of the Go daemons."""

    def __init__(self, outer: int, inner: int) -> None:
        self.outer = outer
        self.inner = inner

    def command(self, pid: int, *command: str) -> list[str]:
        return ["nsenter", f"--target={pid}", "--user", "--net", "--preserve-credentials", "--", *command]

    def python(self, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `code` in the default namespace."""
        return subprocess.run(
            self.command(self.outer, sys.executable, "-c", code, *arguments),
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )

    def ask(self, kind: str, host: str, port: int, data: str = "hello") -> str:
        done = self.python(CLIENT, kind, host, str(port), data)
        return done.stdout.strip() if not done.returncode else done.stderr.strip().splitlines()[-1]


@contextlib.contextmanager
def holder(*command: str) -> Iterator[int]:
    """A process that keeps a new namespace; its pid, once it is in it."""
    with subprocess.Popen(
        [*command, "sh", "-c", "echo in; exec sleep 600"], stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "in\n"
            yield child.pid
        finally:
            child.kill()


@pytest.fixture(scope="module")
def vm() -> Iterator[Vm]:
    with holder("unshare", "--user", "--map-root-user", "--net") as outer:
        enter = Vm(outer, outer).command(outer)
        with holder(*enter, "unshare", "--net") as inner:
            built = Vm(outer, inner)
            setup = f"""
                ip link set lo up
                ip link add veth-rd-wsl type veth peer name veth-rd-ns netns {inner}
                ip addr add 192.168.143.2/24 dev veth-rd-wsl
                ip link set veth-rd-wsl up
            """
            subprocess.run(built.command(outer, "sh", "-euc", setup), check=True, timeout=TIMEOUT)
            setup = "ip link set lo up; ip addr add 192.168.143.1/24 dev veth-rd-ns; ip link set veth-rd-ns up"
            subprocess.run(built.command(inner, "sh", "-euc", setup), check=True, timeout=TIMEOUT)
            yield built


@pytest.fixture
def upstream(vm: Vm) -> Iterator[int]:
    """A server in the isolated namespace; its port."""
    port = 8080
    command = vm.command(vm.inner, sys.executable, "-c", SERVER, str(port))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            yield port
        finally:
            server.kill()


class Daemon:
    """wsl-proxy in the VM's default namespace."""

    def __init__(self, vm: Vm, directory: Path, *flags: str) -> None:
        self.socket = directory / "wsl-proxy.sock"
        self.log = directory / "wsl proxy.log"
        self.process = subprocess.Popen(
            vm.command(
                vm.outer,
                *(sys.executable, "-m", "sulla_trio.cli.daemons", "wsl-proxy", "-debug=true", f"-logfile={self.log}"),
                *("-socketFile", str(self.socket), *flags),
            ),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
        )

    def wait_ready(self) -> None:
        until(lambda: self.log.exists() and "started accepting" in self.log.read_text(), "no control socket")

    def tell(self, *bindings: tuple[str, str, int], remove: bool = False) -> None:
        """One mapping as the guest agent sends it, waited for."""
        ports: dict[str, list[dict[str, str]]] = {}
        for key, ip, port in bindings:
            ports.setdefault(key, []).append({"HostIp": ip, "HostPort": str(port)})
        with socket.socket(socket.AF_UNIX) as agent:
            agent.settimeout(TIMEOUT)
            agent.connect(str(self.socket))
            agent.sendall(json.dumps({"remove": remove, "ports": ports, "connectAddrs": None}).encode() + b"\n")
            assert agent.recv(1) == b""

    def sockets(self) -> int:
        """How many it has open."""
        folder, count = Path(f"/proc/{self.process.pid}/fd"), 0
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):
                count += os.readlink(folder / name).startswith("socket:")
        return count

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(TIMEOUT)


@contextlib.contextmanager
def started(vm: Vm, directory: Path, *flags: str) -> Iterator[Daemon]:
    daemon = Daemon(vm, directory, *flags)
    try:
        daemon.wait_ready()
        yield daemon
    finally:
        if daemon.process.poll() is None:
            daemon.process.kill()
        daemon.process.wait()


def test_another_distro_reaches_published_ports(vm: Vm, upstream: int, tmp_path: Path) -> None:
    with started(vm, tmp_path) as daemon:
        assert "refused" in vm.ask("tcp", "127.0.0.1", upstream).lower()
        before = daemon.sockets()
        both = (("80/tcp", "0.0.0.0", upstream), ("80/udp", "0.0.0.0", upstream))
        daemon.tell(*both)
        for host in ("127.0.0.1", "192.168.143.2", "127.0.0.99", "::1"):
            assert vm.ask("tcp", host, upstream) == "HELLO"
            assert vm.ask("udp", host, upstream) == "HELLO"
        daemon.tell(*both, remove=True)
        assert "refused" in vm.ask("tcp", "127.0.0.1", upstream).lower()
        assert "refused" in vm.ask("udp", "127.0.0.1", upstream).lower()
        # A localhost binding is not reached from elsewhere.
        daemon.tell(("80/tcp", "127.0.0.1", upstream))
        assert vm.ask("tcp", "127.0.0.1", upstream) == "HELLO"
        assert "refused" in vm.ask("tcp", "192.168.143.2", upstream).lower()
        daemon.tell(("80/tcp", "127.0.0.1", upstream), remove=True)
        until(lambda: daemon.sockets() == before, "sockets are left")
        assert daemon.stop() == 0
        assert not daemon.socket.exists()
        text = daemon.log.read_text()
        assert 'level=info msg="Shutting down..."' in text
        assert "level=error" not in text


def test_its_name_is_wsl_proxy(vm: Vm, tmp_path: Path) -> None:
    with started(vm, tmp_path) as daemon:
        assert Path(f"/proc/{daemon.process.pid}/comm").read_text() == "wsl-proxy\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_everything_open(vm: Vm, upstream: int, tmp_path: Path, number: int) -> None:
    hold = """
import socket, sys, time
held = [socket.create_connection(("127.0.0.1", int(sys.argv[1]))) for _ in range(20)]
print("held", flush=True)
try:
    held[0].recv(1)
except ConnectionResetError:
    print("reset")
"""
    with started(vm, tmp_path) as daemon:
        daemon.tell(("80/tcp", "", upstream), ("80/udp", "", upstream))
        command = vm.command(vm.outer, sys.executable, "-c", hold, str(upstream))
        with (
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client,
            socket.socket(socket.AF_UNIX) as silent,
        ):
            assert client.stdout is not None
            assert client.stdout.readline() == "held\n"
            silent.connect(str(daemon.socket))
            assert daemon.stop(number) == 0
            assert client.stdout.readline() == "reset\n"
        assert not daemon.socket.exists()
        assert "refused" in vm.ask("tcp", "127.0.0.1", upstream).lower()


def test_killed_and_started_again(vm: Vm, upstream: int, tmp_path: Path) -> None:
    with started(vm, tmp_path) as daemon:
        daemon.tell(("80/tcp", "127.0.0.1", upstream))
        assert daemon.stop(signal.SIGKILL) == -signal.SIGKILL
        assert daemon.socket.exists()
        daemon.log.unlink()
    with started(vm, tmp_path) as daemon:
        daemon.tell(("80/tcp", "127.0.0.1", upstream))
        assert vm.ask("tcp", "127.0.0.1", upstream) == "HELLO"
        second = Daemon(vm, tmp_path / "..", "-socketFile", str(daemon.socket), "-logfile", "/dev/stderr")
        assert second.process.wait(TIMEOUT) == 1
        assert vm.ask("tcp", "127.0.0.1", upstream) == "HELLO"
        assert daemon.stop() == 0


def test_a_signal_at_any_moment_leaves_nothing(vm: Vm, tmp_path: Path) -> None:
    for step in range(12):
        daemon = Daemon(vm, tmp_path)
        time.sleep(step * 0.05)
        assert daemon.stop() in (0, -signal.SIGTERM)
        # Before Python has come to the signals there is no socket yet, and afterwards it is removed.
        assert not daemon.socket.exists()


def test_events_as_sulla_shows_them(vm: Vm, upstream: int, tmp_path: Path) -> None:
    url = f"unix://{tmp_path}/events.sock"
    with started(vm, tmp_path, "--events", url) as daemon:
        until((tmp_path / "events.sock").exists, "no events")
        daemon.tell(("80/tcp", "127.0.0.1", upstream))
        assert vm.ask("tcp", "127.0.0.1", upstream) == "HELLO"
        command = [sys.executable, "-m", "sulla_trio.cli.sulla", "events", "--api", url, "--since", "0", "--json"]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as watcher:
            assert watcher.stdout is not None
            seen = [json.loads(watcher.stdout.readline()) for _ in range(4)]
            watcher.terminate()
        assert [event["type"] for event in seen] == [
            "daemon.ready", "forward.added", "forward.opened", "forward.closed",
        ]  # fmt: skip
        assert (seen[3]["bytes_in"], seen[3]["bytes_out"], seen[3]["reason"]) == (5, 5, "eof")
        assert daemon.stop() == 0
        assert sorted(path.name for path in tmp_path.iterdir()) == ["wsl proxy.log"]
