"""Links that take little, or nothing: both directions move every byte, and a stalled link repeats and loses nothing."""

from __future__ import annotations

import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from sulla_trio.config import network_config
from sulla_trio.link.endpoint import Buffer, Endpoint
from sulla_trio.netstack.events import ConnectionRequest
from sulla_trio.netstack.tcp_state import State
from sulla_trio.services.events import EventLog
from sulla_trio.services.flows import FlowTable
from sulla_trio.vnet.driver import Driver
from sulla_trio.vnet.sockets import TcpListener, TcpStream, connect_tcp
from sulla_trio.wire import tcp
from tests.support.stack_guest import StackGuest, tcp_of
from tests.support.two_drivers import GUEST, guest_config

SIZE = 1 << 20


class TinyBuffers(Endpoint):
    """4 KiB of kernel buffer each way (the kernel doubles it and lays its own overhead on top)."""

    __slots__ = ()

    def __init__(self, sock: socket.socket, name: str) -> None:
        super().__init__(sock, name)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, 4096)


class SmallBites(Endpoint):
    """Takes 1 byte to 16 KiB per send, as Hyper-V sockets do, and nothing every third time."""

    __slots__ = ("_random",)

    def __init__(self, sock: socket.socket, name: str) -> None:
        super().__init__(sock, name)
        self._random = random.Random(name)

    def send_gathered(self, buffers: list[Buffer]) -> int:
        if not self._random.randrange(3):
            raise BlockingIOError
        size = self._random.randint(1, 16 << 10)
        return self._socket.send(b"".join(buffers)[:size])


@asynccontextmanager
async def two_drivers(kind: type[Endpoint], mtu: int) -> AsyncIterator[tuple[Driver, Driver]]:
    """The gateway's driver and the guest's, joined by a stream of that kind."""
    gateway = Driver(network_config(mtu=mtu), EventLog(lambda: 0.0), FlowTable(), poison=True, strict=True)
    guest = Driver(guest_config(mtu), EventLog(lambda: 0.0), FlowTable(), poison=True, strict=True)
    left, right = socket.socketpair()
    async with trio.open_nursery() as nursery:
        await nursery.start(gateway.run)
        await nursery.start(guest.run)
        nursery.start_soon(gateway.serve_link, kind(left, "gateway"))
        nursery.start_soon(guest.serve_link, kind(right, "guest"))
        await trio.testing.wait_all_tasks_blocked()
        yield gateway, guest
        nursery.cancel_scope.cancel()


async def both_ways(stream: TcpStream, data: bytes) -> bytes:
    """Send `data` and a FIN while receiving all that comes."""
    got = bytearray()

    async def send() -> None:
        await stream.send_all(data)
        await stream.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        async for piece in stream:
            got += piece
    return bytes(got)


@pytest.mark.parametrize("mtu", [1500, 65_000])
@pytest.mark.parametrize("kind", [TinyBuffers, SmallBites])
async def test_both_directions_saturated(kind: type[Endpoint], mtu: int) -> None:
    """Several streams at once, each full in both directions, over links that are full all the time."""
    results: list[tuple[bytes, bytes]] = []
    held = {"gateway": 0, "guest": 0}

    def count_holds(name: str, driver: Driver) -> None:
        hold = driver.stack.hold

        def counted(port: int) -> None:
            held[name] += 1
            hold(port)

        driver.stack.hold = counted  # type: ignore[method-assign]

    async def talk(stream: TcpStream, seed: int, name: str) -> None:
        mine = random.Random(f"{name} {seed}").randbytes(SIZE)
        theirs = random.Random(f"{'guest' if name == 'gateway' else 'gateway'} {seed}").randbytes(SIZE)
        results.append((await both_ways(stream, mine), theirs))

    with trio.fail_after(120):
        async with two_drivers(kind, mtu) as (gateway, guest):
            count_holds("gateway", gateway)
            count_holds("guest", guest)
            listener = TcpListener(guest, GUEST, 80)
            guest.on_request = listener.requested
            async with trio.open_nursery() as nursery:
                for seed in range(4):
                    stream = await connect_tcp(gateway, GUEST, 80)
                    nursery.start_soon(talk, stream, seed, "gateway")
                    nursery.start_soon(talk, await listener.accept(), seed, "guest")
            assert len(results) == 8
            assert all(got == wanted for got, wanted in results)
            for driver in (gateway, guest):
                assert "link_queue_full" not in driver.counters.drops
                assert driver.ports[0].dropped == 0
            assert min(held.values()) > 5, "the links were full"


