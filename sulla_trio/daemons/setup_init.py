"""The program that becomes PID 1 of the guest's namespaces, and the file that says where to find it.

nsenter, which does not fork, becomes unshare, and unshare's only child is PID 1. The file has unshare's number: its readers
look for the process whose parent that is. Source: specs/daemons.md sections 3.8 and 4.2a.
"""

from __future__ import annotations

import logging
import os
from typing import Final

from sulla_trio.daemons.setup_vm_switch import NSENTER
from sulla_trio.errors import ConfigError
from sulla_trio.link.child import Child, Inherited, spawn

log = logging.getLogger(__name__)

UNSHARE: Final = "/usr/bin/unshare"
PID_FILE: Final = "/run/wsl-init.pid"


def init_arguments(program: str, owner: int, namespace: int) -> list[str]:
    """argv that makes `program` PID 1 in the network namespace that is descriptor `namespace` of process `owner`."""
    enter = [NSENTER, f"-n/proc/{owner}/fd/{namespace}", "-F"]
    return [*enter, UNSHARE, "--pid", "--mount-proc", "--fork", "--propagation", "slave", program]


def start_init(program: str, namespace: int, inherited: Inherited) -> Child:
    """Start `program` as PID 1, and write the file. Call it on the main thread.

    Raises:
        ConfigError: it cannot be started, or the file not be written.
    """
    try:
        child = spawn(init_arguments(program, os.getpid(), namespace), inherited)
    except OSError as error:
        raise ConfigError(f"starting {program} failed: {error.filename}: {(error.strerror or '').lower()}") from None
    log.info("started %s as PID 1 of new namespaces, below PID %d", program, child.pid)
    try:
        write_pid_file(child.pid)
    except OSError as error:
        child.kill()
        raise ConfigError(f"writing {PID_FILE} failed: {(error.strerror or str(error)).lower()}") from None
    return child


def write_pid_file(pid: int, path: str = PID_FILE) -> None:
    """`pid` in decimal without a newline. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, str(pid).encode())
    finally:
        os.close(descriptor)


def remove_pid_file(pid: int, path: str = PID_FILE) -> None:
    """Unlink the file if it still says `pid`: the number may soon be another process's, into which its readers would go.

    (The Go daemon leaves it; what starts either removes it first and waits for a new one.)
    """
    try:
        with open(path, "rb") as file:
            ours = file.read(32) == str(pid).encode()
        if ours:
            os.unlink(path)
    except OSError as error:
        log.debug("%s is not removed: %s", path, error.strerror)
