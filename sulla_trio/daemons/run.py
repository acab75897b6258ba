"""`sulla run`: CMD in a fresh network namespace whose only way out is an embedded host-switch.

Four processes: this one (in the caller's session, at its terminal), host-switch (its child, a session of its own), the
launcher of `run_launch` (its child, in CMD's process group) with vm-switch and init below it. Everything dies with this one
by PR_SET_PDEATHSIG. The children are spawned before trio is imported: they start meanwhile. Source: DESIGN section 6.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

from sulla_trio.config import format_ip, network_config
from sulla_trio.daemons.run_config import RunConfig
from sulla_trio.daemons.run_launch import LINK_FD, READY_FD, Plan
from sulla_trio.errors import ConfigError
from sulla_trio.link import process, tap
from sulla_trio.link.mounts import RESOLV_CONF

__all__ = ["RunConfig", "run"]


def run(config: RunConfig) -> int:
    """Run `config.command`; its exit status (128 + n after signal n), or 1 when the guest could not be made.

    Synchronous: it runs trio itself. Call it once, from a process's main thread; the process's stdin and stdout are
    CMD's afterwards. What goes wrong is told on stderr, one line each.
    """
    try:
        tap.check_device()
        processes = Processes(config)
    except ConfigError as error:
        complain(str(error))
        return 1
    from sulla_trio.daemons import run_supervise  # trio: 0.1 s in which the children start

    return run_supervise.supervise(processes)


def complain(text: str) -> None:
    """One line on stderr."""
    os.write(2, f"sulla run: {text}\n".encode("utf-8", "replace"))


class Processes:
    """The two children and what connects them to us. Spawns on the calling thread, which must be the main one.

    `host_switch` and `host_log` are replaced by `restart_host_switch`.
    """

    def __init__(self, config: RunConfig) -> None:
        """Spawn both.

        Raises:
            ConfigError: `config.subnet` or `config.mtu` is bad, or an interpreter cannot be started.
        """
        self.config = config
        self._gateway = format_ip(network_config(config.subnet, config.mtu).gateway_ip)
        self.host_switch: subprocess.Popen[bytes]
        self.host_log = self.vm_log = -1
        self.generation = 1
        try:
            link = self._spawn_host_switch()
            with link:
                self._spawn_launcher(link)
        except OSError as error:
            raise ConfigError(f"cannot start {sys.executable}: {error.strerror or error}") from None
        # CMD alone holds what it reads and writes: who reads its output sees its end when CMD closes it.
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1):
            os.dup2(null, descriptor)
        os.close(null)

    def _spawn_host_switch(self) -> socket.socket:
        """A host-switch on one end of a new link; the other end."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        log_read, log_write = os.pipe()
        try:
            with theirs:
                # SIGTERM, not KILL: its API's socket file goes with it.
                self.host_switch = subprocess.Popen(
                    self._host_switch_arguments(theirs.fileno()),
                    stdin=subprocess.DEVNULL,
                    stdout=log_write,
                    stderr=log_write,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                    preexec_fn=lambda: _prepare_child(signal.SIGTERM),
                )
        except BaseException:
            ours.close()
            os.close(log_read)
            raise
        finally:
            os.close(log_write)
        os.set_blocking(log_read, False)
        self.host_log = log_read
        return ours

    def _host_switch_arguments(self, link: int) -> list[str]:
        config = self.config
        arguments = [
            *_daemon("host-switch"),
            "--data",
            f"fd://{link}",
            "-subnet",
            config.subnet,
            "--mtu",
            str(config.mtu),
        ]
        for forward in config.forwards:
            prefix = "udp:" if forward.protocol == "udp" else ""
            arguments += ["-port-forward", f"{prefix}{forward.local}={forward.remote}"]
        for url in config.listen or ("none",):
            arguments += ["--listen", url]
        if config.debug:
            arguments.append("-debug")
        return [*arguments, *config.host_switch_flags]

    def _vm_switch_arguments(self) -> list[str]:
        arguments = [*_daemon("vm-switch"), "-vsock-fd", str(LINK_FD), "--ready-fd", str(READY_FD)]
        arguments += ["-subnet", self.config.subnet, "-logfile", "/dev/stderr", "--resolv-conf", RESOLV_CONF]
        return [*arguments, "-debug"] if self.config.debug else arguments

    def _spawn_launcher(self, link: socket.socket) -> None:
        self.control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.init, init = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.vm_log, log_write = os.pipe()
        os.set_blocking(self.vm_log, False)
        plan = Plan(
            os.getpid(), control.fileno(), init.fileno(), link.fileno(), log_write, self.config.root, self._gateway,
            tuple(self._vm_switch_arguments()), self.config.command,
        )  # fmt: skip
        environment = dict(os.environ)
        if self.config.listen:
            environment.setdefault("SULLA_API", self.config.listen[0])
        stored = plan.store()
        with control, init:
            self.launcher = subprocess.Popen(
                [sys.executable, "-P", "-m", "sulla_trio.daemons.run_launch", str(stored)],
                env=environment,
                pass_fds=(stored, plan.control, plan.init, plan.link, plan.log),
                preexec_fn=lambda: _prepare_child(signal.SIGKILL),
            )
        os.close(stored)
        os.close(log_write)

    def restart_network(self) -> None:
        """A new host-switch (the old one has ended) and, by the launcher, a new vm-switch, on a fresh link.

        Raises:
            OSError: no process or descriptor can be had, or the launcher is gone.
        """
        os.close(self.host_log)
        with self._spawn_host_switch() as link:
            self.generation += 1
            socket.send_fds(self.control, [f"link {self.generation}".encode()], [link.fileno()])


def _daemon(name: str) -> list[str]:
    # -P: a file of the caller's directory named like a module of ours is not ours.
    return [sys.executable, "-P", "-m", "sulla_trio.cli.daemons", name]


def _prepare_child(number: int) -> None:
    parent = os.getppid()
    process.die_with_parent(number)
    if parent == 1 or os.getppid() != parent:  # it had ended before we asked
        os._exit(1)
    # A host-switch that is started again is a child of the supervisor, which has its signals blocked.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
