"""The API's bodies, statuses and texts, against the tables of specs/gvproxy.md section 2."""

from __future__ import annotations

import json

import pytest

from sulla_trio.api.access import Access
from sulla_trio.api.app import guest_app, host_app, split_host_port
from sulla_trio.errors import ConfigError, ForwardError
from tests.support.fake_network import FakeNetwork
from tests.support.raw_http import served

EXPOSE = "/services/forwarder/expose"
UNEXPOSE = "/services/forwarder/unexpose"
ALL = "/services/forwarder/all"
TEXT = "text/plain; charset=utf-8"
FORWARD = {"local": "127.0.0.1:2222", "remote": "192.168.127.2:22", "protocol": "tcp"}


async def test_expose_lists_and_unexposes() -> None:
    network = FakeNetwork()
    async with served(host_app(network)) as api:
        assert (await api.ask("GET", ALL)).body == b"[]\n"
        answer = await api.ask("POST", EXPOSE, FORWARD)
        assert (answer.status, answer.body) == (200, b"")
        answer = await api.ask("GET", ALL)
        assert answer.body == b'[{"local":"127.0.0.1:2222","remote":"192.168.127.2:22","protocol":"tcp"}]\n'
        assert answer.headers["content-type"] == TEXT
        assert [entry.source for entry in network.forwards.all()] == ["api"]
        answer = await api.ask("POST", EXPOSE, FORWARD)
        assert (answer.status, answer.body) == (500, b"proxy already running for tcp on 127.0.0.1:2222\n")
        answer = await api.ask("POST", UNEXPOSE, {"local": "127.0.0.1:2222"})
        assert (answer.status, answer.body) == (200, b"")
        answer = await api.ask("POST", UNEXPOSE, {"local": "127.0.0.1:2222"})
        assert (answer.status, answer.body) == (500, b"proxy not found\n")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-type"] == TEXT


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "EOF"),
        (b"{", "unexpected EOF"),
        (b"nope", "invalid character 'o' in literal null (expecting 'u')"),
        (b"[]", "json: cannot unmarshal array into Go value of type types.ExposeRequest"),
        (b"17", "json: cannot unmarshal number into Go value of type types.ExposeRequest"),
        (b'{"local":1}', "json: cannot unmarshal number into Go struct field ExposeRequest.local of type string"),
        (
            b'{"protocol":{}}',
            "json: cannot unmarshal object into Go struct field ExposeRequest.protocol of type string",
        ),
        (b"[" * 60_000, "exceeded max depth"),
        (b"null", "missing port in address"),
        (b"{}", "missing port in address"),
        (b'{"remote":"192.168.127.2"}', "address 192.168.127.2: missing port in address"),
        (b'{"remote":"a:b:c"}', "address a:b:c: too many colons in address"),
        (b'{"remote":"a:b:c","protocol":"sctp"}', "address a:b:c: too many colons in address"),
        (b'{"remote":":80"}', "address @: missing port in address"),
    ],
)
async def test_bad_expose_is_400(body: bytes, text: str) -> None:
    async with served(host_app(FakeNetwork())) as api:
        answer = await api.ask("POST", EXPOSE, body)
        assert (answer.status, answer.body.decode()) == (400, text + "\n")
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", [EXPOSE, UNEXPOSE])
@pytest.mark.parametrize("method", ["GET", "PUT", "BREW", "OPTIONS"])
async def test_verbs_take_post_only(path: str, method: str) -> None:
    async with served(host_app(FakeNetwork())) as api:
        answer = await api.ask(method, path)
        assert (answer.status, answer.body) == (400, b"post only\n")


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS", "BREW"])
async def test_tables_take_any_method(method: str) -> None:
    async with served(host_app(FakeNetwork())) as api:
        for path in (ALL, "/cam", "/leases", "/services/dhcp/leases", "/stats", "/flows", "/healthz"):
            assert (await api.ask(method, path)).status == 200


async def test_head_has_no_body() -> None:
    async with served(host_app(FakeNetwork())) as api:
        answer = await api.ask("HEAD", "/cam")
        assert (answer.status, answer.body) == (200, b"")


