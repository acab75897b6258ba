"""Owned forwards over HTTP and the websocket: shapes, statuses, and what bad input gets."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio

from sulla_trio.api.app import guest_app, host_app
from sulla_trio.api.wanted import is_owner_name
from sulla_trio.forward.inbound import ForwardEntry
from sulla_trio.forward.owned import PortState, WantedPort
from tests.api.test_event_stream import websocket
from tests.support.fake_network import FakeNetwork
from tests.support.raw_http import Answer, served

FORWARD = {"local": "127.0.0.1:8080", "remote": "192.168.127.2:80", "protocol": "tcp"}
OTHER = {"local": "127.0.0.1:8081", "remote": "192.168.127.2:81", "protocol": "udp"}


def content(answer: Answer) -> Any:
    assert answer.headers["content-type"] == "application/json"
    return json.loads(answer.body)


async def test_put_takes_a_whole_set_and_answers_per_port() -> None:
    network = FakeNetwork()
    entry = ForwardEntry("127.0.0.1:8081", "udp", "192.168.127.2:81")
    network.owned.states[entry.local] = WantedPort(entry, PortState.CONFLICT, "address already in use", "api")
    async with served(host_app(network)) as api:
        answer = await api.ask("PUT", "/v1/forwards", {"owner": "agent", "forwards": [FORWARD, OTHER]})
        assert answer.status == 200
        assert content(answer) == {
            "owner": "agent",
            "forwards": [
                {**FORWARD, "state": "active"},
                {**OTHER, "state": "conflict", "by": "api", "reason": "address already in use"},
            ],
        }
        assert network.owned.times == {"agent": 15.0}
        await api.ask("PUT", "/v1/forwards", {"owner": "agent", "forwards": [], "ttl": 60, "comment": "x"})
        assert network.owned.owners == {"agent": []}
        assert network.owned.times == {"agent": 60.0}


async def test_get_lists_what_is_there_and_what_is_waited_for() -> None:
    network = FakeNetwork()
    await network.forwards.expose("127.0.0.1:8080", "192.168.127.2:80", "tcp", source="static")
    entry = ForwardEntry("127.0.0.1:8081", "udp", "192.168.127.2:81", owner="agent")
    network.owned.owners["agent"] = [WantedPort(entry, PortState.PENDING, "no such address")]
    async with served(host_app(network)) as api:
        answer = await api.ask("GET", "/v1/forwards")
    assert content(answer) == {
        "forwards": [
            {**FORWARD, "state": "active", "source": "static", "owner": None},
            {**OTHER, "state": "pending", "reason": "no such address", "source": "api", "owner": "agent"},
        ]
    }


async def test_heart_beats_and_the_end() -> None:
    network = FakeNetwork()
    async with served(host_app(network)) as api:
        assert (await api.ask("POST", "/v1/owners/agent")).status == 404
        await api.ask("PUT", "/v1/forwards", {"owner": "agent", "forwards": [FORWARD]})
        assert (await api.ask("POST", "/v1/owners/agent", {"ttl": 30})).status == 200
        assert network.owned.times["agent"] == 30.0
        assert (await api.ask("POST", "/v1/owners/agent")).status == 200
        assert (await api.ask("DELETE", "/v1/owners/agent")).status == 200
        answer = await api.ask("DELETE", "/v1/owners/agent")
        assert (answer.status, content(answer)) == (404, {"error": "no owner agent"})


async def test_expose_with_an_owner() -> None:
    network = FakeNetwork()
    async with served(host_app(network)) as api:
        answer = await api.ask("POST", "/services/forwarder/expose", {**FORWARD, "owner": "agent"})
        assert (answer.status, answer.body) == (200, b"")
        assert [port.entry.local for port in network.owned.owners["agent"]] == ["127.0.0.1:8080"]
        answer = await api.ask("POST", "/services/forwarder/expose", {**FORWARD, "owner": "agent"})
        assert (answer.status, answer.body) == (500, b"proxy already running for tcp on 127.0.0.1:8080\n")
        answer = await api.ask("POST", "/services/forwarder/expose", {**OTHER, "owner": "no spaces"})
        assert answer.status == 400


async def test_a_guest_owns_nothing() -> None:
    network = FakeNetwork()
    async with served(guest_app(network), virtual=True) as api:
        assert (await api.ask("PUT", "/v1/forwards", {"owner": "agent", "forwards": []})).status == 404
        assert (await api.ask("POST", "/v1/owners/agent")).status == 404
        answer = await api.ask("POST", "/services/forwarder/expose", {**FORWARD, "owner": "agent"})
        assert answer.status == 200
    assert network.owned.owners == {}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "truncated"),
        (b"{", "truncated"),
        (b"[]", "Expected `object`"),
        (b"[" * 20_000, "Expected `object`"),
        (b'{"owner":"a","forwards":' + b"[" * 20_000, "$.forwards[0]"),
        (b'{"owner":"a","x":' + b"[" * 20_000, ""),
        (b'{"forwards":[]}', "missing required field `owner`"),
        (b'{"owner":"","forwards":[]}', "$.owner"),
        (b'{"owner":"a/b","forwards":[]}', "$.owner"),
        (b'{"owner":"a"}', "missing required field `forwards`"),
        (b'{"owner":"a","forwards":[{"local":1,"remote":""}]}', "$.forwards[0].local"),
        (b'{"owner":"a","forwards":[{"local":"\\ud800","remote":""}]}', "malformed"),
        (b'{"owner":"a","forwards":[],"ttl":0}', "$.ttl"),
        (b'{"owner":"a","forwards":[],"ttl":1e9}', "$.ttl"),
        (b'{"owner":"a","forwards":[],"ttl":"x"}', "$.ttl"),
    ],
    ids=lambda value: value[:32] if isinstance(value, bytes) else None,
)
async def test_a_body_that_is_none_is_400(body: bytes, words: str) -> None:
    async with served(host_app(FakeNetwork())) as api:
        answer = await api.ask("PUT", "/v1/forwards", body)
        assert answer.status == 400
        assert words in content(answer)["error"]


async def test_methods_and_refusals() -> None:
    network = FakeNetwork()
    async with served(host_app(network)) as api:
        assert (await api.ask("POST", "/v1/forwards", {"owner": "a", "forwards": []})).status == 405
        assert (await api.ask("GET", "/v1/owners/a")).status == 405
        answer = await api.ask("PUT", "/v1/forwards", {"owner": "a", "forwards": [FORWARD] * 101})
        assert (answer.status, content(answer)) == (409, {"error": "one owner may have 100 forwards"})
        assert (await api.ask("POST", "/v1/owners/a", b'{"ttl":-1}')).status == 400


async def test_the_websocket_is_an_owner_as_long_as_it_is_open() -> None:
    network = FakeNetwork()
    async with served(host_app(network)) as api:
        async with websocket(api, "/v1/forwards") as client:
            await client.send_message(json.dumps({"forwards": [FORWARD]}))
            answer = json.loads(await client.get_message())
            assert answer == {"owner": "websocket-1", "forwards": [{**FORWARD, "state": "active"}]}
            assert network.owned.times == {"websocket-1": None}
            await client.send_message("nonsense")
            assert "malformed" in json.loads(await client.get_message())["error"]
            await client.send_message(b"\xff\xfe")
            assert "error" in json.loads(await client.get_message())
            await client.send_message(json.dumps({"forwards": []}))
            assert json.loads(await client.get_message())["forwards"] == []
            assert network.owned.owners == {"websocket-1": []}
            await client.aclose()
        with trio.fail_after(10):
            while network.owned.owners:
                await trio.sleep(0.001)
        async with websocket(api, "/v1/forwards") as client:
            await client.send_message(json.dumps({"forwards": [FORWARD]}))
            assert json.loads(await client.get_message())["owner"] == "websocket-2"
            await trio.aclose_forcefully(client._stream)  # not a word
            with trio.fail_after(10):
                while network.owned.owners:
                    await trio.sleep(0.001)


def test_owner_names() -> None:
    assert all(map(is_owner_name, ("a", "docker@vm-1:2", "A.b_c", "x" * 64)))
    assert not any(map(is_owner_name, ("", "a b", "a/b", "x" * 65, "é", "a\n")))
