"""Runs inside the guest: a JSON request per line on stdin, a JSON answer per line on stdout. Standard library only."""

from __future__ import annotations

import json
import resource
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

held: list[socket.socket] = []


def run(argv: list[str]) -> dict[str, Any]:
    """Run a program in the guest: its exit status and output."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return {"status": done.returncode, "stdout": done.stdout, "stderr": done.stderr}


def hold(host: str, port: int, count: int) -> dict[str, Any]:
    """Open `count` connections and keep them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    started = time.monotonic()
    for _ in range(count):
        held.append(socket.create_connection((host, port), 30))
    return {"seconds": time.monotonic() - started}


def ping(host: str) -> dict[str, Any]:
    """Ping until the first answer."""
    try:
        pinger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
    except PermissionError:
        pinger = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    with pinger:
        pinger.settimeout(0.02)
        for sequence in range(500):
            checksum = ~(0x0800 + 1 + sequence) & 0xFFFF
            message = struct.pack("!BBHHH", 8, 0, checksum, 1, sequence)
            try:
                pinger.sendto(message, (host, 0))
                pinger.recv(128)
            except OSError:
                time.sleep(0.002)
                continue
            return {"answered": sequence}
    return {"error": f"no answer from {host}"}


def main() -> None:
    verbs: dict[str, Callable[..., dict[str, Any]]] = {"run": run, "hold": hold, "ping": ping}
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = verbs[request.pop("do")](**request)
        except OSError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
