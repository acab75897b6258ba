"""PID 1 of the guest: mounts /proc, starts CMD, reaps orphans, passes signals on; its end is the end of the namespace.

With `sulla run` it speaks over a SOCK_SEQPACKET socket: it sends ``stopped`` and ``continued`` about CMD, and receives
``signal NUMBER`` to pass on. End of stream means that `sulla run` is gone.
"""

from __future__ import annotations

import os
import select
import signal
import socket
from typing import Final, NamedTuple, NoReturn

from sulla_trio.link import netns, process

COMMAND_NOT_EXECUTABLE: Final = 126  # the shell's own statuses, POSIX XCU 2.8.2
COMMAND_NOT_FOUND: Final = 127
HIGHEST_INHERITED: Final = 64
"""The launcher opens a dozen descriptors, from 10 on."""


class Guest(NamedTuple):
    """What init starts."""

    command: tuple[str, ...]
    identity: tuple[int, int] | None
    """uid and gid that CMD has in a user namespace of its own; None: it stays uid 0 of the guest's."""
    ignored: frozenset[int]
    """Signals that CMD starts with ignored, as its caller had them."""
    mask: frozenset[int]


def main(connection: int, go: int, guest: Guest) -> NoReturn:
    """Wait for a byte on `go`, then live until CMD ends, and end with its status (128 + n after signal n)."""
    status = 1
    try:
        if os.read(go, 1):
            process.die_with_parent()
            process.set_process_name("sulla-init")
            _close_all_but(connection)
            status = _serve(socket.socket(fileno=connection), guest)
    except OSError as error:
        _complain(f"init: {error}")
    finally:
        os._exit(status)


def _serve(connection: socket.socket, guest: Guest) -> int:
    wake_read, wake_write = os.pipe()
    for descriptor in (wake_read, wake_write):
        os.set_blocking(descriptor, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    _mount_proc()
    command = os.fork()
    if not command:
        _become_command(guest)
    let_go_of_standard_streams()
    poll = select.poll()
    poll.register(wake_read, select.POLLIN)
    poll.register(connection, select.POLLIN)
    while True:
        ready = {descriptor for descriptor, _ in poll.poll()}
        if wake_read in ready:
            os.read(wake_read, 4096)
            status = _reap(command, connection)
            if status is not None:
                return status
        if connection.fileno() in ready and not _pass_on(connection, command):
            return 1


def _close_all_but(connection: int) -> None:
    """Drop what the launcher had open: an end held here would hide the other side's end of file."""
    os.closerange(3, connection)
    os.closerange(connection + 1, HIGHEST_INHERITED)


def _mount_proc() -> None:
    """A /proc of this pid namespace, in a mount namespace of its own (the launcher and vm-switch keep theirs).

    Where a container has parts of /proc covered the kernel refuses; CMD then sees the old one.
    """
    netns.unshare(netns.CLONE_NEWNS)
    try:
        netns.mount("proc", "/proc", "proc", netns.MS_NOSUID | netns.MS_NODEV | netns.MS_NOEXEC)
    except OSError:
        pass


def _become_command(guest: Guest) -> NoReturn:
    status = 1
    try:
        if guest.identity is not None:
            try:
                netns.enter_user_namespace(*guest.identity)
            except OSError as error:
                _complain(netns.explain_refusal(error))
                os._exit(1)
        signal.set_wakeup_fd(-1)
        process.restore_signals(guest.ignored, guest.mask)
        os.execvp(guest.command[0], guest.command)
    except (FileNotFoundError, NotADirectoryError):
        _complain(f"{guest.command[0]}: command not found")
        status = COMMAND_NOT_FOUND
    except (OSError, ValueError) as error:
        _complain(f"{guest.command[0]}: {getattr(error, 'strerror', None) or error}")
        status = COMMAND_NOT_EXECUTABLE
    finally:
        os._exit(status)


def let_go_of_standard_streams() -> None:
    """A reader of CMD's output gets its end of file when CMD closes it, not when we end."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)


def _reap(command: int, connection: socket.socket) -> int | None:
    """Reap all that has ended; CMD's status if it is among them."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
        except ChildProcessError:
            return None
        if not pid:
            return None
        if pid != command:
            continue
        if os.WIFSTOPPED(status):
            connection.send(b"stopped")
        elif os.WIFCONTINUED(status):
            connection.send(b"continued")
        else:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _pass_on(connection: socket.socket, command: int) -> bool:
    """One message; False at end of stream."""
    message = connection.recv(64)
    if not message:
        return False
    try:
        os.kill(command, int(message.split()[1]))
    except ProcessLookupError:
        pass
    return True


def _complain(text: str) -> None:
    os.write(2, f"sulla run: {text}\n".encode("utf-8", "replace"))
