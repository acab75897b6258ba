"""vm-switch's argv, and what its log tells of its end. (The process itself: e2e/test_network_setup.py.)"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sulla_trio.daemons.setup_vm_switch import VmSwitch, VmSwitchCommand
from sulla_trio.link import control
from sulla_trio.link.child import Inherited, spawn
from sulla_trio.link.endpoint import Endpoint

ALWAYS = ["/vm", "-tap-interface", "eth0", "-subnet", "192.168.127.0/24", "-tap-mac-address", "5a:94:ef:e4:0c:ee"]


@pytest.mark.parametrize(
    ("command", "tail"),
    [
        (VmSwitchCommand("/vm"), ["-dhcp-script", ""]),
        (VmSwitchCommand("/vm", dhcp_script="/s"), ["-dhcp-script", "/s"]),
        (
            VmSwitchCommand("/vm", logfile="/a b", debug=True, trace_packets=True),
            ["-dhcp-script", "", "-logfile", "/a b", "-debug", "-trace-packets"],
        ),
        (VmSwitchCommand("/vm", logfile_append=True), ["-dhcp-script", "", "-logfile-append"]),
    ],
)
def test_arguments(command: VmSwitchCommand, tail: list[str]) -> None:
    assert command.arguments() == [*ALWAYS, *tail]


class Fake:
    """A `VmSwitch` round a process that is no vm-switch, and the other ends of what it holds."""

    def __init__(self, log: Path, script: str) -> None:
        import socket

        ours, self.vm_switch_end = control.socket_pair()
        link, self.host_end = socket.socketpair()
        self.host_end.setblocking(False)
        child = spawn(["/bin/sh", "-c", script], Inherited.current())
        self.vm_switch = VmSwitch(child, ours, Endpoint(link, "test"), str(log))

    async def close(self) -> None:
        await self.vm_switch.close()
        self.vm_switch_end.close()
        self.host_end.close()


async def test_words_it_says_before_it_ends_are_heard(tmp_path: Path) -> None:
    fake = Fake(tmp_path / "log", "exit 3")
    control.send(fake.vm_switch_end, control.UP)
    control.send(fake.vm_switch_end, control.LOST, "end of stream")
    assert await fake.vm_switch.run() == 3
    assert fake.vm_switch.has_served
    assert fake.vm_switch.lost.is_set()
    assert fake.host_end.recv(1) == b"", "our duplicate keeps the connection"
    await fake.close()


async def test_without_a_word_it_has_not_served(tmp_path: Path) -> None:
    fake = Fake(tmp_path / "log", "kill -9 $$")
    fake.vm_switch_end.send(b"nonsense")
    status = await fake.vm_switch.run()
    assert fake.vm_switch.explain(status) == "vm-switch exited with error: signal: killed"
    assert not fake.vm_switch.has_served
    with pytest.raises(BlockingIOError):
        fake.host_end.recv(1)
    await fake.close()
    assert fake.host_end.fileno() == -1


async def test_the_last_error_of_its_log_is_the_reason(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text('level=error msg="of another run"\n')
    os.utime(log, (1, 1))
    fake = Fake(log, "exit 1")
    await fake.vm_switch.run()
    assert fake.vm_switch.explain(1) == "vm-switch exited with error: exit status 1"
    log.write_text('level=info msg=x\nlevel=fatal msg="no \\"tap\\""\nlevel=debug msg="its traceback"\n')
    assert fake.vm_switch.explain(1) == 'vm-switch exited with error: exit status 1: no "tap"'
    await fake.close()


async def test_a_link_for_one_that_is_gone_is_closed(tmp_path: Path) -> None:
    import socket

    fake = Fake(tmp_path / "log", "exit 0")
    fake.vm_switch_end.close()
    link, host_end = socket.socketpair()
    with host_end:
        fake.vm_switch.attach(Endpoint(link, "test"))
        assert host_end.recv(1) == b""
    assert await fake.vm_switch.run() == 0
    await fake.close()
