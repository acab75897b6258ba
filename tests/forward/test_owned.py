"""Owners of forwards: what they want, what they get, and that it goes with them."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
import trio
import trio.testing

from sulla_trio.errors import ForwardError
from sulla_trio.forward import forward_address, owned
from sulla_trio.forward.forward_address import ForwardPorts
from sulla_trio.forward.inbound import ForwardEntry
from sulla_trio.forward.owned import DEFAULT_TTL, OTHER_PROGRAM, RETRY, PortState, WantedPort
from sulla_trio.vnet.network import VirtualNetwork
from tests.forward.test_forward_address import free_port
from tests.support.two_drivers import gateway_and_guest

REMOTE = "192.168.127.2:80"


def entry(local: str = "", remote: str = REMOTE, protocol: str = "tcp") -> ForwardEntry:
    return ForwardEntry(local or f"127.0.0.1:{free_port()}", protocol, remote)


def states(ports: list[WantedPort]) -> list[str]:
    return [str(port.state) for port in ports]


def there(network: VirtualNetwork) -> list[ForwardEntry]:
    return network.forwards.all()


def forward_events(network: VirtualNetwork) -> list[tuple[object, ...]]:
    return [
        (event["type"].removeprefix("forward."), event["local"], event["owner"], event.get("reason"))
        for event in network.events.since(0)
        if event["type"].startswith("forward.")
    ]


@asynccontextmanager
async def network_of() -> AsyncIterator[VirtualNetwork]:
    async with gateway_and_guest() as (network, _):
        yield network


@contextmanager
def somebody() -> Iterator[str]:
    """The address that another program listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield f"127.0.0.1:{sock.getsockname()[1]}"


async def test_a_set_is_had_changed_and_gone() -> None:
    one, two, three = entry(), entry(protocol="udp"), entry()
    async with network_of() as network:
        ports = await network.owned.put("agent", [one, two])
        assert states(ports) == ["active", "active"]
        assert [(port.entry.local, port.entry.owner) for port in ports] == [(one.local, "agent"), (two.local, "agent")]
        assert network.forwards.snapshot() == []  # not kept over a restart
        assert states(await network.owned.put("agent", [two, three])) == ["active", "active"]
        assert sorted(there(network)) == sorted([two, three])
        assert forward_events(network) == [
            ("added", one.local, "agent", None),
            ("added", two.local, "agent", None),
            ("removed", one.local, "agent", "not wanted any more"),
            ("added", three.local, "agent", None),
        ]
        assert await network.owned.put("agent", []) == []
        assert there(network) == []


async def test_what_is_there_already_is_left_alone_and_another_remote_replaces_it() -> None:
    one = entry()
    async with network_of() as network:
        (before,) = await network.owned.put("agent", [one])
        (after,) = await network.owned.put("agent", [one])
        assert after is before
        other = ForwardEntry(one.local, "tcp", "192.168.127.2:81")
        assert states(await network.owned.put("agent", [other])) == ["active"]
        assert there(network)[0].remote == "192.168.127.2:81"


async def test_an_owner_who_is_not_heard_from_is_over(autojump_clock: trio.testing.MockClock) -> None:
    one = entry()
    async with network_of() as network:
        await network.owned.put("agent", [one])
        for _ in range(3):
            await trio.sleep(DEFAULT_TTL - 1)
            assert network.owned.heard("agent")
            assert there(network) == [one]
        await trio.sleep(DEFAULT_TTL + 1)
        assert there(network) == []
        assert not network.owned.heard("agent")
        assert forward_events(network)[-1] == ("removed", one.local, "agent", "owner gone")
        assert states(await network.owned.put("agent", [one], ttl=100.0)) == ["active"]
        await trio.sleep(99.0)
        assert there(network) == [one]
        await trio.sleep(2.0)
        assert there(network) == []


async def test_end_takes_everything_along_and_others_keep_theirs() -> None:
    one, two, three = entry(), entry(), entry()
    async with network_of() as network:
        await network.owned.put("socket", [one], ttl=None)
        await network.owned.put("agent", [two])
        await network.forwards.expose(three.local, three.remote)
        assert network.owned.end("socket")
        with trio.fail_after(10):
            while len(there(network)) > 2:
                await trio.sleep(0.001)
        assert sorted(there(network)) == sorted([two, three])
        assert not network.owned.end("socket")
        assert [port.entry for port in network.owned.all()] == [two]


async def test_conflicts_name_who_has_the_port(autojump_clock: trio.testing.MockClock) -> None:
    static, api, mine, free = entry(), entry(), entry(), entry()
    async with network_of() as network:
        await network.forwards.expose(static.local, static.remote, source="static")
        await network.forwards.expose(api.local, api.remote)
        await network.owned.put("first", [mine], ttl=None)
        with somebody() as other:
            wanted = [static, api, mine, entry(other), free, entry(f"localhost:{api.local.rpartition(':')[2]}")]
            ports = await network.owned.put("second", wanted, ttl=None)
            assert states(ports) == ["conflict"] * 4 + ["active", "conflict"]
            assert [port.by for port in ports] == ["static", "api", "first", OTHER_PROGRAM, None, "api"]
            assert ports[3].reason == f"listen tcp {other}: bind: address already in use"
        await network.owned.put("first", [], ttl=None)
        await network.forwards.unexpose(api.local)
        await trio.sleep(2 * RETRY)
        second = [port for port in network.owned.all() if port.entry.owner == "second"]
        assert states(second)[:5] == ["conflict", "active", "active", "active", "active"]
        failures = [event for event in forward_events(network) if event[0] == "failed"]
        # Each is told once, however often it was tried; localhost twice, for another has its port now.
        assert len(failures) == 6


