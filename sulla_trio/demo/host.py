"""The demo's host side: serves what the guest reaches for on 127.0.0.1, does on the host what the guest asks for, and shows
what `sulla` tells of it all.
"""

from __future__ import annotations

import errno
import hashlib
import http.server
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sulla_trio.demo.report import Report, expect

SULLA = str(Path(sys.executable).with_name("sulla"))
GUEST = "192.168.127.2"
TIMEOUT = 20.0
BLOCK = 1 << 20


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody has, over TCP or UDP, at this moment."""
    held = []
    for _ in range(count):
        while True:
            tcp = socket.create_server(("127.0.0.1", 0))
            udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            held += [tcp, udp]
            try:
                udp.bind(tcp.getsockname())
                break
            except OSError:
                held.remove(udp)
                udp.close()
    ports = [each.getsockname()[1] for each in held if each.type == socket.SOCK_DGRAM]
    for each in held:
        each.close()
    return ports


class HostSide(http.server.ThreadingHTTPServer):
    """What the guest reaches at the host's alias: random data to download, a sink, echoes, and hands for the host."""

    daemon_threads = True

    def __init__(self, size: int, api: str, report: Report) -> None:
        super().__init__(("127.0.0.1", 0), HostRequest)
        self.environment = {**os.environ, "SULLA_API": api}
        self.report = report
        self.events: list[dict[str, Any]] = []
        self.watcher: subprocess.Popen[str] | None = None
        self.held: socket.socket | None = None
        self.exposed = 0
        self.guest_port = 0
        self.data = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
        digest = hashlib.sha256()
        for start in range(0, size, BLOCK):
            block = os.urandom(min(BLOCK, size - start))
            digest.update(block)
            self.data.write(block)
        self.data.flush()
        self.size, self.sha256 = size, digest.hexdigest()
        self.tail_port = self.start_tail()
        self.udp_port = self.start_udp_echo()

    def start_tail(self) -> int:
        """A server that reads up to the FIN, then sends the sha256 of what it read and all of it back."""

        def talk(connection: socket.socket) -> None:
            with connection:
                received = bytearray()
                while chunk := connection.recv(1 << 16):
                    received += chunk
                connection.sendall(hashlib.sha256(received).digest() + received)

        def accept() -> None:
            while True:
                threading.Thread(target=talk, args=(listener.accept()[0],), daemon=True).start()

        listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        threading.Thread(target=accept, daemon=True).start()
        port: int = listener.getsockname()[1]
        return port

    def start_udp_echo(self) -> int:
        def answer() -> None:
            while True:
                data, peer = echo.recvfrom(1 << 16)
                echo.sendto(data, peer)

        echo = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        echo.bind(("127.0.0.1", 0))
        threading.Thread(target=answer, daemon=True).start()
        port: int = echo.getsockname()[1]
        return port

    def sulla(self, *arguments: str) -> str:
        """The output of the `sulla` command, which talks to the host API."""
        done = subprocess.run(
            [SULLA, *arguments], env=self.environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
        expect(done.returncode == 0, f"sulla {' '.join(arguments)}: status {done.returncode}, {done.stderr.strip()}")
        return done.stdout

    # -- what the guest asks for

    def begin(self) -> dict[str, Any]:
        """Start watching the events."""
        self.watcher = subprocess.Popen(
            [SULLA, "events", "--json"], env=self.environment, stdout=subprocess.PIPE, text=True
        )
        lines = self.watcher.stdout
        assert lines is not None
        threading.Thread(target=lambda: self.events.extend(json.loads(line) for line in lines), daemon=True).start()
        return {}

    def reach(self, port: int, text: str, protocol: str) -> dict[str, Any]:
        """Connect to a port of 127.0.0.1, say `text`, and tell the answer."""
        started = time.perf_counter()
        kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
        with socket.socket(socket.AF_INET, kind) as client:
            client.settimeout(TIMEOUT)
            client.connect(("127.0.0.1", port))
            client.sendall(text.encode())
            reply = client.recv(1 << 16).decode()
        return {"reply": reply, "ms": (time.perf_counter() - started) * 1000}

    def hold(self, port: int, text: str) -> dict[str, Any]:
        """The same, and keep the connection."""
        self.exposed = port
        self.held = socket.create_connection(("127.0.0.1", port), TIMEOUT)
        return self.hold_on(text)

    def hold_on(self, text: str) -> dict[str, Any]:
        """Say `text` over the kept connection, and tell the answer."""
        assert self.held is not None
        self.held.sendall(text.encode())
        return {"reply": self.held.recv(1 << 16).decode()}

    def do(self, request: dict[str, Any]) -> dict[str, Any]:
        verbs: dict[str, Callable[..., dict[str, Any]]] = {
            "begin": self.begin,
            "reach": self.reach,
            "hold": self.hold,
            "held": self.hold_on,
            "observe": self.observe,
        }
        try:
            return verbs[request.pop("do")](**request)
        except OSError as error:
            return {"error": errno.errorcode.get(error.errno or 0, str(error))}

    # -- what `sulla` tells

    def observe(self) -> dict[str, Any]:
        """The host's own steps, while the guest is alive."""
        self.report.step("sulla expose and unexpose", self.expose_from_outside)
        self.report.step("sulla ls", self.show_forwards)
        self.report.step("sulla leases", self.show_leases)
        self.report.step("sulla flows", self.show_flows)
        self.report.step("sulla stats", self.show_stats)
        self.report.step("sulla events", self.show_events)
        return {}

    def expose_from_outside(self) -> str:
        (port,) = free_ports(1)
        local = f"127.0.0.1:{port}"
        self.sulla("expose", local, f"{GUEST}:{self.guest_port}")
        answer = self.reach(port, "outside", "tcp")
        expect(answer["reply"] == "guest:outside", answer)
        self.sulla("unexpose", local)
        answer = self.do({"do": "reach", "port": port, "text": "gone", "protocol": "tcp"})
        expect(answer.get("error") == "ECONNREFUSED", answer)
        return f"{local} was there, and is gone"

    def show_forwards(self) -> str:
        rows = json.loads(self.sulla("ls", "--json"))
        expect(len(rows) == 2, rows)
        return f"{len(rows)} forwards left, those of the command line"

    def show_leases(self) -> str:
        leases = json.loads(self.sulla("leases", "--json"))
        expect(GUEST in json.dumps(leases), leases)
        return f"{GUEST} is leased, {len(leases)} rows"

    def show_flows(self) -> str:
        flows = json.loads(self.sulla("flows", "--json"))
        rows = flows if isinstance(flows, list) else [row for part in flows.values() for row in part]
        moved = sum(row["bytes_in"] + row["bytes_out"] for row in rows)
        expect(rows, flows)
        return f"{len(rows)} flows live or lately closed, {moved / 1e6:.0f} MB in them"

    def show_stats(self) -> str:
        stats = json.loads(self.sulla("stats", "--json"))
        received, sent = stats["BytesReceived"], stats["BytesSent"]
        expect(min(received, sent) >= self.size, f"received {received}, sent {sent}")
        return f"{received / 1e6:.0f} MB from the guest, {sent / 1e6:.0f} MB to it, {stats['DroppedPackets']} dropped"

    def show_events(self) -> str:
        local = f"127.0.0.1:{self.exposed}"
        wanted = ["forward.added", "forward.opened", "forward.removed"]
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            types = [event["type"] for event in self.events if event.get("local") == local]
            firsts = sorted((types.index(name), name) for name in wanted if name in types)
            if [name for _, name in firsts] == wanted:
                break
            time.sleep(0.05)
        expect([name for _, name in firsts] == wanted, f"of {local} only {types}")
        numbers = [event["seq"] for event in self.events]
        expect(numbers == sorted(set(numbers)), f"sequence numbers {numbers}")
        return f"{len(numbers)} in order; of {local}: {', '.join(wanted)}"

    def close(self) -> None:
        if self.watcher is not None:
            self.watcher.terminate()
            self.watcher.wait(TIMEOUT)
        self.server_close()
        self.data.close()


class HostRequest(http.server.BaseHTTPRequestHandler):
    """GET /data, POST /upload, POST /do."""

    server: HostSide
    wbufsize = 0

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: the demo prints one line per step."""

    def start_answer(self, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def do_GET(self) -> None:
        self.start_answer(self.server.size)
        at = 0
        while at < self.server.size:
            at += os.sendfile(self.connection.fileno(), self.server.data.fileno(), at, self.server.size - at)

    def do_POST(self) -> None:
        left = int(self.headers["Content-Length"])
        if self.path == "/upload":
            digest, buffer = hashlib.sha256(), memoryview(bytearray(BLOCK))
            while left and (count := self.rfile.readinto(buffer[: min(BLOCK, left)])):
                digest.update(buffer[:count])
                left -= count
            answer: dict[str, Any] = {"sha256": digest.hexdigest(), "at": time.perf_counter()}
        else:
            answer = self.server.do(json.loads(self.rfile.read(left)))
        body = json.dumps(answer).encode()
        self.start_answer(len(body))
        self.wfile.write(body)