async def test_tables() -> None:
    network = FakeNetwork()
    flow = network.flows.opened("tcp", "192.168.127.2:1", "<&>", 99.0)
    async with served(host_app(network)) as api:
        assert (await api.ask("GET", "/cam")).body == b'{"5a:94:ef:e4:0c:ee":0}\n'
        leases = b'{"192.168.127.1":"5a:94:ef:e4:0c:dd","192.168.127.2":"5a:94:ef:e4:0c:ee"}\n'
        assert (await api.ask("GET", "/leases")).body == leases
        assert (await api.ask("GET", "/services/dhcp/leases")).body == leases
        assert (await api.ask("GET", "/stats")).body == b'{"BytesReceived":1,"BytesSent":2,"TCP":{"Timeouts":0}}\n'
        flows = (await api.ask("GET", "/flows")).body
        assert b'"remote":"\\u003c\\u0026\\u003e"' in flows
        assert json.loads(flows) == [flow.as_dict(100.0)]
        assert (await api.ask("GET", "/healthz")).body == b"ok\n"


async def test_go_leniency() -> None:
    network = FakeNetwork()
    body = b' {"Local":"127.0.0.1:1","REMOTE":"192.168.127.2:1","Protocol":null,"more":[1,{"a":2}]} trailing'
    async with served(host_app(network)) as api:
        assert (await api.ask("POST", EXPOSE, body, Content_Type="image/png")).status == 200
    assert [(entry.local, entry.protocol) for entry in network.forwards.all()] == [("127.0.0.1:1", "tcp")]


@pytest.mark.parametrize("path", ["/", "/nope", "/stats/", "/services/", "/tunnel", "/%00", "/services/forwarder/allx"])
async def test_unknown_path_is_404(path: str) -> None:
    async with served(host_app(FakeNetwork())) as api:
        answer = await api.ask("GET", path)
        assert (answer.status, answer.body) == (404, b"404 page not found\n")
        assert answer.headers["content-type"] == TEXT


@pytest.mark.parametrize(
    ("path", "location"),
    [
        ("//stats", "/stats"),
        ("/services//forwarder/../forwarder/all?a=b", "/services/forwarder/all?a=b"),
        ("/services", "/services/"),
        ("/a/./b/", "/a/b/"),
    ],
)
async def test_unclean_path_redirects(path: str, location: str) -> None:
    async with served(host_app(FakeNetwork())) as api:
        answer = await api.ask("GET", path)
        assert (answer.status, answer.headers["location"]) == (301, location)


async def test_absolute_form_and_odd_targets() -> None:
    async with served(host_app(FakeNetwork())) as api:
        assert (await api.ask("GET", "http://x/healthz")).status == 200
        for target in ("?x", "*", "http://[", "http://x", "x"):
            assert (await api.ask("GET", target)).status in (301, 404)


async def test_guest_has_three_paths_only() -> None:
    async with served(guest_app(FakeNetwork()), virtual=True) as api:
        for path in (
            "/stats",
            "/cam",
            "/leases",
            "/flows",
            "/events",
            "/healthz",
            "/services",
            "/services/dhcp/leases",
        ):
            answer = await api.ask("GET", path)
            assert (answer.status, answer.body) == (404, b"404 page not found\n")
        assert (await api.ask("GET", ALL)).status == 200


async def test_empty_remote_host_is_the_guest() -> None:
    network = FakeNetwork()
    async with served(guest_app(network), virtual=True) as api:
        assert (await api.ask("POST", EXPOSE, {"local": ":6443", "remote": ":8080"})).status == 200
    assert [(entry.remote, entry.source) for entry in network.forwards.all()] == [("192.168.127.2:8080", "guest")]


@pytest.mark.parametrize("protocol", ["unix", "npipe"])
async def test_guest_gets_no_socket_of_the_host(protocol: str) -> None:
    network = FakeNetwork()
    async with served(guest_app(network), virtual=True) as api:
        answer = await api.ask("POST", EXPOSE, {"local": "/etc/passwd", "remote": "x", "protocol": protocol})
    assert answer.status == 403
    assert protocol in answer.body.decode()
    (event,) = network.events.since(0)
    assert (event["type"], event["source"], event["local"]) == ("forward.failed", "guest", "/etc/passwd")