class StalledGuest(StackGuest):
    """A guest that speaks raw frames over a socket which it reads only when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = socket.socketpair()
        self.outer.setblocking(False)
        self._buffer = b""

    def put(self, frame: bytes) -> None:
        self.outer.send(len(frame).to_bytes(2, "little") + frame)

    def take(self) -> list[bytes]:
        """The whole frames that have come."""
        try:
            while data := self.outer.recv(1 << 20):
                self._buffer += data
        except BlockingIOError:
            pass
        frames = []
        while len(self._buffer) >= 2:
            length = int.from_bytes(self._buffer[:2], "little")
            if len(self._buffer) < 2 + length:
                break
            frames.append(self._buffer[2 : 2 + length])
            self._buffer = self._buffer[2 + length :]
        return frames

    async def take_all(self) -> list[bytes]:
        """Read until nothing more comes."""
        frames = []
        while True:
            await trio.testing.wait_all_tasks_blocked()
            more = self.take()
            if not more:
                return frames
            frames += more


async def test_a_stalled_link_repeats_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """An hour in which nobody reads: what is queued stays as it is; then every byte comes, once."""
    driver = Driver(network_config(), EventLog(lambda: 0.0), FlowTable(), poison=True, strict=True)

    def accept(request: ConnectionRequest) -> None:
        driver.stack.accept(request, driver.now())

    driver.on_request = accept
    guest = StalledGuest()
    async with trio.open_nursery() as nursery:
        await nursery.start(driver.run)
        nursery.start_soon(driver.serve_link, TinyBuffers(guest.inner, "stalled"))
        options = tcp.emit_options(mss=1460, window_scale=7)
        ports = range(5000, 5020)
        for port in ports:
            guest.put(guest.tcp(tcp.SYN, source_port=port, options=options))
        isns = {segment.destination_port: segment.seq for segment in map(tcp_of, await guest.take_all())}
        assert list(isns) == list(ports)
        for port, isn in isns.items():
            guest.put(guest.tcp(tcp.ACK, seq=101, ack=isn + 1 & 0xFFFFFFFF, source_port=port))
        await trio.testing.wait_all_tasks_blocked()
        connections = list(driver.stack.connections.values())
        assert {connection.state for connection in connections} == {State.ESTABLISHED}

        data = random.Random(1).randbytes(14_600)
        for connection in connections:
            connection.send(data, driver.now())
        driver.pump()
        (port_,) = driver.ports
        assert port_.backlogged
        queued = port_._writer.queued
        assert queued > 0
        for at in range(20):  # and the guest goes on sending, without reading
            for port in ports:
                seq, ack = 101 + 1000 * at, isns[port] + 1 & 0xFFFFFFFF
                guest.put(guest.tcp(tcp.ACK, bytes(1000), seq=seq, ack=ack, source_port=port))
            await trio.testing.wait_all_tasks_blocked()
        for _ in range(60):
            await trio.sleep(60)
            assert port_._writer.queued == queued
        counters = driver.counters
        assert counters.tcp_retransmits == counters.tcp_timeouts == port_.dropped == 0

        got = {port: bytearray() for port in ports}
        newest = dict.fromkeys(ports, 0)
        acknowledgments = 0
        for frame in await guest.take_all():
            segment = tcp_of(frame)
            port = segment.destination_port
            payload = frame[segment.payload_offset :]
            if payload:
                assert (segment.seq - isns[port] - 1) & 0xFFFFFFFF == len(got[port])
                got[port] += payload
            acknowledgments += not payload
            newest[port] = segment.ack
        assert all(bytes(each) == data for each in got.values())
        assert set(newest.values()) == {101 + 20_000}
        assert acknowledgments <= len(ports), "only the newest of each connection"
        nursery.cancel_scope.cancel()
    guest.outer.close()
