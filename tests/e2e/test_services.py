"""The services seen by a real Linux kernel in the namespace of `sulla run`: its own ping, curl, dig and nc."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

FLOOD = Path(__file__).with_name("flood_client.py")
TIMEOUT = 120
SULLA = [sys.executable, "-m", "sulla_trio.cli.sulla"]


def run(*command: str, options: tuple[str, ...] = (), timeout: float = TIMEOUT) -> subprocess.CompletedProcess[str]:
    """`sulla run OPTIONS -- COMMAND`, waited for."""
    environment = {**os.environ, "SULLA_POISON": "1"}
    return subprocess.run(
        [*SULLA, "run", *options, "--", *command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment,
    )


def shell(script: str, options: tuple[str, ...] = (), timeout: float = TIMEOUT) -> str:
    """Output of `script` in the namespace; it must succeed."""
    done = run("sh", "-euc", script, options=options, timeout=timeout)
    assert done.returncode == 0, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    body = b""
    received: list[str]

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def do_PUT(self) -> None:
        digest, left = hashlib.sha256(), int(self.headers["Content-Length"])
        while left:
            data = self.rfile.read(min(left, 1 << 20))
            if not data:
                break
            digest.update(data)
            left -= len(data)
        answer = digest.hexdigest().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def web() -> Iterator[tuple[int, str]]:
    """An HTTP server on the host's 127.0.0.1: (port, sha256 of what GET returns). PUT answers the sha256 of the body."""
    body = os.urandom(1 << 20) * 64
    handler = type("Handler", (_Handler,), {"body": body})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1], hashlib.sha256(body).hexdigest()
    server.shutdown()
    server.server_close()
    thread.join()


@contextlib.contextmanager
def echo_server(kind: socket.SocketKind) -> Iterator[int]:
    """An echo on 127.0.0.1 that answers a half-close only after it; yields its port."""
    sock = socket.socket(socket.AF_INET, kind)
    sock.bind(("127.0.0.1", 0))
    if kind == socket.SOCK_STREAM:
        sock.listen(128)

    def stream() -> None:
        while True:
            try:
                client, _ = sock.accept()
            except OSError:
                return
            with client:
                data = b""
                while more := client.recv(65536):
                    data += more
                client.sendall(data)

    def datagram() -> None:
        while True:
            try:
                data, peer = sock.recvfrom(65536)
            except OSError:
                return
            if data == b"stop":
                return
            sock.sendto(data, peer)

    thread = threading.Thread(target=stream if kind == socket.SOCK_STREAM else datagram, daemon=True)
    thread.start()
    port = sock.getsockname()[1]
    try:
        yield port
    finally:
        if kind == socket.SOCK_DGRAM:
            with socket.socket(socket.AF_INET, kind) as stop:
                stop.sendto(b"stop", ("127.0.0.1", port))
        else:
            sock.shutdown(socket.SHUT_RDWR)
        thread.join()
        sock.close()


@pytest.mark.parametrize("mtu", ["1500", "65000"])
def test_address_ping_and_equal_hashes_both_ways(web: tuple[int, str], mtu: str) -> None:
    port, digest = web
    out = shell(
        f"""ip -br addr show eth0
        ping -c2 -W2 192.168.127.1 | tail -2 | head -1
        curl -sS http://192.168.127.254:{port}/file | sha256sum
        head -c 50000000 /dev/zero | tr '\\0' x > $T
        curl -sS -T $T http://192.168.127.254:{port}/up
        echo; sha256sum < $T; rm $T""".replace("$T", f"/tmp/sulla-test-{os.getpid()}"),
        options=("--mtu", mtu),
    )
    lines = out.splitlines()
    assert "192.168.127.2/24" in lines[0]
    assert "2 received" in lines[1]
    assert lines[2].split()[0] == digest
    assert lines[3].strip() == lines[4].split()[0]