@pytest.mark.parametrize(
    ("failure", "status", "text"),
    [
        (ForwardError("bind", "listen tcp 127.0.0.1:1: bind: address already in use"), 500, "address already in use\n"),
        (UnicodeError("label too long"), 500, "invalid address: label too long\n"),
        (RuntimeError("a bug"), 500, "internal error\n"),
    ],
)
async def test_failures_of_the_table(failure: Exception, status: int, text: str) -> None:
    network = FakeNetwork()
    network.forwards.failure = failure
    async with served(host_app(network)) as api:
        answer = await api.ask("POST", EXPOSE, FORWARD)
        assert answer.status == status
        assert answer.body.decode().endswith(text)
        assert b"Traceback" not in answer.body


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "127.0.0.1:80", "Authorization": "Bearer secret"}, 200),
        ({"Host": "localhost", "Authorization": "bearer secret", "Origin": "http://localhost:1"}, 200),
        ({"Host": "[::1]:80", "Authorization": "Bearer secret"}, 200),
        ({"Host": "127.0.0.1"}, 401),
        ({"Host": "127.0.0.1", "Authorization": "Bearer wrong"}, 401),
        ({"Host": "127.0.0.1", "Authorization": "Bearer s\xebcret"}, 401),
        ({"Host": "127.0.0.1", "Authorization": "secret"}, 401),
        ({"Host": "evil.example", "Authorization": "Bearer secret"}, 403),
        ({"Host": "", "Authorization": "Bearer secret"}, 403),
        ({"Host": "[", "Authorization": "Bearer secret"}, 403),
        ({"Host": "127.0.0.1", "Authorization": "Bearer secret", "Origin": "http://evil.example"}, 403),
        ({"Host": "127.0.0.1", "Authorization": "Bearer secret", "Origin": "null"}, 403),
    ],
)
async def test_tcp_listeners_check_their_clients(headers: dict[str, str], status: int) -> None:
    async with served(host_app(FakeNetwork(), Access("secret"))) as api:
        assert (await api.ask("GET", "/cam", **headers)).status == status
        upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec_WebSocket_Version": "13"}
        key = {"Sec_WebSocket_Key": "AAAAAAAAAAAAAAAAAAAAAA=="}
        answer = await api.ask("GET", "/events", **headers, **upgrade, **key)
        assert answer.status == (101 if status == 200 else status)


@pytest.mark.parametrize(
    ("address", "result"),
    [
        ("1.2.3.4:5", ("1.2.3.4", "5")),
        ("[::1]:80", ("::1", "80")),
        (":80", ("", "80")),
        ("x:", ("x", "")),
        ("", "missing port in address"),
        ("[::1]", "address [::1]: missing port in address"),
        ("[a:1", "address [a:1: missing ']' in address"),
        ("[::1]x:80", "address [::1]x:80: missing port in address"),
        ("[::1]:8:9", "address [::1]:8:9: too many colons in address"),
        ("a[b:80", "address a[b:80: unexpected '[' in address"),
        ("a]b:80", "address a]b:80: unexpected ']' in address"),
    ],
)
def test_split_host_port(address: str, result: tuple[str, str] | str) -> None:
    if isinstance(result, tuple):
        assert split_host_port(address) == result
    else:
        with pytest.raises(ConfigError) as caught:
            split_host_port(address)
        assert str(caught.value) == result


async def test_a_lease_is_removed() -> None:
    network = FakeNetwork()
    lease = network.leases.offer(b"\2\0\0\0\0\1", 100.0)
    assert lease is not None
    network.leases.bind(lease, 100.0)
    async with served(host_app(network)) as api:
        assert b"192.168.127.3" in (await api.ask("GET", "/leases")).body
        answer = await api.ask("DELETE", "/leases/192.168.127.3")
        assert (answer.status, answer.body) == (200, b"")
        assert b"192.168.127.3" not in (await api.ask("GET", "/services/dhcp/leases")).body
        assert network.events.since(0)[-1]["type"] == "lease.removed"
        for path, status, text in (
            ("/leases/192.168.127.3", 404, b"no lease of 192.168.127.3 to remove\n"),
            ("/leases/192.168.127.2", 404, b"no lease of 192.168.127.2 to remove\n"),
            ("/leases/x", 400, b"invalid IPv4 address: x\n"),
        ):
            answer = await api.ask("DELETE", path)
            assert (answer.status, answer.body) == (status, text)
        assert (await api.ask("GET", "/leases/192.168.127.2")).status == 405
    async with served(guest_app(network), virtual=True) as api:
        assert (await api.ask("DELETE", "/leases/192.168.127.3")).status == 404
