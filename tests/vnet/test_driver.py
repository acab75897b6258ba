"""Links as switch ports: traffic between guests, ends, bugs that must not end a port, timers."""

from __future__ import annotations

import socket

import pytest
import trio
import trio.testing

from sulla_trio.config import GATEWAY_MAC, network_config
from sulla_trio.link.endpoint import Endpoint
from sulla_trio.services.events import EventLog
from sulla_trio.services.flows import FlowTable
from sulla_trio.vnet.driver import Driver

ONE, TWO = b"\x02\0\0\0\0\1", b"\x02\0\0\0\0\2"


def frame(to: bytes, source: bytes, payload: bytes = b"payload") -> bytes:
    body = to + source + b"\x12\x34" + payload
    return len(body).to_bytes(2, "little") + body


@pytest.fixture
def driver() -> Driver:
    return Driver(network_config(), EventLog(lambda: 0.0), FlowTable(), poison=True, strict=True)


async def read(sock: socket.socket, size: int) -> bytes:
    got = b""
    with trio.fail_after(10):
        while len(got) < size:
            await trio.lowlevel.wait_readable(sock)
            got += sock.recv(65_536)
    return got


async def test_two_guests_with_one_mac_are_one_event(driver: Driver) -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    async with trio.open_nursery() as nursery:
        await nursery.start(driver.run)
        for number, (inner, _) in enumerate(pairs):
            nursery.start_soon(driver.serve_link, Endpoint(inner, f"vm-{number}"))
            await trio.testing.wait_all_tasks_blocked()
        for outer in [outer for _, outer in pairs] * 3:
            outer.send(frame(GATEWAY_MAC, ONE))
            await trio.testing.wait_all_tasks_blocked(0.005)
        (told,) = [event for event in driver.events.since(0) if event["type"] == "switch.duplicate_mac"]
        assert (told["mac"], told["ports"], told["peers"]) == ("02:00:00:00:00:01", [0, 1], ["vm-0", "vm-1"])
        nursery.cancel_scope.cancel()
    for _, outer in pairs:
        outer.close()


async def test_two_guests_talk_through_the_switch(driver: Driver) -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    for _, outer in pairs:
        outer.setblocking(False)
    async with trio.open_nursery() as nursery:
        await nursery.start(driver.run)
        for inner, _ in pairs:
            nursery.start_soon(driver.serve_link, Endpoint(inner, "guest"))
            await trio.testing.wait_all_tasks_blocked()
        one, two = (outer for _, outer in pairs)
        hello = frame(b"\xff" * 6, ONE)
        one.send(hello)
        assert await read(two, len(hello)) == hello
        answer = frame(ONE, TWO, b"x" * 1400)
        two.send(answer[:100])
        await trio.testing.wait_all_tasks_blocked()
        two.send(answer[100:])
        assert await read(one, len(answer)) == answer
        assert driver.cam() == {"02:00:00:00:00:01": 0, "02:00:00:00:00:02": 1}
        one.close()
        with trio.fail_after(10):
            while len(driver.ports) > 1:
                await trio.sleep(0.001)
        assert driver.cam() == {"02:00:00:00:00:02": 1}
        assert driver.counters.bytes_received == len(hello) + len(answer) - 4
        nursery.cancel_scope.cancel()
    two.close()
    assert [event["type"] for event in driver.events.since(0)].count("link.down") == 2


async def test_a_cut_in_a_frame_is_a_failure_and_an_orderly_end_is_not(driver: Driver) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(driver.run)
        for data, failed in ((frame(GATEWAY_MAC, ONE), False), (frame(GATEWAY_MAC, ONE)[:-1], True)):
            inner, outer = socket.socketpair()
            outer.sendall(data)
            outer.close()
            failure = await driver.serve_link(Endpoint(inner, "guest"))
            assert (failure is not None) == failed
        nursery.cancel_scope.cancel()


async def test_short_and_zero_frames_are_counted_and_the_link_lives(driver: Driver) -> None:
    inner, outer = socket.socketpair()
    outer.sendall(b"\0\0" + b"\x05\0short" + frame(GATEWAY_MAC, ONE))
    outer.shutdown(socket.SHUT_WR)
    async with trio.open_nursery() as nursery:
        await nursery.start(driver.run)
        assert await driver.serve_link(Endpoint(inner, "guest")) is None
        nursery.cancel_scope.cancel()
    outer.close()
    assert driver.counters.drops["frame_short"] == 2
    assert driver.counters.frames_received == 1


async def test_a_bug_in_a_task_is_counted_and_the_port_lives(caplog: pytest.LogCaptureFixture) -> None:
    driver = Driver(network_config(), EventLog(lambda: 0.0), FlowTable())
    inner, outer = socket.socketpair()

    async def bug() -> None:
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError("ours")

    async with trio.open_nursery() as nursery:
        await nursery.start(driver.run)
        nursery.start_soon(driver.serve_link, Endpoint(inner, "guest"))
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(3):
            assert driver.spawn(0, bug)
        await trio.testing.wait_all_tasks_blocked()
        assert len(driver.ports) == 1
        nursery.cancel_scope.cancel()
    outer.close()
    assert driver.counters.drops["internal_error"] == 3
    assert len([record for record in caplog.records if "internal error" in record.message]) == 1
    assert not driver.spawn(0, bug), "the port is gone"


async def test_timer_is_armed_by_the_pump(driver: Driver, autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(driver.run)
        connection = driver.stack.connect(bytes((192, 168, 127, 9)), 80, driver.now())
        driver.pump()
        await trio.sleep(10)  # three ARP requests without an answer
        assert connection.error == "timeout"
        assert driver.stack.connections == {}
        nursery.cancel_scope.cancel()
