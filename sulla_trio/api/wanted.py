"""Owned forwards over HTTP: a whole wanted set by ``PUT /v1/forwards``, the same over a websocket, and heart-beats.

Ours, not gvproxy's; on the host's API only. An owner is a name. One who speaks by HTTP lives for `ttl` seconds after each
request that names him, one who speaks over the websocket for as long as that is open.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Annotated, Any, Final, Protocol

import msgspec
from quart import Response, request, websocket
from quart_trio import QuartTrio

from sulla_trio.errors import ForwardError
from sulla_trio.forward.inbound import ForwardEntry
from sulla_trio.forward.owned import DEFAULT_TTL, MAX_WANTED, WantedPort

JSON: Final = "application/json"
MAX_TTL: Final = 3600.0
_OWNER: Final = r"\A[A-Za-z0-9._@:-]{1,64}\Z"
OwnerName = Annotated[str, msgspec.Meta(pattern=_OWNER)]
Ttl = Annotated[float, msgspec.Meta(ge=1, le=MAX_TTL)]


class Owned(Protocol):
    """What is needed of `forward.owned.OwnedForwards`."""

    async def add(self, name: str, entry: ForwardEntry) -> None: ...
    async def put(self, name: str, entries: Sequence[ForwardEntry], *, ttl: float | None) -> list[WantedPort]: ...
    def heard(self, name: str, ttl: float) -> bool: ...
    def end(self, name: str) -> bool: ...
    def all(self) -> list[WantedPort]: ...


class Forwards(Protocol):
    """What is needed of `forward.inbound.ForwardTable`."""

    def all(self) -> list[ForwardEntry]: ...


class Network(Protocol):
    """What is needed of `vnet.network.VirtualNetwork`."""

    @property
    def owned(self) -> Owned: ...
    @property
    def forwards(self) -> Forwards: ...


class Wanted(msgspec.Struct):
    """One forward in a set."""

    local: Annotated[str, msgspec.Meta(max_length=300)]
    remote: Annotated[str, msgspec.Meta(max_length=300)]
    protocol: Annotated[str, msgspec.Meta(max_length=16)] = "tcp"


class WantedSet(msgspec.Struct):
    """A message of the websocket."""

    forwards: Annotated[list[Wanted], msgspec.Meta(max_length=MAX_WANTED)]


class OwnedSet(WantedSet, kw_only=True):
    """The body of a PUT."""

    owner: OwnerName
    ttl: Ttl = DEFAULT_TTL


class HeartBeat(msgspec.Struct):
    """The body of a heart-beat; empty is the same as ``{}``."""

    ttl: Ttl = DEFAULT_TTL


def is_owner_name(text: str) -> bool:
    """Whether `text` may name an owner."""
    return re.fullmatch(_OWNER, text) is not None


def add_wanted(app: QuartTrio, network: Network) -> None:
    """Add ``/v1/forwards`` and ``/v1/owners/NAME`` to the host's application."""

    async def forwards() -> Response:
        if request.method == "GET":
            return _json(_everything(network))
        if request.method != "PUT":
            return _refuse("GET or PUT", 405)
        return await _answer(_put(network, await request.body))

    async def owner(name: str) -> Response:
        if request.method == "DELETE":
            known = network.owned.end(name)
        elif request.method == "POST":
            try:
                beat = msgspec.json.decode(await request.body or b"{}", type=HeartBeat)
            except msgspec.MsgspecError as error:
                return _refuse(str(error), 400)
            known = network.owned.heard(name, beat.ttl)
        else:
            return _refuse("POST or DELETE", 405)
        return _json({}) if known else _refuse(f"no owner {name}", 404)

    app.add_url_rule("/v1/forwards", "v1_forwards", forwards, methods=["GET"], provide_automatic_options=False)
    app.add_url_rule("/v1/owners/<name>", "v1_owners", owner, methods=["GET"], provide_automatic_options=False)
    _add_websocket(app, network)


def _add_websocket(app: QuartTrio, network: Network) -> None:
    numbers = itertools.count(1)

    async def owned() -> None:
        name = f"websocket-{next(numbers)}"
        try:
            await websocket.accept()
            while True:
                message = await websocket.receive()
                try:
                    wanted = msgspec.json.decode(message, type=WantedSet)
                    ports = await network.owned.put(name, _entries(wanted), ttl=None)
                    answer: dict[str, Any] = {"owner": name, "forwards": [_port(port) for port in ports]}
                except (msgspec.MsgspecError, UnicodeError, RecursionError, ForwardError) as error:
                    answer = {"owner": name, "error": str(error)}
                await websocket.send(msgspec.json.encode(answer).decode())
        except Exception as error:
            if type(error).__name__ != "ClientDisconnectedError":  # Quart 0.23's way to say that the client left
                raise
        finally:
            network.owned.end(name)

    app.add_websocket("/v1/forwards", "v1_forwards_owned", owned)


async def _put(network: Network, body: bytes) -> dict[str, Any]:
    wanted = msgspec.json.decode(body, type=OwnedSet)
    ports = await network.owned.put(wanted.owner, _entries(wanted), ttl=wanted.ttl)
    return {"owner": wanted.owner, "forwards": [_port(port) for port in ports]}


def _entries(wanted: WantedSet) -> list[ForwardEntry]:
    return [ForwardEntry(one.local, one.protocol, one.remote) for one in wanted.forwards]


def _port(port: WantedPort) -> dict[str, str]:
    entry = port.entry
    answer = {"local": entry.local, "remote": entry.remote, "protocol": entry.protocol, "state": str(port.state)}
    if port.by is not None:
        answer["by"] = port.by
    if port.reason is not None:
        answer["reason"] = port.reason
    return answer


def _everything(network: Network) -> dict[str, Any]:
    """Every forward that is there, and every one that an owner waits for."""
    there = [
        {
            "local": entry.local,
            "remote": entry.remote,
            "protocol": entry.protocol,
            "state": "active",
            "source": entry.source,
            "owner": entry.owner,
        }
        for entry in network.forwards.all()
    ]
    waiting = [
        {**_port(port), "source": port.entry.source, "owner": port.entry.owner}
        for port in network.owned.all()
        if port.state != "active"
    ]
    return {"forwards": [*there, *waiting]}


async def _answer(work: Any) -> Response:
    try:
        return _json(await work)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        return _refuse(str(error), 400)
    except ForwardError as error:
        return _refuse(str(error), 409)


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value) + b"\n", 200, content_type=JSON)


def _refuse(text: str, status: int) -> Response:
    return Response(msgspec.json.encode({"error": text}) + b"\n", status, content_type=JSON)
