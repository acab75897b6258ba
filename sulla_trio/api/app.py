"""The HTTP API as two Quart-Trio applications: the host's, and the guest's with only the forwarder.

Paths, statuses and texts are gvproxy's (specs/gvproxy.md sections 2.0 to 2.6); ``/flows``, ``/events`` and ``/healthz`` are
ours. Importing this module imports Quart, which takes half a second: never on the way to the first frame.
"""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol
from urllib.parse import quote

from quart import Response, request, websocket
from quart.routing import QuartRule
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, NotFound

from sulla_trio.api import event_stream
from sulla_trio.api.access import Access
from sulla_trio.api.wanted import Owned, add_wanted, is_owner_name
from sulla_trio.config import format_mac, parse_ip
from sulla_trio.errors import ConfigError, ForwardError
from sulla_trio.forward.inbound import ForwardEntry
from sulla_trio.services import gojson
from sulla_trio.services.events import EventLog
from sulla_trio.services.flows import FlowTable
from sulla_trio.services.gojson_scan import GoJsonError
from sulla_trio.services.leases import LeaseTable

log = logging.getLogger(__name__)

MAX_SUBSCRIBERS: Final = 32
"""Websockets of events at once; each may hold `event_stream.QUEUE_SIZE` events."""
GUEST_PROTOCOLS: Final = ("", "tcp", "udp")
TEXT: Final = "text/plain; charset=utf-8"


class Forwards(Protocol):
    """What is needed of `forward.inbound.ForwardTable`."""

    async def expose(self, local: str, remote: str, protocol: str, *, source: str) -> None: ...
    async def unexpose(self, local: str, protocol: str) -> None: ...
    def all(self) -> list[Any]: ...


class Clock(Protocol):
    """What is needed of `vnet.driver.Driver`."""

    def now(self) -> float: ...


class EventSource(Protocol):
    """Whatever keeps an event log."""

    @property
    def events(self) -> EventLog: ...


class Network(EventSource, Protocol):
    """What is needed of `vnet.network.VirtualNetwork`."""

    @property
    def forwards(self) -> Forwards: ...
    @property
    def owned(self) -> Owned: ...
    @property
    def driver(self) -> Clock: ...
    @property
    def leases(self) -> LeaseTable: ...
    @property
    def flows(self) -> FlowTable: ...
    def statistics(self) -> dict[str, Any]: ...
    def cam(self) -> dict[str, int]: ...


class _AnyMethodRule(QuartRule):
    """Go's mux looks at the path only; a handler that cares for the method checks it itself."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.websocket:
            self.methods = None


class _Application(QuartTrio):
    url_rule_class = _AnyMethodRule


def json_response(value: Any, *, sort_keys: bool = True) -> Response:
    """200 with Go's JSON. The content type is what Go sniffs, not application/json."""
    return Response(gojson.encode(value, sort_keys=sort_keys), 200, content_type=TEXT)


def error_response(text: str, status: int) -> Response:
    """Go's http.Error."""
    return Response(text + "\n", status, {"X-Content-Type-Options": "nosniff"}, content_type=TEXT)


def host_app(network: Network, access: Access | None = None) -> QuartTrio:
    """The application of the host's listeners. `access` None: the listener itself is the access (a unix socket, 0600)."""
    app = _new_application()
    if access is not None:
        _check_access(app, access)
    _add_forwarder(app, network, source="api")
    _add_tables(app, network)
    add_wanted(app, network)
    _add_health(app)
    _add_events(app, network)
    return app


def guest_app(network: Network) -> QuartTrio:
    """The application of ``<gateway>:80``: the forwarder's three paths, and never unix sockets or pipes of the host."""
    app = _new_application()
    _add_forwarder(app, network, source="guest")
    return app


def events_app(source: EventSource) -> QuartTrio:
    """The application of a daemon that has events and no network: ``/events`` and ``/healthz``."""
    app = _new_application()
    _add_health(app)
    _add_events(app, source)
    return app


