"""The demo of the main job: one `sulla run` of the guest's steps with the host's side around it; see tools/demo."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

from sulla_trio.demo.host import GUEST, SULLA, TIMEOUT, HostSide, free_ports
from sulla_trio.demo.report import Report, expect


def exit_status_passes() -> str:
    """A second, short run: from its start to its end, and its command's exit status."""
    started = time.perf_counter()
    status = subprocess.run([SULLA, "run", "--", "sh", "-c", "exit 7"], timeout=TIMEOUT, check=False).returncode
    took = time.perf_counter() - started
    expect(status == 7, f"status {status} and not 7")
    return f"`sulla run -- sh -c 'exit 7'` ended with {status}, {took:.2f} s from start to end"


def run(size: int, mtu: int, directory: str, report: Report) -> None:
    """One `sulla run` of the guest, with the host's side around it."""
    api = f"unix://{directory}/api.sock"
    host = HostSide(size, api, report)
    threading.Thread(target=host.serve_forever, daemon=True).start()
    static_tcp, static_udp, exposed, closed, guest_port = free_ports(5)
    host.guest_port = guest_port
    ports = {
        "http": host.server_address[1], "tail": host.tail_port, "udp": host.udp_port, "closed": closed,
        "static_tcp": static_tcp, "static_udp": static_udp, "exposed": exposed, "guest": guest_port,
        "size": size, "sha256": host.sha256, "mtu": mtu,
    }  # fmt: skip
    command = [
        SULLA, "run", "--mtu", str(mtu), "--listen", api,
        "-p", f"127.0.0.1:{static_tcp}={GUEST}:{guest_port}", "-p", f"udp:127.0.0.1:{static_udp}={GUEST}:{guest_port}",
        "--", sys.executable, "-P", "-m", "sulla_trio.demo.guest", json.dumps(ports),
    ]  # fmt: skip
    try:
        status = subprocess.run(command, check=False).returncode
    finally:
        host.close()
    report.failed += status != 0
    if status not in (0, 1) or host.watcher is None:
        print(f"FAILED  sulla run ended with status {status}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/demo", description="Show every service of `sulla run` working.")
    parser.add_argument("--size", type=int, default=256, metavar="MIB", help="data moved each way (default 256)")
    parser.add_argument("--mtu", type=int, default=65000, help="MTU of the network (default 65000)")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    report = Report()
    directory = tempfile.mkdtemp(prefix="sulla-demo-")
    started = time.monotonic()
    try:
        run(arguments.size << 20, arguments.mtu, directory, report)
        report.step("exit status", exit_status_passes)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    took = time.monotonic() - started
    print(f"{'all of it worked' if not report.failed else 'NOT all of it worked'}, {took:.0f} s")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
