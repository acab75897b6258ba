"""The host's side of the handshake against scripted Go guests, phantoms and liars, over unix sockets."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from sulla_trio.errors import ConfigError
from sulla_trio.link import host_handshake
from sulla_trio.link.discovery import FixedCandidates, NoCandidates
from sulla_trio.link.endpoint import Endpoint, EndpointUrl, parse_endpoint
from sulla_trio.link.host_handshake import HostHandshake, data_endpoint
from sulla_trio.wire.handshake import DIALECTS
from tests.support.go_peers import GoGuest

RD1 = DIALECTS["rd1"]


class Host:
    """A host's handshake, its events, and the link it found."""

    def __init__(self, directory: Path, nursery: trio.Nursery) -> None:
        self.directory, self.nursery = directory, nursery
        self.events: list[dict[str, Any]] = []
        self.link: Endpoint | None = None
        self.guests: list[GoGuest] = []

    async def guest(self, name: str = "vm", **how: Any) -> GoGuest:
        guest = GoGuest(self.directory, name, **how)
        self.guests.append(guest)
        await self.nursery.start(guest.run)
        return guest

    def close(self) -> None:
        for each in (self.link, *(guest.link and guest.link.socket for guest in self.guests)):
            if each is not None:
                each.close()

    def handshake(self, *names: str, candidates: Any = None) -> HostHandshake:
        urls = [f"unix://{self.directory}/{name}.handshake" for name in names or ("vm",)]
        return HostHandshake(
            candidates or FixedCandidates(urls, 1), RD1, parse_endpoint(f"unix://{self.directory}/data"), self.emit
        )

    def emit(self, type: str, **fields: Any) -> None:
        self.events.append({"type": type, **fields})

    @property
    def states(self) -> list[str]:
        return [event["state"] for event in self.events if event["type"] == "link.handshake"]

    async def attach(self, *names: str) -> Endpoint:
        with trio.fail_after(3600):
            self.link = await self.handshake(*names).attach()
        return self.link


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    async with trio.open_nursery() as nursery:
        made = Host(tmp_path, nursery)
        yield made
        nursery.cancel_scope.cancel()
    made.close()


async def test_the_probe_says_nothing_the_second_connection_says_ready(host: Host, autojump_clock: MockClock) -> None:
    guest = await host.guest()
    link = await host.attach()
    await guest.linked.wait()
    assert guest.heard == [b"", b"READY"]
    assert guest.link is not None
    await guest.link.send_all(b"frame")
    buffer = memoryview(bytearray(16))
    await link.wait_readable()
    assert bytes(buffer[: link.recv_into(buffer)]) == b"frame"
    assert host.states == ["validated"]
    assert not os.path.exists(guest.data_path)  # nobody else is let in while this VM is served


async def test_a_vm_that_is_not_there_yet_is_found_when_it_is(host: Host, autojump_clock: MockClock) -> None:
    async def boot() -> None:
        await trio.sleep(90)
        await host.guest()

    host.nursery.start_soon(boot)
    await host.attach()
    assert trio.current_time() > 90


async def test_another_phrase_is_refused_and_hardly_asked_again(host: Host, autojump_clock: MockClock) -> None:
    stranger = await host.guest("stranger", phrase=DIALECTS["rd2"].signature)

    async def boot() -> None:
        await trio.sleep(60)
        await host.guest()

    host.nursery.start_soon(boot)
    await host.attach("stranger", "vm")
    assert host.states == ["refused", "validated"]
    assert "rancher-desktop-opensuse" in host.events[0]["reason"]
    assert 1 < stranger.accepted <= trio.current_time() / host_handshake.REFUSED_INTERVAL + 1


async def test_never_two_probes_to_one_vm_and_a_silent_one_costs_nobody_anything(
    host: Host, autojump_clock: MockClock
) -> None:
    silent = await host.guest("silent", silent=True)

    async def boot() -> None:
        await trio.sleep(30)
        await host.guest()

    host.nursery.start_soon(boot)
    await host.attach("silent", "vm")
    # It serves one at a time and never ends with the first; what waits behind is in its backlog, one each PROBE_TIMEOUT.
    assert silent.accepted == 1
    assert host.states == ["validated"]


