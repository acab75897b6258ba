"""The stand-in for wsl-init: started twice, as a distribution's program and as PID 1 of the guest's namespaces.

The first time it becomes network-setup, whose ``--unshare-arg`` is this program again; as PID 1 it becomes /sbin/init, of
which a shell that reaps its children is all that is needed. Source: specs/daemons.md section 8.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final, NoReturn

PROGRAMS: Final = Path(sys.executable).parent
INIT: Final = "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done"


def write_program(directory: Path) -> None:
    """A wsl-init in `directory`: one file, because ``--unshare-arg`` is one word, and no shell stays between."""
    path = directory / "wsl-init"
    path.write_text(f"#!/bin/sh\nexec '{sys.executable}' -P -m sulla_trio.demo.wsl_init '{directory}'\n")
    path.chmod(0o755)


def become_network_setup(directory: Path) -> NoReturn:
    """As the real wsl-init has it, but for the endpoints: unix sockets stand for AF_VSOCK."""
    program = str(PROGRAMS / "network-setup")
    os.execv(
        program,
        [
            program,
            "--logfile", str(directory / "network-setup.log"),
            "--vm-switch-path", str(PROGRAMS / "vm-switch"),
            "--vm-switch-logfile", str(directory / "vm-switch.log"),
            "--unshare-arg", str(directory / "wsl-init"),
            "--handshake", f"unix://{directory}/handshake",
            "--data", f"unix://{directory}/data",
        ],
    )  # fmt: skip


def become_init() -> NoReturn:
    """/sbin/init by its first argument, which is how wsl-exec finds it."""
    os.execv("/bin/sh", ["/sbin/init", "-c", INIT])


if __name__ == "__main__":
    if os.getpid() == 1:
        become_init()
    become_network_setup(Path(sys.argv[1]))
