"""`sulla demo`: all four daemons on this machine, every service exercised, one line per step.

host-switch runs here; a network and a pid namespace (`vm`) stand for the VM, and unix sockets for AF_VSOCK. In them the
programs of a distribution start in the order of DESIGN section 1, and the guest's namespaces are made by network-setup.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Final

from sulla_trio.demo import wsl_init
from sulla_trio.demo.host import GUEST, HostSide, free_ports
from sulla_trio.demo.inside import HOST, PEER
from sulla_trio.demo.report import Report, expect
from sulla_trio.link import process

PROGRAMS: Final = Path(sys.executable).parent
PATIENCE: Final = 30.0
"""Seconds for what takes one on an idle machine."""
CONTAINER_PORT: Final = 8000
_MODULE: Final = (sys.executable, "-P", "-m")


class DemoFailed(Exception):
    """The daemons did not come up; the text says what is missing, and what they said last."""


class FourDaemons:
    """The processes. `close` ends them all."""

    def __init__(self, directory: Path, forwards: list[str]) -> None:
        self.directory = directory
        self.api = f"unix://{directory}/api.sock"
        self._forwards = forwards
        self.started = time.perf_counter()
        wsl_init.write_program(directory)
        # First the VM, as on a real host: its network-setup waits for ours to find it.
        self._unshare = subprocess.Popen(self._vm_command(), stdin=subprocess.PIPE, preexec_fn=_die_with_us)
        self._host_switch = self._start_host_switch()

    def _vm_command(self) -> list[str]:
        user = ["--user", "--map-root-user"] if os.geteuid() else []
        return [
            "unshare", *user, "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private",
            *_MODULE, "sulla_trio.demo.vm", str(self.directory),
        ]  # fmt: skip

    def _start_host_switch(self) -> subprocess.Popen[bytes]:
        arguments = [
            "--logfile", f"{self.directory}/host-switch.log", "--listen", self.api, "--state", f"{self.directory}/state.json",
            "--vm", f"unix://{self.directory}/handshake", "--data", f"unix://{self.directory}/data",
        ]  # fmt: skip
        for forward in self._forwards:
            arguments += ["-port-forward", forward]
        return subprocess.Popen(
            [str(PROGRAMS / "host-switch"), *arguments], start_new_session=True, preexec_fn=_die_with_us
        )

    def wait_for_guest(self) -> float:
        """Until the guest's PID 1 runs and eth0 has its lease; seconds since the start.

        Raises:
            DemoFailed: it does not come, or a daemon has ended.
        """
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if self._unshare.poll() is not None:
                raise DemoFailed(f"the VM's namespaces cannot be had (status {self._unshare.returncode})")
            if self._host_switch.poll() is not None:
                raise DemoFailed(
                    f"host-switch ended with status {self._host_switch.returncode}: {self.last_line('host-switch')}"
                )
            if self.in_guest("address").get("address") == GUEST:
                return time.perf_counter() - self.started
            time.sleep(0.05)
        logs = "; ".join(f"{name}: {self.last_line(name)}" for name in ("host-switch", "network-setup", "vm-switch"))
        raise DemoFailed(f"no lease within {PATIENCE:.0f} s ({logs})")

    def last_line(self, name: str) -> str:
        """What a daemon's log says last."""
        try:
            return (self.directory / f"{name}.log").read_text().splitlines()[-1]
        except (OSError, IndexError):
            return "no log"

    # Inside

    def enter_vm(self) -> list[str]:
        """The words before a command that is to run in the VM's default namespaces."""
        pid = self._unshare.pid
        while not (children := _children(pid)):
            if self._unshare.poll() is not None:
                raise DemoFailed(f"the VM has ended, with status {self._unshare.returncode}")
            time.sleep(0.01)
        user = ["--user", "--preserve-credentials"] if os.geteuid() else []
        return ["nsenter", "--target", children[0], *user, "--net", "--mount", "--pid"]

    def enter_guest(self) -> list[str]:
        """The same for the guest's, as wsl-exec enters them."""
        return [*self.enter_vm(), *_MODULE, "sulla_trio.demo.inside", "enter"]

    def in_vm(self, action: str, **arguments: Any) -> dict[str, Any]:
        """The outcome of an action of `inside` in the VM's default namespaces; ``error`` where it failed."""
        return _outcome([*self.enter_vm(), *_MODULE, "sulla_trio.demo.inside", action, json.dumps(arguments)])

    def in_guest(self, action: str, *, enter: tuple[str, ...] = (), **arguments: Any) -> dict[str, Any]:
        """The same in the guest's; `enter` goes before it there."""
        command = [*enter, *_MODULE, "sulla_trio.demo.inside", action, json.dumps(arguments)]
        return _outcome([*self.enter_guest(), *command])

    # Faults

    def kill_host_switch(self) -> None:
        """kill -9, and a new one."""
        self._host_switch.kill()
        self._host_switch.wait()
        self._host_switch = self._start_host_switch()

    def signal_inside(self, comm: str, number: int) -> None:
        """Send a signal to the VM's process of that name."""
        script = f"kill -{number} $(grep -lx {comm} /proc/[0-9]*/comm | cut -d/ -f3)"
        subprocess.run([*self.enter_vm(), "sh", "-c", script], check=True, timeout=PATIENCE)

    def close(self) -> None:
        """End everything; what a daemon has made goes with it."""
        if self._unshare.stdin is not None:
            self._unshare.stdin.close()
        self._host_switch.terminate()
        for child in (self._unshare, self._host_switch):
            try:
                child.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _children(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has ended
        return []


def _die_with_us() -> None:
    process.die_with_parent(signal.SIGTERM)


def _outcome(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=4 * PATIENCE, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"error": lines[-1] if lines else f"status {done.returncode}"}
    found: dict[str, Any] = json.loads(done.stdout)
    return found


class Steps:
    """What is shown, in its order."""

    def __init__(self, daemons: FourDaemons, host: HostSide, report: Report) -> None:
        self._daemons = daemons
        self._host = host
        self._report = report
        (self._published, self._local) = free_ports(2)
        self._engine: subprocess.Popen[str] | None = None
        self._container = ""

    def run(self, ports: dict[str, Any]) -> None:
        step = self._report.step
        step("PID 1 of the guest", self.first_process)
        self.guest_steps(ports)
        step("a container in the guest", self.start_container)
        step("container: out, hash equal", self.container_downloads)
        step("guest agent publishes", self.publish)
        step("host reaches the container", lambda: self.reach_from_host("tcp"))
        step("... over UDP", lambda: self.reach_from_host("udp"))
        step("another distro, by wsl-proxy", lambda: self.reach_from_distro("tcp"))
        step("... over UDP", lambda: self.reach_from_distro("udp"))
        step("another distro, by route", self.distro_downloads)
        step("events of wsl-proxy", self.show_proxy_events)
        step("host-switch killed", self.host_switch_killed)
        step("vm-switch killed", self.vm_switch_killed)
        step("guest agent withdraws", self.withdraw)
        step("network-setup told to end", self.end_network_setup)

    def first_process(self) -> str:
        found = self._daemons.in_vm("describe_init")
        expect(found.get("pid_inside") == 1, found)
        expect(found["own_namespaces"] == ["net", "pid", "mnt"], found)
        expect({"eth0", "lo", "veth-rd-ns"} <= set(found["interfaces"]), found)
        return f"/sbin/init, own net, pid and mount namespaces, {', '.join(sorted(found['interfaces']))}"

    def guest_steps(self, ports: dict[str, Any]) -> None:
        """The steps of the guest itself, which print their own lines."""
        command = [*self._daemons.enter_guest(), *_MODULE, "sulla_trio.demo.guest", json.dumps(ports)]
        status = subprocess.run(command, check=False).returncode
        self._report.failed += status != 0

    # The container, and who reaches it

    def start_container(self) -> str:
        command = [*self._daemons.enter_guest(), *_MODULE, "sulla_trio.demo.container", str(self._published)]
        self._engine = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._engine.stdout is not None
        self._container, _, how = self._engine.stdout.readline().strip().partition(" ")
        expect(self._container, "the container did not start")
        return f"172.30.0.2 behind a bridge, {how}"

    def container_downloads(self) -> str:
        enter = ("nsenter", "-t", self._container, "-n")
        return self._equal(self._daemons.in_guest("download", enter=enter, port=self._host.server_address[1]))

    def _equal(self, found: dict[str, Any]) -> str:
        expect(found.get("sha256") == self._host.sha256, found)
        return f"{found['size'] >> 20} MiB, sha256 equal, {found['size'] * 8 / found['seconds'] / 1e9:.2f} Gbit/s"

    def publish(self) -> str:
        found = self._publish()
        expect(found.get("statuses") == {"tcp": "200", "udp": "200"} and found["wsl_proxy"] == "", found)
        return f"host 127.0.0.1:{self._local}, every distro 0.0.0.0:{self._published}, TCP and UDP"

    def _publish(self, *, remove: bool = False) -> dict[str, Any]:
        return self._daemons.in_guest(
            "publish", port=self._published, container_port=CONTAINER_PORT, local=self._local, remove=remove
        )

    def reach_from_host(self, protocol: str) -> str:
        from sulla_trio.demo.inside import reach

        return self._container_said(reach("127.0.0.1", self._local, "host", protocol), "host")

    def reach_from_distro(self, protocol: str) -> str:
        found = self._daemons.in_vm(
            "reach", address="127.0.0.1", port=self._published, text="distro", protocol=protocol
        )
        return self._container_said(found, "distro")

    def _container_said(self, found: dict[str, Any], text: str) -> str:
        expect(found.get("reply") == f"container 172.30.0.2: {text}", found)
        return f"{found['reply']!r} in {found['ms']:.1f} ms"

    def distro_downloads(self) -> str:
        found = self._daemons.in_vm("route_and_download", port=self._host.server_address[1])
        return f"{HOST} through {PEER}: {self._equal(found)}"

    def show_proxy_events(self) -> str:
        url = f"unix://{self._daemons.directory}/wsl-proxy-events.sock"
        with subprocess.Popen(
            [str(PROGRAMS / "sulla"), "events", "--api", url, "--json", "--since", "0"],
            stdout=subprocess.PIPE,
            text=True,
        ) as watcher:
            assert watcher.stdout is not None
            seen: list[dict[str, Any]] = []
            timer = threading.Timer(PATIENCE, watcher.kill)
            timer.start()
            for line in watcher.stdout:
                seen.append(json.loads(line))
                if seen[-1]["type"] == "forward.closed":
                    break
            timer.cancel()
            watcher.terminate()
        types = [event["type"] for event in seen]
        wanted = ["forward.added", "forward.opened", "forward.closed"]
        expect([name for name in dict.fromkeys(types) if name in wanted] == wanted, types)
        expect({event.get("source") for event in seen if event["type"] == "forward.added"} == {"wsl-proxy"}, seen)
        return f"{len(seen)}, {', '.join(wanted)} among them"

    # Faults, and the end

    def host_switch_killed(self) -> str:
        before = self._daemons.in_guest("address")
        self._wait_until_kept()
        started = time.perf_counter()
        self._daemons.kill_host_switch()
        answer = self._until_reached()
        took = time.perf_counter() - started
        after = self._daemons.in_guest("address")
        expect(before == after, f"{before} before, {after} after")
        return f"{answer} {took:.1f} s later; eth0, its address, the forwards are as they were"

    def _wait_until_kept(self) -> None:
        """Until the state file has both forwards: it is written once a second at most, and a kill forgets what is not there."""
        deadline = time.monotonic() + PATIENCE
        path = self._daemons.directory / "state.json"
        while path.read_text().count(f'"127.0.0.1:{self._local}"') < 2:
            expect(time.monotonic() < deadline, f"{path} does not name both forwards of 127.0.0.1:{self._local}")
            time.sleep(0.05)

    def vm_switch_killed(self) -> str:
        started = time.perf_counter()
        self._daemons.signal_inside("vm-switch", signal.SIGKILL)
        answer = self._until_reached()
        return f"{answer} {time.perf_counter() - started:.1f} s later"

    def _until_reached(self) -> str:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return self.reach_from_host("tcp").partition(" in ")[0]
            except Exception:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def withdraw(self) -> str:
        found = self._publish(remove=True)
        expect(found.get("statuses") == {"tcp": "200", "udp": "200"}, found)
        from sulla_trio.demo.inside import reach

        here = reach("127.0.0.1", self._local, "gone")
        there = self._daemons.in_vm("reach", address="127.0.0.1", port=self._published, text="gone")
        expect(here.get("error") == there.get("error") == "Connection refused", f"{here}, {there}")
        return "refused on the host and in the other distro"

    def end_network_setup(self) -> str:
        self._daemons.signal_inside("network-setup", signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE
        started = time.perf_counter()
        while time.monotonic() < deadline:
            links = self._daemons.in_vm("links")
            if links.get("links") == ["lo"]:
                return f"veth pair, namespaces and processes gone in {time.perf_counter() - started:.1f} s"
            time.sleep(0.1)
        expect(False, links)
        return ""

    def close(self) -> None:
        if self._engine is not None:
            self._engine.kill()
            self._engine.wait()
            if self._engine.stdout is not None:
                self._engine.stdout.close()


def check_programs() -> None:
    """Raises DemoFailed naming what is missing."""
    for program in ("unshare", "nsenter"):
        if shutil.which(program) is None:
            raise DemoFailed(f"{program} is missing: it is part of util-linux")


def demo(*, size: int, stay: bool) -> int:
    """Run it all; the exit status. With `stay`, a shell in the guest afterwards, everything up."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    report = Report()
    directory = Path(tempfile.mkdtemp(prefix="sulla-demo-"))
    started = time.monotonic()
    daemons: FourDaemons | None = None
    steps: Steps | None = None
    host = HostSide(size, f"unix://{directory}/api.sock", report)
    threading.Thread(target=host.serve_forever, daemon=True).start()
    try:
        check_programs()
        static_tcp, static_udp, exposed, closed, guest_port = free_ports(5)
        host.guest_port = guest_port
        forwards = [f"127.0.0.1:{static_tcp}={GUEST}:{guest_port}", f"udp:127.0.0.1:{static_udp}={GUEST}:{guest_port}"]
        daemons = FourDaemons(directory, forwards)
        took = daemons.wait_for_guest()
        report.step("four daemons", lambda: f"handshake, namespace, veth pair, lease, init: {took:.2f} s")
        if stay:
            status = subprocess.run(
                [*daemons.enter_guest(), os.environ.get("SHELL", "/bin/sh")], check=False
            ).returncode
            return status
        steps = Steps(daemons, host, report)
        steps.run(
            {
                "http": host.server_address[1], "tail": host.tail_port, "udp": host.udp_port, "closed": closed,
                "static_tcp": static_tcp, "static_udp": static_udp, "exposed": exposed, "guest": guest_port,
                "size": size, "sha256": host.sha256, "mtu": 1500,
            }
        )  # fmt: skip
    except DemoFailed as error:
        report.failed += 1
        print(f"FAILED  {error}")
    finally:
        if steps is not None:
            steps.close()
        if daemons is not None:
            daemons.close()
        host.close()
        shutil.rmtree(directory, ignore_errors=True)
    print(f"{'all of it worked' if not report.failed else 'NOT all of it worked'}, {time.monotonic() - started:.0f} s")
    return 1 if report.failed else 0