def _new_application() -> QuartTrio:
    app = _Application("sulla_trio.api", static_folder=None)
    app.url_map.merge_slashes = False
    app.config["MAX_CONTENT_LENGTH"] = app.config["BODY_TIMEOUT"] = None  # the connection bounds both
    app.config["RESPONSE_TIMEOUT"] = None

    async def clean() -> Response | None:
        return _redirect_unclean(app)

    async def not_found(_: Exception) -> Response:
        return error_response("404 page not found", 404)

    async def http_error(error: HTTPException) -> Response:
        return error_response(error.description or error.name, error.code or 500)

    async def bug(error: Exception) -> Response:
        log.error("internal error in the API", exc_info=error)
        return error_response("internal error", 500)

    app.before_request(clean)
    app.register_error_handler(NotFound, not_found)
    app.register_error_handler(HTTPException, http_error)
    app.register_error_handler(Exception, bug)
    return app


def _redirect_unclean(app: QuartTrio) -> Response | None:
    """Go's mux redirects a path with ``//``, ``.`` or ``..`` to its clean form, and a subtree's root to its slash."""
    path = request.scope["path"]  # as it was sent: werkzeug has tidied its own copy
    clean = "/" + posixpath.normpath(path).lstrip("/")
    if path.endswith("/") and clean != "/":
        clean += "/"
    if clean == "/services" and app.view_functions.get("stats"):
        clean += "/"
    if clean == path:
        return None
    query = request.query_string.decode("latin-1")
    location = quote(clean) + (f"?{query}" if query else "")
    body = f'<a href="{location}">Moved Permanently</a>.\n\n' if request.method in ("GET", "HEAD") else ""
    return Response(body, 301, {"Location": location}, content_type="text/html; charset=utf-8" if body else None)


def _route(app: QuartTrio, path: str, name: str, handler: Callable[..., Awaitable[Response]]) -> None:
    app.add_url_rule(path, name, handler, methods=["GET"], provide_automatic_options=False)


def _check_access(app: QuartTrio, access: Access) -> None:
    async def check() -> Response | None:
        headers = (request if request else websocket).headers
        refusal = access.check(headers.get("Host"), headers.get("Origin"), headers.get("Authorization"))
        if refusal is None:
            return None
        response = error_response(refusal.text, refusal.status)
        if refusal.status == 401:
            response.headers["WWW-Authenticate"] = "Bearer"
        return response

    app.before_request(check)
    app.before_websocket(check)


# The forwarder


def _add_forwarder(app: QuartTrio, network: Network, *, source: str) -> None:
    async def everything() -> Response:
        entries = [
            {"local": entry.local, "remote": entry.remote, "protocol": entry.protocol}
            for entry in network.forwards.all()
        ]
        return json_response(entries, sort_keys=False)

    async def expose() -> Response:
        return await _post(lambda body: _expose(network, body, source))

    async def unexpose() -> Response:
        return await _post(lambda body: _unexpose(network, body))

    _route(app, "/services/forwarder/all", "all", everything)
    _route(app, "/services/forwarder/expose", "expose", expose)
    _route(app, "/services/forwarder/unexpose", "unexpose", unexpose)


async def _post(handle: Callable[[bytes], Awaitable[Response | None]]) -> Response:
    """Method check and the mapping of errors that both verbs share."""
    if request.method != "POST":
        return error_response("post only", 400)
    try:
        response = await handle(await request.body)
    except GoJsonError as error:
        return error_response(str(error), 400)
    except ForwardError as error:
        return error_response(str(error), 500)
    except ValueError as error:  # a name that no resolver takes (embedded NUL, a label over 63 bytes)
        return error_response(f"invalid address: {error}", 500)
    return response or Response(b"", 200)


async def _expose(network: Network, body: bytes, source: str) -> Response | None:
    fields = gojson.decode_struct(body, "ExposeRequest", ("local", "remote", "protocol", "owner"))
    local, remote, protocol = fields["local"], fields["remote"], fields["protocol"] or "tcp"
    if source == "guest" and protocol in ("unix", "npipe"):
        return _deny(network, local, remote, protocol)
    if protocol not in ("unix", "npipe"):
        try:
            host, port = split_host_port(remote)
        except ConfigError as error:
            return error_response(str(error), 400)
        if not host:
            client = request.scope.get("client")
            if not client:
                return error_response("address @: missing port in address", 400)
            remote = f"{client[0]}:{port}"
    if fields["owner"] and source == "api":  # a guest cannot be heard from
        if not is_owner_name(fields["owner"]):
            return error_response("owner: want 1 to 64 of A-Z a-z 0-9 . _ @ : -", 400)
        await network.owned.add(fields["owner"], ForwardEntry(local, protocol, remote))
        return None
    await network.forwards.expose(local, remote, protocol, source=source)
    return None


