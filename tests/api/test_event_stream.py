"""The websocket of events: order, resuming, filters, and clients that are slow, chatty or gone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio_websocket

from sulla_trio.api.app import MAX_SUBSCRIBERS, host_app
from sulla_trio.api.event_stream import Subscription, matches, parse_query
from sulla_trio.errors import ConfigError
from sulla_trio.services.events import EventLog
from tests.support.fake_network import FakeNetwork
from tests.support.raw_http import Served, served


@asynccontextmanager
async def websocket(api: Served, path: str = "/events") -> AsyncIterator[Any]:
    async with trio.open_nursery() as nursery:
        yield await trio_websocket.wrap_client_stream(nursery, await api.connect(), "x", path)
        nursery.cancel_scope.cancel()


async def test_events_come_in_order() -> None:
    network = FakeNetwork()
    async with served(host_app(network)) as api, websocket(api) as client:
        for index in range(100):
            network.events.emit("flow.opened", flow=index)
        for index in range(100):
            assert f'"flow":{index}}}' in await client.get_message()


async def test_since_resumes_and_types_filter() -> None:
    network = FakeNetwork()
    for index in range(5):
        network.events.emit("flow.opened" if index % 2 else "lease.added", index=index)
    async with served(host_app(network)) as api, websocket(api, "/events?since=2&types=flow,daemon.ready") as client:
        network.events.emit("daemon.ready")
        assert '"seq":4' in await client.get_message()
        assert '"seq":6,"time":1000.0,"type":"daemon.ready"' in await client.get_message()


async def refusal(api: Served, path: str) -> trio_websocket.ConnectionRejected:
    """How `path` refuses; trio-websocket raises it out of its nursery."""
    with pytest.raises(BaseExceptionGroup) as caught:
        async with websocket(api, path):
            pass
    error: BaseException = caught.value
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, trio_websocket.ConnectionRejected)
    return error


@pytest.mark.parametrize("query", ["since=x", "since=-1", "since=1e3", "since=" + "9" * 5000, "since="])
async def test_bad_since_is_400(query: str) -> None:
    async with served(host_app(FakeNetwork())) as api:
        error = await refusal(api, "/events?" + query)
        assert error.status_code == 400
        assert b"want the seq of an event" in (error.body or b"")


@pytest.mark.parametrize("message", ["hello", b"\x00", "", "x" * 4096])
async def test_client_that_talks_is_closed(message: str | bytes) -> None:
    async with served(host_app(FakeNetwork())) as api, websocket(api) as client:
        await client.send_message(message)
        with pytest.raises(trio_websocket.ConnectionClosed):
            await client.get_message()
        assert client.closed.code == 1003


async def test_client_that_talks_too_much_is_closed() -> None:
    async with served(host_app(FakeNetwork())) as api, websocket(api) as client:
        await client.send_message("x" * 1_000_000)
        with pytest.raises(trio_websocket.ConnectionClosed):
            await client.get_message()
        assert client.closed.code == 1009


async def test_leaving_frees_the_subscription() -> None:
    network = FakeNetwork()
    async with served(host_app(network)) as api:
        for _ in range(3):
            async with websocket(api) as client:
                await client.aclose()
        with trio.fail_after(5):
            while network.events._subscribers:
                await trio.lowlevel.checkpoint()


async def test_number_of_subscribers_is_bounded() -> None:
    async with served(host_app(FakeNetwork())) as api, trio.open_nursery() as nursery:
        for _ in range(MAX_SUBSCRIBERS):
            await trio_websocket.wrap_client_stream(nursery, await api.connect(), "x", "/events")
        assert (await refusal(api, "/events")).status_code == 503
        nursery.cancel_scope.cancel()


async def test_events_without_upgrade_is_400() -> None:
    async with served(host_app(FakeNetwork())) as api:
        assert (await api.ask("GET", "/events")).status == 400


async def test_slow_subscriber_loses_the_oldest_and_is_told() -> None:
    log = EventLog(lambda: 0.0)
    with Subscription(log, size=4) as subscription:
        for index in range(10):
            log.emit("flow.opened", index=index)
        assert await subscription.next() == {"type": "events.lost", "count": 6}
        assert [(await subscription.next())["seq"] for _ in range(4)] == [7, 8, 9, 10]
        log.emit("flow.closed")
        assert (await subscription.next())["seq"] == 11
    log.emit("flow.closed")
    with trio.move_on_after(0) as scope:
        await subscription.next()
    assert scope.cancelled_caught


async def test_what_the_ring_forgot_counts_as_lost() -> None:
    log = EventLog(lambda: 0.0, size=3)
    for _ in range(10):
        log.emit("flow.opened")
    with Subscription(log, since=2) as subscription:
        assert await subscription.next() == {"type": "events.lost", "count": 5}
        assert (await subscription.next())["seq"] == 8


def test_types() -> None:
    assert matches("flow.opened", "flow")
    assert matches("flow.opened", "flow.*")
    assert matches("flow.opened", "flow.opened")
    assert not matches("flow.opened", "flo")
    assert not matches("flow.opened", "flow.closed")
    assert parse_query("7", " flow, ,dns ") == (7, ("flow", "dns"))
    assert parse_query(None, None) == (None, ())
    with pytest.raises(ConfigError):
        parse_query("٣", None)