async def test_a_phantom_is_survived_by_starting_over(
    host: Host, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    guest = await host.guest(dials=False)

    async def come_up() -> None:
        await trio.sleep(3 * host_handshake.ACCEPT_TIMEOUT)
        guest.dials = True

    host.nursery.start_soon(come_up)
    await host.attach()
    assert host.states[-1] == "validated"
    assert host.states[:-1] == ["unvalidated"] * (len(host.states) - 1) != []
    assert "handshake attempt 1 unvalidated (timed out waiting for peer data connection); retrying" in caplog.messages


async def test_a_serial_guest_is_never_left_with_an_open_probe(host: Host, autojump_clock: MockClock) -> None:
    """What deadlocks the Go pair: a probe that nobody closes, and a guest that waits for its five bytes."""
    for _ in range(5):
        with trio.move_on_after(0.5):
            await host.handshake().attach()
        guest = await host.guest()
        await host.attach()
        await guest.linked.wait()
        assert host.link is not None
        host.link.close()
        assert guest.heard[-1] == b"READY"


async def test_a_connection_from_somebody_else_is_closed_and_the_wait_goes_on(
    host: Host, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    peers = iter(["unix:4321", "unix:4321"])
    real = host_handshake.endpoints.listen_endpoints

    class Strangers:
        """A listener whose first connections are another user's."""

        def __init__(self, listener: Any) -> None:
            self._listener = listener

        async def __aenter__(self) -> Strangers:
            return self

        async def __aexit__(self, *_: object) -> None:
            await self._listener.aclose()

        async def accept(self) -> Endpoint:
            endpoint: Endpoint = await self._listener.accept()
            if (stranger := next(peers, None)) is not None:
                endpoint.peer = stranger
            return endpoint

    async def listen(url: EndpointUrl) -> Strangers:
        return Strangers(await real(url))

    monkeypatch.setattr(host_handshake.endpoints, "listen_endpoints", listen)

    async def intrude() -> None:
        for _ in range(2):
            while not os.path.exists(guest.data_path):
                await trio.sleep(0.01)
            async with await trio.open_unix_socket(guest.data_path) as stream:
                assert await stream.receive_some(1) == b""
        guest.dials = True

    guest = await host.guest(dials=False)
    host.nursery.start_soon(intrude)
    await host.attach()
    await guest.linked.wait()
    assert host.states.count("stranger") == 1  # two of them, told once
    assert host.states[-1] == "validated"


async def test_no_candidates_is_told_once_and_looked_for_again(
    host: Host, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    class Late:
        looks = 0

        def find(self) -> list[EndpointUrl]:
            self.looks += 1
            if self.looks < 10:
                raise NoCandidates("no running WSL VM found")
            return [parse_endpoint(f"unix://{host.directory}/vm.handshake")]

    caplog.set_level("INFO")
    await host.guest()
    host.link = await host.handshake(candidates=Late()).attach()
    assert caplog.messages.count("no running WSL VM found") == 1


async def test_a_data_endpoint_that_is_taken_is_tried_again(
    host: Host, autojump_clock: MockClock, tmp_path: Path
) -> None:
    guest = await host.guest()
    holder = await host_handshake.endpoints.listen_endpoints(parse_endpoint(f"unix://{tmp_path}/data"))

    async def let_go() -> None:
        await trio.sleep(5)
        await holder.aclose()

    host.nursery.start_soon(let_go)
    await host.attach()
    assert guest.heard[-1] == b"READY"
    assert "in use by a running listener" in host.events[0]["reason"]
    assert host.states[-1] == "validated"


async def test_cancelled_at_any_point_nothing_stays_open(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    for turns in range(40):
        async with trio.open_nursery() as nursery:
            host = Host(tmp_path, nursery)
            guest = await host.guest()

            async def attach(host: Host = host) -> None:
                await host.attach()

            nursery.start_soon(attach)
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        host.close()
        assert not os.path.exists(guest.data_path)
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("vm", "data"),
    [
        ("vsock://3:6669", "vsock://ANY:6656"),
        ("hyperv://E0E16197-DD56-4A10-9195-5EE7A155A838:6669", "hyperv://e0e16197-dd56-4a10-9195-5ee7a155a838:6656"),
        ("vsock+unix:///run/fc.sock:6669", "vsock+unix:///run/fc.sock:6656"),
    ],
)
def test_where_the_data_connection_comes_to(vm: str, data: str) -> None:
    assert data_endpoint(parse_endpoint(vm), 6656)[:3] == parse_endpoint(data)[:3]


@pytest.mark.parametrize("vm", ["unix:///run/vm.sock", "tcp://127.0.0.1:6669"])
def test_where_it_cannot_be_derived_it_must_be_said(vm: str) -> None:
    with pytest.raises(ConfigError, match="needs --data URL"):
        data_endpoint(parse_endpoint(vm), 6656)
