"""The text of a state file: forwards and leases as they are kept over a restart of host-switch.

JSON, one object: ``version``, ``forwards`` (local, remote, protocol, source) and ``leases`` (ip, mac, and `expires` in unix
seconds, for no other clock outlives the process). Whoever can write the file is not trusted with more than that: every
field is checked before anything is made of it. Source: DESIGN section 5.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Final, Literal, NamedTuple

import msgspec

from sulla_trio.config import format_ip, format_mac, parse_ip, parse_mac
from sulla_trio.errors import ConfigError
from sulla_trio.services.leases import MAX_LEASES, StoredLease

VERSION: Final = 1
"""Raised whenever an older host-switch would misread the file."""
MAX_BYTES: Final = 32 << 20
"""Twice what `MAX_FORWARDS` forwards and a full lease table take."""
MAX_FORWARDS: Final = 131_072
"""Every port of one host address, for TCP and for UDP."""
MAX_ADDRESS: Final = 300
"""Characters of an address as it was given: a DNS name has 253."""
MAX_TEXT: Final = 200
"""Characters of an error that quotes the file (the name of a field it does not know)."""
MAX_UNIX: Final = 1 << 40
"""Far beyond any lease, and a number that every float holds exactly."""
PROTOCOLS: Final = ("tcp", "udp")
SOURCES: Final = ("api", "guest")
"""Whose forwards are kept; those of the command line (static) are there again because it is."""


class StoredForward(NamedTuple):
    """One forward, as the API was asked for it."""

    local: str
    remote: str
    protocol: str
    source: str


class State(NamedTuple):
    """What one file holds."""

    forwards: Sequence[StoredForward] = ()
    leases: Sequence[StoredLease] = ()


# The file's own shape. msgspec checks types and bounds, and says by path what is wrong.


class _Version(msgspec.Struct):
    version: Annotated[int, msgspec.Meta(ge=1)]


class _Forward(msgspec.Struct, forbid_unknown_fields=True):
    local: str
    remote: str
    protocol: str
    source: str


class _Lease(msgspec.Struct, forbid_unknown_fields=True):
    ip: Annotated[str, msgspec.Meta(max_length=15)]
    mac: Annotated[str, msgspec.Meta(max_length=17)]
    expires: Annotated[int, msgspec.Meta(ge=0, le=MAX_UNIX)]


class _File(msgspec.Struct, forbid_unknown_fields=True):
    version: Literal[1]
    forwards: Annotated[list[_Forward], msgspec.Meta(max_length=MAX_FORWARDS)]
    leases: Annotated[list[_Lease], msgspec.Meta(max_length=MAX_LEASES)]


def emit(state: State) -> bytes:
    """A file that `parse` reads: `state`, its times rounded up to seconds.

    What `parse` would not take (an address with a zero-width character in it, which a resolver takes) is left out: a guest
    must not be able to make the file unreadable. So are the last ones beyond the bounds.
    """
    leases = [
        _Lease(format_ip(lease.ip), format_mac(lease.mac), min(max(math.ceil(lease.expires), 0), MAX_UNIX))
        for lease in state.leases[:MAX_LEASES]
    ]
    forwards = [_Forward(*one) for one in state.forwards[:MAX_FORWARDS] if _fault(one) is None]
    return msgspec.json.format(msgspec.json.encode(_File(VERSION, forwards, leases)), indent=1) + b"\n"


def parse(data: bytes) -> State:
    """Read the bytes of a file.

    Raises:
        ConfigError: not such a file, or one of a newer version; the text says what is wrong, and where.
    """
    if len(data) > MAX_BYTES:
        raise ConfigError(f"longer than {MAX_BYTES} bytes")
    try:
        # The version alone comes first: whatever else a newer one has, it is told as newer and not as broken.
        version = msgspec.json.decode(data, type=_Version).version
        if version > VERSION:
            raise ConfigError(f"version {version} is newer than this host-switch's, which is {VERSION}")
        file = msgspec.json.decode(data, type=_File)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(str(error)[:MAX_TEXT]) from None
    forwards = [_forward(index, one) for index, one in enumerate(file.forwards)]
    leases = [_lease(index, one) for index, one in enumerate(file.leases)]
    _check_distinct("forwards", ((one.protocol, one.local) for one in forwards))
    _check_distinct("leases", (one.ip for one in leases))
    _check_distinct("leases", (one.mac for one in leases))
    return State(forwards, leases)


def _forward(index: int, forward: _Forward) -> StoredForward:
    stored = StoredForward(forward.local, forward.remote, forward.protocol, forward.source)
    fault = _fault(stored)
    if fault is not None:
        raise ConfigError(f"{fault} - at `$.forwards[{index}]`")
    return stored


def _fault(forward: StoredForward) -> str | None:
    """What is wrong with it, without quoting what may be anything."""
    if forward.protocol not in PROTOCOLS:
        return f"protocol is none of {', '.join(PROTOCOLS)}"
    if forward.source not in SOURCES:
        return f"source is none of {', '.join(SOURCES)}"
    if len(forward.local) > MAX_ADDRESS or not forward.local.isprintable():
        return "local is no address"
    host, _, ports = forward.remote.rpartition(":")
    try:
        parse_ip(host)
    except ConfigError:
        return "remote is not IPv4:port"
    if not re.fullmatch("[0-9]{1,5}(-[0-9]{1,5})?", ports) or any(int(port) > 65_535 for port in ports.split("-")):
        return "remote has no port of 0 to 65535, and no range of them"
    return None


def _lease(index: int, lease: _Lease) -> StoredLease:
    try:
        ip, mac = parse_ip(lease.ip), parse_mac(lease.mac)
    except ConfigError as error:
        raise ConfigError(f"{error} - at `$.leases[{index}]`") from None
    if mac[0] & 1 or not any(mac):
        raise ConfigError(f"{lease.mac} is no host's MAC address - at `$.leases[{index}]`")
    return StoredLease(ip, mac, float(lease.expires))


def _check_distinct(what: str, keys: Iterable[object]) -> None:
    seen = set()
    for index, key in enumerate(keys):
        if key in seen:
            raise ConfigError(f"the same again - at `$.{what}[{index}]`")
        seen.add(key)
