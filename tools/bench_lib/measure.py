"""What is measured, one function per row; every one returns plain numbers in the unit its name says."""

from __future__ import annotations

import json
import resource
import socket
import subprocess
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

from bench_lib.processes import usage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench_lib.peers import Guest, Peer

CONNECTIONS = 1000
SETTLE = 1.0
"""Seconds before something is called idle."""


@dataclass
class Throughput:
    """One contestant in one direction."""

    gbit_per_s: list[float] = field(default_factory=list)
    cpu_s_per_gb: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return median(self.gbit_per_s)

    @property
    def rate_text(self) -> str:
        """Median, and the range: where it is wide, something else was running too."""
        return f"{self.rate:.2f} ({min(self.gbit_per_s):.2f} to {max(self.gbit_per_s):.2f})"

    @property
    def cpu(self) -> float:
        return median(self.cpu_s_per_gb)


@contextmanager
def iperf3_server() -> Iterator[int]:
    """An iperf3 server on 127.0.0.1: its port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    server = subprocess.Popen(
        ["iperf3", "--server", "--bind", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        time.sleep(0.2)  # it takes the probe for a client that went away
        yield port
    finally:
        server.terminate()
        server.wait()


def one_stream(peer: Peer, guest: Guest, port: int, seconds: float, *, down: bool, into: Throughput) -> None:
    """One TCP stream through iperf3; what arrived counts."""
    before = usage(guest.daemons)
    command = ["iperf3", "--client", peer.host, "--port", str(port), "--time", str(seconds), "--json"]
    done = guest.ask("run", argv=[*command, *(["--reverse"] if down else [])])
    after = usage(guest.daemons)
    outcome = json.loads(done["stdout"]) if done["stdout"] else {"error": done["stderr"]}
    if "error" in outcome:
        raise RuntimeError(f"{peer.label}: iperf3: {outcome['error']}")
    received = outcome["end"]["sum_received"]
    into.gbit_per_s.append(received["bits_per_second"] / 1e9)
    into.cpu_s_per_gb.append((after.cpu - before.cpu) / (received["bytes"] / 1e9))


def first_ping_s(peer: Peer) -> float:
    """From starting everything to the first answer of the gateway."""
    started = time.monotonic()
    guest = peer.start(peer.mtu)
    try:
        guest.wait_ready()
        guest.ask("ping", host=peer.gateway)
        return time.monotonic() - started
    finally:
        guest.close()


@dataclass(frozen=True)
class Idle:
    """What it costs to do nothing."""

    rss_mb: float
    cpu_percent: float
    wakeups_per_s: float
    kb_per_connection: float
    connections_cpu_percent: float
    connections_wakeups_per_s: float


def _rest(guest: Guest, seconds: float) -> tuple[float, float]:
    """(CPU percent, wake-ups per second) of the daemons left alone."""
    time.sleep(SETTLE)
    pids = guest.daemons
    before, started = usage(pids), time.monotonic()
    time.sleep(seconds)
    after, took = usage(pids), time.monotonic() - started
    return (after.cpu - before.cpu) / took * 100, after.wakeups_since(before) / took


def idle(peer: Peer, seconds: float) -> Idle:
    """A fresh guest: alone, then with `CONNECTIONS` connections open and silent."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    accepted: list[socket.socket] = []
    listener = socket.create_server(("127.0.0.1", 0), backlog=CONNECTIONS)

    def accept() -> None:
        try:
            while True:
                accepted.append(listener.accept()[0])
        except OSError:
            pass  # closed below

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    guest = peer.start(peer.mtu)
    try:
        guest.wait_ready()
        guest.ask("ping", host=peer.gateway)
        cpu, wakeups = _rest(guest, seconds)
        alone = usage(guest.daemons).rss
        guest.ask("hold", host=peer.host, port=listener.getsockname()[1], count=CONNECTIONS)
        busy_cpu, busy_wakeups = _rest(guest, seconds)
        crowded = usage(guest.daemons).rss
    finally:
        guest.close()
        listener.shutdown(socket.SHUT_RDWR)
        acceptor.join()
        for each in [*accepted, listener]:
            each.close()
    return Idle(
        rss_mb=alone / 1e6,
        cpu_percent=cpu,
        wakeups_per_s=wakeups,
        kb_per_connection=(crowded - alone) / 1e3 / CONNECTIONS,
        connections_cpu_percent=busy_cpu,
        connections_wakeups_per_s=busy_wakeups,
    )
