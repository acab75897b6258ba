"""Sessions of echoes over scripted paths: what the guest gets, when, from whom; bounds, ways out, and how sessions end."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Network

import pytest
import trio
from trio.testing import MockClock

from sulla_trio.config import network_config, parse_ip
from sulla_trio.forward import outbound_icmp
from sulla_trio.forward.datagram_socket import HostError
from sulla_trio.forward.echo_path import Echo, EchoAnswer
from sulla_trio.forward.outbound_icmp import OutboundIcmp
from sulla_trio.services.policy import may_dial
from sulla_trio.wire import icmp, inet
from tests.support.lone_driver import LoneDriver, lone_driver
from tests.support.stack_guest import REMOTE, icmp_of, ip_of

ROUTER = parse_ip("203.0.113.1")
OTHER = parse_ip("198.51.100.7")


class ScriptedPath:
    """An `EchoPath` that keeps what it was given and answers what the test says."""

    def __init__(self, *, failure: int = 0, closed_way: bool = False) -> None:
        self.sent: list[Echo] = []
        self.closed = False
        self._failure = failure
        self._closed_way = closed_way
        self._say, self._said = trio.open_memory_channel[EchoAnswer](100)

    def send(self, echo: Echo) -> None:
        if self._failure:
            raise OSError(self._failure, os.strerror(self._failure))
        self.sent.append(echo)

    async def run(self, answered: Callable[[EchoAnswer], None]) -> None:
        if self._closed_way:
            raise PermissionError(errno.EACCES, "no")
        async for answer in self._said:
            answered(answer)

    def close(self) -> None:
        self.closed = True

    def reply(self, echo: Echo, payload: bytes | None = None, ttl: int = 60) -> None:
        body = echo.payload if payload is None else payload
        self._say.send_nowait(EchoAnswer(echo.target, echo.sequence, body, ttl, None))

    def error(self, echo: Echo, sender: bytes | None, kind: int, code: int, rest: int = 0) -> None:
        error = HostError((echo.target, 0), sender, kind, code, rest, 60, b"")
        self._say.send_nowait(EchoAnswer(echo.target, echo.sequence, b"", 60, error))


class Lab:
    """`OutboundIcmp` on a lone driver; `paths` are those it has opened."""

    def __init__(self, driver: LoneDriver, make: Callable[[], ScriptedPath]) -> None:
        self.driver = driver
        self.guest = driver.guest
        self.paths: list[ScriptedPath] = []
        self._make = make
        self.outbound = OutboundIcmp(driver, partial(may_dial, driver.network), (self._open,))

    def _open(self) -> ScriptedPath:
        self.paths.append(self._make())
        return self.paths[-1]

    def ping(
        self,
        sequence: int = 1,
        *,
        identifier: int = 0x1234,
        target: bytes = REMOTE,
        payload: bytes = b"ping",
        ttl: int = 64,
    ) -> bytes:
        """The guest sends one request; its frame."""
        message = icmp.emit(icmp.ECHO_REQUEST, 0, identifier << 16 | sequence, payload)
        frame = self.guest.ipv4(target, inet.IPPROTO_ICMP, message, ttl=ttl)
        assert self.guest.send(frame) == []
        for event in self.guest.events():
            self.outbound.requested(event)
        return frame


@asynccontextmanager
async def lab(make: Callable[[], ScriptedPath] = ScriptedPath) -> AsyncIterator[Lab]:
    async with lone_driver() as driver:
        yield Lab(driver, make)


async def test_the_guest_hears_when_the_outside_has_answered(autojump_clock: MockClock) -> None:
    async with lab() as it:
        it.ping(7, payload=b"as sent")
        await trio.sleep(3.0)
        assert await it.driver.frames() == []
        (path,) = it.paths
        assert path.sent == [Echo(REMOTE, 7, b"as sent", 64, True)]
        path.reply(path.sent[0], b"as came back", ttl=57)
        (frame,) = await it.driver.frames()
        header, (message, payload) = ip_of(frame), icmp_of(frame)
        assert (header.source, header.destination, header.ttl) == (REMOTE, it.guest.ip, 56)
        assert (message.type, message.rest, payload) == (icmp.ECHO_REPLY, 0x1234_0007, b"as came back")
        (flow,) = it.driver.flows.live()
        assert (flow.kind, flow.guest, flow.remote) == ("icmp", "192.168.127.2:4660", "93.184.216.34")
        assert (flow.bytes_out, flow.bytes_in) == (7, 12)


async def test_a_session_is_an_identifier_not_a_destination(autojump_clock: MockClock) -> None:
    async with lab() as it:
        it.ping(1)
        it.ping(1, target=OTHER)
        it.ping(1, identifier=0x4321)
        first, second = it.paths
        assert [echo.target for echo in first.sent] == [REMOTE, OTHER]
        first.reply(first.sent[1])
        second.reply(second.sent[0])
        frames = await it.driver.frames()
        assert {(ip_of(frame).source, icmp_of(frame)[0].rest) for frame in frames} == {
            (OTHER, 0x1234_0001),
            (REMOTE, 0x4321_0001),
        }


async def test_a_second_reply_is_for_ping_to_show(autojump_clock: MockClock) -> None:
    async with lab() as it:
        it.ping()
        it.paths[0].reply(it.paths[0].sent[0])
        it.paths[0].reply(it.paths[0].sent[0])
        assert len(await it.driver.frames()) == 2


async def test_nobody_else_is_heard(autojump_clock: MockClock) -> None:
    async with lab() as it:
        it.ping(1)
        (path,) = it.paths
        path.reply(path.sent[0]._replace(target=OTHER))
        path.reply(path.sent[0]._replace(sequence=2))
        assert await it.driver.frames() == []
        assert it.guest.drops == {"icmp_unsolicited": 2}


@pytest.mark.parametrize(
    ("sender", "kind", "code", "rest", "seen"),
    [
        (ROUTER, icmp.TIME_EXCEEDED, 0, 0, ROUTER),
        (ROUTER, icmp.UNREACHABLE, icmp.UNREACHABLE_HOST, 0, ROUTER),
        (ROUTER, icmp.UNREACHABLE, icmp.UNREACHABLE_FRAG_NEEDED, 1400, ROUTER),
        (REMOTE, icmp.UNREACHABLE, icmp.UNREACHABLE_PROTOCOL, 0, REMOTE),
        (None, icmp.UNREACHABLE, icmp.UNREACHABLE_FRAG_NEEDED, 1280, parse_ip("192.168.127.1")),
    ],
)
async def test_errors_quote_the_guests_own_packet(
    sender: bytes | None, kind: int, code: int, rest: int, seen: bytes, autojump_clock: MockClock
) -> None:
    async with lab() as it:
        it.ping(1)
        sent = it.ping(2)
        (path,) = it.paths
        path.error(path.sent[1], sender, kind, code, rest)
        (frame,) = await it.driver.frames()
        message, quoted = icmp_of(frame)
        assert ip_of(frame).source == seen
        assert (message.type, message.code, message.rest) == (kind, code, rest)
        assert quoted == sent[14:42]


async def test_errors_are_limited(autojump_clock: MockClock) -> None:
    async with lab() as it:
        for sequence in range(100):
            it.ping(sequence)
            it.paths[0].error(it.paths[0].sent[-1], ROUTER, icmp.TIME_EXCEEDED, 0)
        assert len(await it.driver.frames()) == 50
        assert it.guest.drops == {"icmp_rate_limited": 50}


@pytest.mark.parametrize("address", [bytes((169, 254, 169, 254)), REMOTE], ids=["never dialled", "deny_out"])
async def test_policy_is_for_echoes_too(address: bytes, autojump_clock: MockClock) -> None:
    network = replace(network_config(), deny_out=(IPv4Network("93.184.0.0/16"),))
    async with lone_driver(network) as driver:
        it = Lab(driver, ScriptedPath)
        it.ping(target=address)
        assert it.paths == []
        assert it.guest.drops == {"icmp_denied": 1}
        (frame,) = await driver.frames()
        assert (ip_of(frame).source, icmp_of(frame)[0].code) == (network.gateway_ip, icmp.UNREACHABLE_ADMIN)


async def test_a_neighbour_is_not_asked_for_outside(autojump_clock: MockClock) -> None:
    async with lab() as it:
        it.ping(target=parse_ip("192.168.127.77"))
        assert await it.driver.frames() == []
        assert it.paths == []


async def test_ttl_and_fragmentation_go_along(autojump_clock: MockClock) -> None:
    async with lab() as it:
        it.ping(ttl=3)
        message = icmp.emit(icmp.ECHO_REQUEST, 0, 0x1234_0002, b"")
        it.guest.send(it.guest.ipv4(REMOTE, inet.IPPROTO_ICMP, message, flags_fragment=0))
        it.outbound.requested(it.guest.events()[0])
        assert [(echo.ttl, echo.dont_fragment) for echo in it.paths[0].sent] == [(3, True), (64, False)]


async def test_a_host_that_cannot_send(autojump_clock: MockClock) -> None:
    async with lab(partial(ScriptedPath, failure=errno.ENETUNREACH)) as it:
        sent = it.ping()
        (frame,) = await it.driver.frames()
        assert ip_of(frame).source == it.driver.network.gateway_ip
        assert (icmp_of(frame)[0].code, icmp_of(frame)[1]) == (icmp.UNREACHABLE_NET, sent[14:42])
        assert it.guest.drops == {"icmp_enetunreach": 1}


async def test_a_full_queue_is_a_lost_packet(autojump_clock: MockClock) -> None:
    async with lab(partial(ScriptedPath, failure=errno.EAGAIN)) as it:
        it.ping()
        assert await it.driver.frames() == []
        assert it.guest.drops == {"icmp_eagain": 1}


# How sessions end


async def test_idle(autojump_clock: MockClock) -> None:
    async with lab() as it:
        it.ping(1)
        await trio.sleep(50.0)
        it.ping(2)
        await trio.sleep(59.0)
        assert [path.closed for path in it.paths] == [False]
        await trio.sleep(2.0)
        assert [path.closed for path in it.paths] == [True]
        (flow,) = it.driver.flows.lately_closed()
        assert flow.reason == "idle"
        it.ping(3)
        assert len(it.paths) == 2


async def test_sessions_are_bounded_the_longest_idle_goes(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr(outbound_icmp, "MAX_SESSIONS", 2)
    async with lab() as it:
        it.ping(1, identifier=1)
        it.ping(1, identifier=2)
        it.ping(2, identifier=1)
        it.ping(1, identifier=3)
        await it.driver.frames()
        assert [path.closed for path in it.paths] == [False, True, False]
        assert [flow.reason for flow in it.driver.flows.lately_closed()] == ["replaced"]


async def test_remembered_echoes_are_bounded(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    monkeypatch.setattr(outbound_icmp, "MAX_ECHOES", 2)
    async with lab() as it:
        for sequence in (1, 2, 3):
            it.ping(sequence)
        (path,) = it.paths
        for echo in path.sent:
            path.reply(echo)
        assert [icmp_of(frame)[0].rest & 0xFFFF for frame in await it.driver.frames()] == [2, 3]


async def test_a_session_dies_with_its_port() -> None:
    async with lab() as it:
        it.ping()
        await it.driver.frames()
    assert it.paths[0].closed
    assert [flow.reason for flow in it.driver.flows.lately_closed()] == ["shutdown"]


async def test_a_port_that_is_gone_opens_nothing() -> None:
    async with lab() as it:
        it.driver.port_gone = True
        it.ping()
        assert it.paths[0].closed
        assert [flow.reason for flow in it.driver.flows.lately_closed()] == ["port_gone"]


# Ways out


def closed(number: int) -> Callable[[], ScriptedPath]:
    def opener() -> ScriptedPath:
        raise OSError(number, os.strerror(number))

    return opener


async def test_the_first_way_that_is_open(autojump_clock: MockClock) -> None:
    async with lone_driver() as driver:
        it = Lab(driver, ScriptedPath)
        it.outbound = OutboundIcmp(
            driver, partial(may_dial, driver.network), (closed(errno.EACCES), closed(errno.EPERM), it._open)
        )
        it.ping()
        assert len(it.paths[0].sent) == 1
        assert driver.told("flow.failed") == []


async def test_no_way_is_silence_and_one_event(autojump_clock: MockClock) -> None:
    async with lone_driver() as driver:
        it = Lab(driver, ScriptedPath)
        openers = (closed(errno.EACCES), closed(errno.EPERM), closed(errno.ENOENT))
        it.outbound = OutboundIcmp(driver, partial(may_dial, driver.network), openers)
        for identifier in (1, 2, 3):
            it.ping(identifier=identifier)
        assert await driver.frames() == []
        (event,) = driver.told("flow.failed")
        assert event["protocol"] == "icmp"
        assert "net.ipv4.ping_group_range" in event["reason"]
        assert it.guest.drops == {"icmp_no_path": 3}
        assert driver.flows.all(0.0) == []


async def test_a_way_that_turns_out_to_be_closed(autojump_clock: MockClock) -> None:
    async with lab(partial(ScriptedPath, closed_way=True)) as it:
        it.ping(identifier=1)
        it.ping(identifier=2)
        assert await it.driver.frames() == []
        assert [path.closed for path in it.paths] == [True, True]
        assert len(it.driver.told("flow.failed")) == 1
        assert {flow.reason for flow in it.driver.flows.lately_closed()} == {"host_error"}


async def test_a_lack_of_descriptors_is_no_reason_for_a_worse_way(autojump_clock: MockClock) -> None:
    async with lone_driver() as driver:
        it = Lab(driver, ScriptedPath)
        it.outbound = OutboundIcmp(driver, partial(may_dial, driver.network), (closed(errno.EMFILE), it._open))
        it.ping()
        assert it.paths == []
        (event,) = driver.told("flow.failed")
        assert event["reason"] == os.strerror(errno.EMFILE)