@pytest.mark.parametrize(
    ("wanted", "state", "words"),
    [
        (entry("127.0.0.1:1", protocol="unix"), PortState.DENIED, "unix forwards are not supported"),
        (entry("127.0.0.1:1", protocol="sctp"), PortState.DENIED, "unknown protocol sctp"),
        (entry("127.0.0.1:1", remote="guest:80"), PortState.DENIED, "invalid remote addr"),
        (entry("127.0.0.1"), PortState.DENIED, "missing port in address"),
        (entry("a" * 64 + ".example:1"), PortState.DENIED, "invalid address"),
        (entry("192.0.2.1:8080"), PortState.PENDING, "cannot assign requested address"),
        (entry("no-such-name.invalid:8080"), PortState.PENDING, ""),
    ],
)
async def test_what_cannot_be_and_what_cannot_be_yet(wanted: ForwardEntry, state: PortState, words: str) -> None:
    good = entry()
    async with network_of() as network:
        ports = await network.owned.put("agent", [wanted, good])
        assert [port.state for port in ports] == [state, PortState.ACTIVE]
        assert words in (ports[0].reason or "")


async def test_a_privileged_port_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(ports: ForwardPorts) -> list[trio.SocketListener]:
        raise PermissionError(13, "Permission denied")

    async with network_of() as network:
        monkeypatch.setattr("sulla_trio.forward.inbound.listen_tcp", refuse)
        (port,) = await network.owned.put("agent", [entry("127.0.0.1:80")])
        assert port.state is PortState.PRIVILEGED
        assert "ip_unprivileged_port_start" in (port.reason or "")


async def test_a_pending_port_comes_when_its_address_does(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    one = entry(f"localhost:{free_port()}")
    async with network_of() as network:
        with monkeypatch.context() as patch:
            patch.setattr(forward_address, "LOOPBACKS", ("192.0.2.1",))
            assert states(await network.owned.put("agent", [one], ttl=None)) == ["pending"]
            await trio.sleep(3 * RETRY)
            assert there(network) == []
        await trio.sleep(2 * RETRY)
        assert there(network) == [one]
        assert states(network.owned.all()) == ["active"]


async def test_what_somebody_unexposed_does_not_come_back(autojump_clock: trio.testing.MockClock) -> None:
    one = entry()
    async with network_of() as network:
        await network.owned.put("agent", [one], ttl=None)
        await network.forwards.unexpose(one.local)
        await trio.sleep(3 * RETRY)
        assert there(network) == []
        assert network.owned.all() == []
        assert states(await network.owned.put("agent", [one], ttl=None)) == ["active"]


async def test_adding_is_all_or_nothing() -> None:
    one = entry()
    async with network_of() as network:
        await network.owned.add("agent", one)
        with pytest.raises(ForwardError, match="proxy already running"):
            await network.owned.add("agent", one)
        with somebody() as other, pytest.raises(ForwardError, match="address already in use"):
            await network.owned.add("agent", entry(other))
        assert [port.entry for port in network.owned.all()] == [one]
        assert network.forwards.all()[0].owner == "agent"


async def test_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owned, "MAX_OWNERS", 2)
    monkeypatch.setattr(owned, "MAX_WANTED", 2)
    async with network_of() as network:
        with pytest.raises(ForwardError, match="one owner may have 2 forwards"):
            await network.owned.put("one", [entry(), entry(), entry()])
        await network.owned.put("one", [entry(), entry()])
        with pytest.raises(ForwardError, match="one owner may have 2 forwards"):
            await network.owned.add("one", entry())
        await network.owned.put("two", [])
        with pytest.raises(ForwardError, match="there are 2 owners already"):
            await network.owned.put("three", [])
        assert len(there(network)) == 2


async def test_an_owner_who_ends_while_his_ports_are_bound_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    listen, slow = forward_address.listen_tcp, trio.Event()

    async def late(ports: ForwardPorts) -> list[trio.SocketListener]:
        await slow.wait()
        return await listen(ports)

    monkeypatch.setattr("sulla_trio.forward.inbound.listen_tcp", late)
    async with network_of() as network, trio.open_nursery() as nursery:

        async def put() -> None:
            with pytest.raises(ForwardError, match="ended meanwhile"):
                await network.owned.put("agent", [entry()], ttl=None)

        nursery.start_soon(put)
        await trio.testing.wait_all_tasks_blocked()
        assert network.owned.end("agent")
        slow.set()
        with trio.fail_after(10):
            while network.owned._owners:
                await trio.sleep(0.001)
        assert there(network) == []


async def test_a_put_that_is_cancelled_leaves_no_half_bound_port(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(ports: ForwardPorts) -> list[trio.SocketListener]:
        await trio.sleep_forever()
        raise AssertionError

    one, two = entry(), entry()
    async with network_of() as network:
        await network.owned.put("agent", [one], ttl=None)
        monkeypatch.setattr("sulla_trio.forward.inbound.listen_tcp", never)
        with trio.move_on_after(0.05):
            await network.owned.put("agent", [one, two], ttl=None)
        assert there(network) == [one]
        assert network.forwards.find(two.local, "tcp") is None