def test_dns_by_udp_and_tcp() -> None:
    out = shell(
        """dig +short host.docker.internal
        dig +short +tcp gateway.rancher-desktop.internal
        dig +noall +comments nothing.docker.internal | grep -o 'status: [A-Z]*'
        dig +noall +comments AAAA host.docker.internal | grep -o 'status: [A-Z]*'
        cat /etc/resolv.conf
        getent hosts host.docker.internal"""
    )
    assert out.splitlines()[:4] == ["192.168.127.254", "192.168.127.1", "status: NXDOMAIN", "status: NOERROR"]
    assert "nameserver 192.168.127.1" in out
    assert out.splitlines()[-1].split()[0] == "192.168.127.254"


def test_udp_echo_refused_and_half_close() -> None:
    with echo_server(socket.SOCK_DGRAM) as udp, echo_server(socket.SOCK_STREAM) as tcp, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        out = shell(
            f"""echo over-udp | nc -u -w1 192.168.127.254 {udp}
            echo half-closed | nc -N 192.168.127.254 {tcp}
            curl -sS -m 5 http://192.168.127.254:{closed.getsockname()[1]}/ 2>&1 || echo status $?"""
        )
    assert "over-udp" in out
    assert "half-closed" in out
    assert "status 7" in out  # curl's "could not connect": a RST, not a time-out


def test_expose_from_inside_and_live_connection_survives_unexpose() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = f"""
        socat TCP-LISTEN:7000,fork,reuseaddr EXEC:cat &
        curl -sS -f http://192.168.127.1/services/forwarder/expose -d '{{"local":"127.0.0.1:{port}","remote":":7000"}}'
        curl -sS http://192.168.127.1/services/forwarder/all
        echo exposed; read go
        curl -sS -f http://192.168.127.1/services/forwarder/unexpose -d '{{"local":"127.0.0.1:{port}"}}'
        echo unexposed; read go"""
    with subprocess.Popen(
        [*SULLA, "run", "--", "sh", "-euc", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        listed = process.stdout.readline()
        assert json.loads(listed) == [{"local": f"127.0.0.1:{port}", "remote": "192.168.127.2:7000", "protocol": "tcp"}]
        assert process.stdout.readline() == "exposed\n"
        with socket.create_connection(("127.0.0.1", port), timeout=10) as live:
            live.sendall(b"one")
            assert live.recv(10) == b"one"
            process.stdin.write("go\n")
            process.stdin.flush()
            assert process.stdout.readline() == "unexposed\n"
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), timeout=10)
            live.sendall(b"two")
            assert live.recv(10) == b"two"
        process.stdin.write("go\n")
        process.stdin.close()
        assert process.wait(TIMEOUT) == 0


def sort_through(port: int) -> bytes:
    """What comes back for two lines and a half-close; nothing when the guest does not listen yet."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(b"b\na\n")
            client.shutdown(socket.SHUT_WR)
            return client.makefile("rb").read()
    except OSError:
        return b""


def test_static_forward_carries_half_close() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with subprocess.Popen(
        [
            *SULLA,
            "run",
            "-p",
            f"127.0.0.1:{port}=192.168.127.2:80",
            "--",
            "sh",
            "-c",
            "echo up; exec socat TCP-LISTEN:80,reuseaddr SYSTEM:'sort'",
        ],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "up\n"
            deadline, answer = time.monotonic() + 20, b""
            while not answer and time.monotonic() < deadline:  # the guest listens a moment after the word
                answer = sort_through(port)
            assert answer == b"a\nb\n"
            assert process.wait(TIMEOUT) == 0
        finally:
            process.terminate()


def test_two_thousand_flows_with_random_half_closes_and_resets() -> None:
    """Every byte right; the script prints what went wrong, if anything did."""
    with contextlib.ExitStack() as stack:
        server = subprocess.Popen(
            [sys.executable, str(FLOOD), "serve"], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
        )
        stack.enter_context(server)
        assert server.stdout is not None
        assert server.stdin is not None
        port = int(server.stdout.readline())
        done = run(sys.executable, str(FLOOD), "192.168.127.254", str(port), "2000", timeout=300)
        server.stdin.close()
        assert done.returncode == 0, done.stdout + done.stderr
        assert "2000 flows right" in done.stdout