def _deny(network: Network, local: str, remote: str, protocol: str) -> Response:
    """A guest may not have the host make or replace files and pipes (specs/gvproxy.md section 2.5, SECURITY)."""
    reason = f"{protocol} forwards may not be asked for from inside the virtual network; use the host's API"
    network.events.emit(
        "forward.failed", local=local, remote=remote, protocol=protocol, owner=None, source="guest", reason=reason
    )
    return error_response(reason, 403)


async def _unexpose(network: Network, body: bytes) -> Response | None:
    fields = gojson.decode_struct(body, "UnexposeRequest", ("local", "protocol"))
    await network.forwards.unexpose(fields["local"], fields["protocol"] or "tcp")
    return None


def split_host_port(address: str) -> tuple[str, str]:
    """Go's net.SplitHostPort.

    Raises:
        ConfigError: with Go's text.
    """

    def fail(why: str) -> ConfigError:
        return ConfigError(f"address {address}: {why}" if address else why)

    last = address.rfind(":")
    if last < 0:
        raise fail("missing port in address")
    opening = closing = 0  # where a bracket may no longer be
    if address.startswith("["):
        end = address.find("]")
        if end < 0:
            raise fail("missing ']' in address")
        if end + 1 != last:
            many = address[end + 1 : end + 2] == ":"
            raise fail("too many colons in address" if many else "missing port in address")
        host, opening, closing = address[1:end], 1, end + 1
    else:
        host = address[:last]
        if ":" in host:
            raise fail("too many colons in address")
    for bracket, start in (("[", opening), ("]", closing)):
        if bracket in address[start:]:
            raise fail(f"unexpected '{bracket}' in address")
    return host, address[last + 1 :]


# Tables


def _add_tables(app: QuartTrio, network: Network) -> None:
    async def stats() -> Response:
        return json_response(network.statistics())

    async def cam() -> Response:
        return json_response(network.cam())

    async def leases() -> Response:
        return json_response(network.leases.all(network.driver.now()))

    async def lease(ip: str) -> Response:
        if request.method != "DELETE":
            return error_response("delete only", 405)
        try:
            mac = network.leases.remove(parse_ip(ip))
        except ConfigError as error:
            return error_response(str(error), 400)
        if mac is None:
            return error_response(f"no lease of {ip} to remove", 404)
        network.events.emit("lease.removed", ip=ip, mac=format_mac(mac))
        return Response(b"", 200)

    async def flows() -> Response:
        return json_response(network.flows.all(network.driver.now()), sort_keys=False)

    _route(app, "/stats", "stats", stats)
    _route(app, "/cam", "cam", cam)
    _route(app, "/leases", "leases", leases)
    _route(app, "/leases/<ip>", "lease", lease)
    _route(app, "/services/dhcp/leases", "dhcp_leases", leases)
    _route(app, "/flows", "flows", flows)


def _add_health(app: QuartTrio) -> None:
    async def healthz() -> Response:
        return Response("ok\n", 200, content_type=TEXT)

    _route(app, "/healthz", "healthz", healthz)


# Events


def _add_events(app: QuartTrio, source: EventSource) -> None:
    subscribers: set[object] = set()

    async def events() -> Response | None:
        try:
            since, types = event_stream.parse_query(websocket.args.get("since"), websocket.args.get("types"))
        except ConfigError as error:
            return error_response(str(error), 400)
        if len(subscribers) >= MAX_SUBSCRIBERS:
            return error_response(f"{MAX_SUBSCRIBERS} programs are reading events already", 503)
        with event_stream.Subscription(source.events, since=since, types=types) as subscription:
            subscribers.add(subscription)
            try:
                # Quart accepts with the first message otherwise, which may be a long time coming.
                await websocket.accept()
                await event_stream.send_events(subscription, websocket)
                await websocket.close(1003, "this socket only sends")
            except Exception as error:
                if type(error).__name__ != "ClientDisconnectedError":  # Quart 0.23's way to say that the client left
                    raise
            finally:
                subscribers.discard(subscription)
        return None

    app.add_websocket("/events", "events", events)
