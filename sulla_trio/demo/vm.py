"""The VM of `sulla demo`: a network and a pid namespace of this machine, with the programs that a distribution starts.

Run as PID 1 by unshare(1), on a /run of its own. It starts the stand-in for wsl-init, which becomes network-setup, and once
that has made the guest's namespaces, wsl-proxy. It lives until its standard input ends; everything in it dies with it.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

from sulla_trio.config import DEFAULT_SUBNET, format_ip, network_config
from sulla_trio.link import mounts, netns, tap

INIT_PID_FILE: Final = Path("/run/wsl-init.pid")
PROGRAMS: Final = Path(sys.executable).parent
POLL: Final = 100
"""Milliseconds from one look at the pid file to the next."""


def set_up() -> None:
    """What a VM has when its programs start. Raises OSError, ConfigError."""
    netns.mount("tmpfs", "/run", "tmpfs", netns.MS_NOSUID | netns.MS_NODEV, "mode=755")
    # A DHCP client's script writes it in a real distribution.
    mounts.set_up_name_service(format_ip(network_config(DEFAULT_SUBNET).gateway_ip))
    tap.bring_up_loopback()


def start(program: str, *arguments: str) -> subprocess.Popen[bytes]:
    """A program beside this interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "SYSTEMD_EXEC_PID"}
    return subprocess.Popen([program, *arguments], stdin=subprocess.DEVNULL, env=environment)


def live(directory: Path) -> None:
    """Start the programs, reap whatever ends, until standard input does."""
    start(str(directory / "wsl-init"))
    proxy: subprocess.Popen[bytes] | None = None
    poll = select.poll()
    poll.register(0, select.POLLIN | select.POLLHUP)
    while not poll.poll(POLL):
        if proxy is None and INIT_PID_FILE.exists():
            log, events = directory / "wsl-proxy.log", directory / "wsl-proxy-events.sock"
            proxy = start(str(PROGRAMS / "wsl-proxy"), "-logfile", str(log), "--events", f"unix://{events}")
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass


def main() -> None:
    """The process's whole life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's: `sulla demo` decides
    set_up()
    live(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
