"""The lease keeper on a virtual clock, against a server written by hand; the interface is a list of what was done to it."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from sulla_trio.config import format_ip
from sulla_trio.daemons import vm_lease
from sulla_trio.daemons.vm_lease import SHORTEST_REPLY, LeaseKeeper, is_dhcp_reply
from sulla_trio.services.dhcp_client import LeaseAcquired
from tests.support.guest_peer import ACK, DISCOVER, GUEST_IP, REQUEST, GuestPeer

MAC = bytes.fromhex("5a94efe40cee")
NAK = 6


class FakeInterface:
    """Records what is asked of it; refuses as often as `refusals` says."""

    name = "eth0"

    def __init__(self) -> None:
        self.done: list[str] = []
        self.prepared = 0
        self.refusals = 0

    async def prepare(self) -> None:
        await trio.lowlevel.checkpoint()
        self.prepared += 1

    async def configure(self, lease: LeaseAcquired) -> None:
        await trio.lowlevel.checkpoint()
        if self.refusals:
            self.refusals -= 1
            raise OSError(100, "Network is down")
        self.done.append(f"{format_ip(lease.ip)}/{lease.prefix} mtu {lease.mtu}")

    async def withdraw(self) -> None:
        await trio.lowlevel.checkpoint()
        self.done.append("withdraw")


class Lab:
    def __init__(self, subnet: str | None = None, resolv_conf: str | None = None, ready_fd: int | None = None) -> None:
        self.interface = FakeInterface()
        self.peer = GuestPeer(socket.socket())
        self.peer.connection.close()
        self.up = True
        self.refusing = False
        self.frames: list[bytes] = []
        self.ends: list[str] = []
        self.keeper = LeaseKeeper(
            self.interface,
            MAC,
            subnet=None if subnet is None else ipaddress.IPv4Network(subnet),
            resolv_conf=resolv_conf,
            ready_fd=ready_fd,
            send=self.send,
            end=self.ends.append,
        )

    def send(self, frame: bytes) -> None:
        self.frames.append(frame)
        for answer in self.peer.answers(frame) if self.up else ():
            if self.refusing:
                answer = answer.replace(bytes((53, 1, ACK)), bytes((53, 1, NAK)))
            view = memoryview(answer)
            assert len(view) >= SHORTEST_REPLY
            assert is_dhcp_reply(view)
            assert self.keeper.receive(view)


@contextlib.asynccontextmanager
async def keeping(make: Callable[[], Lab] = Lab, *, silent: bool = False) -> AsyncIterator[Lab]:
    """A keeper that has got its lease, or with `silent` has begun to ask."""
    lab = make()
    lab.up = not silent
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lab.keeper.run)
        await trio.sleep(0.01)
        yield lab
        nursery.cancel_scope.cancel()


def kinds(frames: list[bytes]) -> list[int]:
    return [GuestPeer.dhcp_type(frame) for frame in frames]


async def test_a_lease_is_applied_once_and_renewed(autojump_clock: MockClock) -> None:
    async with keeping() as lab:
        assert lab.interface.done == ["192.168.127.2/24 mtu 1500"]
        assert lab.interface.prepared == 1
        assert lab.frames[0][:14] == b"\xff" * 6 + MAC + b"\x08\x00"
        assert lab.frames[0][26:34] == bytes(4) + b"\xff" * 4
        await trio.sleep(1801)
        assert lab.peer.dhcp_types == [DISCOVER, REQUEST, REQUEST]
        assert lab.frames[2][26:30] == GUEST_IP
        assert len(lab.interface.done) == 1


async def test_a_lease_with_something_new_is_applied_again(autojump_clock: MockClock) -> None:
    async with keeping() as lab:
        lab.peer.mtu = 1400
        await trio.sleep(1801)
        assert lab.interface.done == ["192.168.127.2/24 mtu 1500", "192.168.127.2/24 mtu 1400"]


async def test_an_expired_lease_is_withdrawn(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    async with keeping() as lab:
        lab.up = False
        await trio.sleep(3601)
        assert lab.interface.done[1:] == ["withdraw"]
        lab.up = True
        await trio.sleep(20)
        assert lab.interface.done[2:] == ["192.168.127.2/24 mtu 1500"]
        assert lab.frames[-1][26:30] == bytes(4)  # from nobody again
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == ["DHCP lease lost: expired"]


async def test_reconfirming_is_a_question_at_once(autojump_clock: MockClock) -> None:
    async with keeping() as lab:
        await trio.sleep(100)
        lab.keeper.reconfirm()
        await trio.sleep(0.01)
        assert kinds(lab.frames)[2:] == [REQUEST]
        assert lab.frames[2][42 + 12 : 42 + 16] == GUEST_IP  # ciaddr
        assert lab.interface.done[1:] == []


async def test_reconfirming_where_it_is_refused_is_a_new_lease(autojump_clock: MockClock) -> None:
    async with keeping() as lab:
        lab.refusing = True
        lab.keeper.reconfirm()
        await trio.sleep(0.01)
        assert lab.interface.done[1:] == ["withdraw"]
        lab.refusing = False
        await trio.sleep(2)
        assert kinds(lab.frames)[2:] == [REQUEST, DISCOVER, REQUEST]
        assert lab.interface.done[2:] == ["192.168.127.2/24 mtu 1500"]


async def test_reconfirming_without_a_lease_waits_for_no_back_off(autojump_clock: MockClock) -> None:
    async with keeping(silent=True) as lab:
        lab.keeper.reconfirm()
        await trio.sleep(100)
        asked, lab.up = len(lab.frames), True
        lab.keeper.reconfirm()
        await trio.sleep(0.01)
        assert kinds(lab.frames)[asked:] == [DISCOVER, REQUEST]
        assert len(lab.interface.done) == 1


async def test_reconfirming_before_it_runs_is_nothing() -> None:
    lab = Lab()
    lab.keeper.reconfirm()
    assert lab.frames == []


async def test_a_lease_of_another_subnet_is_one_warning_and_used(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with keeping(lambda: Lab(subnet="10.1.0.0/16")) as lab:
        lab.peer.mtu = 1400
        await trio.sleep(1801)
        lab.peer.mtu = 1300
        await trio.sleep(1801)
        assert len(lab.interface.done) == 3
        assert GuestPeer.option(lab.frames[0], 60) == b"sulla-vm-switch subnet=10.1.0.0/16"
    (warning,) = (r.getMessage() for r in caplog.records if r.levelno == logging.WARNING)
    for part in ("192.168.127.0/24", "10.1.0.0/16", "-subnet"):
        assert part in warning


@pytest.mark.parametrize("subnet", ["192.168.127.0/24", None])
async def test_a_lease_of_the_subnet_is_no_warning(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, subnet: str | None
) -> None:
    async with keeping(lambda: Lab(subnet=subnet)):
        pass
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_ready_is_told_when_the_address_is_there(autojump_clock: MockClock, tmp_path: Path) -> None:
    read, write = os.pipe()
    path = tmp_path / "resolv.conf"
    async with keeping(lambda: Lab(ready_fd=write, resolv_conf=str(path))) as lab:
        assert lab.interface.done == ["192.168.127.2/24 mtu 1500"]
        assert os.read(read, 100) == b"ready\n"
        assert os.read(read, 100) == b""  # closed
        assert path.read_text() == "nameserver 192.168.127.1\n"
    os.close(read)


async def test_nobody_waits_for_ready_any_more(autojump_clock: MockClock) -> None:
    read, write = os.pipe()
    os.close(read)
    async with keeping(lambda: Lab(ready_fd=write)) as lab:
        assert lab.ends == []
    with pytest.raises(OSError):
        os.fstat(write)


async def test_a_first_lease_that_cannot_be_applied_is_the_end_for_who_waits(autojump_clock: MockClock) -> None:
    read, write = os.pipe()

    def make() -> Lab:
        lab = Lab(ready_fd=write)
        lab.interface.refusals = 1
        return lab

    async with keeping(make) as lab:
        assert lab.ends == ["dhcp error: cannot set up eth0: network is down"]
    os.close(read)
    os.close(write)


async def test_a_lease_that_cannot_be_applied_is_tried_again(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    def make() -> Lab:
        lab = Lab()
        lab.interface.refusals = 1
        return lab

    async with keeping(make) as lab:
        assert [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR] == [
            "dhcp error: cannot set up eth0: network is down"
        ]
        await trio.sleep(1801)
        assert lab.interface.done == ["192.168.127.2/24 mtu 1500"]
        assert lab.ends == []


async def test_a_resolv_conf_that_cannot_be_written_costs_nothing_else(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with keeping(lambda: Lab(resolv_conf="/nowhere/resolv.conf")) as lab:
        assert len(lab.interface.done) == 1
    assert any("writing /nowhere/resolv.conf failed: no such file" in record.getMessage() for record in caplog.records)


async def test_what_is_the_kernels_is_left_to_it(autojump_clock: MockClock) -> None:
    async with keeping(silent=True) as lab:
        (reply,) = lab.peer.answers(lab.frames[0])
        other = bytearray(reply)
        other[vm_lease._CHADDR] ^= 2
        assert not lab.keeper.receive(memoryview(other))  # another station's
        assert lab.keeper.receive(memoryview(reply))
        await trio.sleep(0.01)
        (ack,) = lab.peer.answers(lab.frames[-1])
        assert lab.keeper.receive(memoryview(ack))
        await trio.sleep(0.01)
        assert len(lab.interface.done) == 1
        assert not lab.keeper.receive(memoryview(ack))  # it has a lease and asked nothing


@pytest.mark.parametrize(
    ("at", "value"), [(12, 0x86), (13, 0x06), (14, 0x46), (20, 0x20), (21, 1), (23, 6), (36, 1), (37, 67)]
)
async def test_other_frames_are_no_replies(autojump_clock: MockClock, at: int, value: int) -> None:
    async with keeping(silent=True) as lab:
        (reply,) = lab.peer.answers(lab.frames[0])
        assert is_dhcp_reply(memoryview(reply))
        frame = bytearray(reply)
        frame[at] = value
        assert not is_dhcp_reply(memoryview(frame))
