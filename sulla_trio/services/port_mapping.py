"""The PortMapping that the guest agent sends to wsl-proxy: one JSON value, read byte by byte, into bindings.

Source: specs/daemons.md section 6.1. As lenient as the Go decoder (names in any case, unknown fields, nulls), and bounded
where it is not. ``connectAddrs``, a left-over that nobody fills, is not looked at.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any, Final, NamedTuple

from sulla_trio.errors import ConfigError
from sulla_trio.services import gojson
from sulla_trio.services.gojson_scan import GoJsonError, Scanner

MAX_MESSAGE: Final = (64 << 10) - 1
"""Bytes of one message: a range of 1,000 ports published on two addresses is 60 KB. 64 KiB and more are refused."""
MAX_BINDINGS: Final = 2048
"""Bindings in one message: twice what fits with its addresses written out."""

ANY4: Final = bytes(4)
ANY6: Final = bytes(16)
LOCALHOST4: Final = b"\x7f\0\0\1"
LOCALHOST6: Final = bytes(15) + b"\1"


class Binding(NamedTuple):
    """One published port, as it was sent. Equal bindings are the same one: what a removal repeats."""

    container_port: str
    """Logged, and part of what tells two bindings from one another; never listened on."""
    protocol: str
    """Lower-case; ``tcp`` and ``udp`` mean something."""
    host_ip: str
    host_port: str


class PortMapping(NamedTuple):
    """One message: bindings to add, or to remove."""

    remove: bool
    bindings: tuple[Binding, ...]


class Listening(NamedTuple):
    """One address that a binding stands for."""

    address: bytes
    """4 or 16 bytes; 16 zeros are IPv6 alone, never IPv4 besides."""
    port: int
    implied: bool
    """The IPv6 side of an address that does not name IPv6: where there is no IPv6, nothing is missing."""


class MappingReader:
    """Reads one message from the chunks of a connection."""

    def __init__(self) -> None:
        self._scanner = Scanner()
        self._held = bytearray()

    def feed(self, chunk: bytes) -> PortMapping | None:
        """The mapping as soon as its last byte is there, None before; what follows it is ignored.

        Raises:
            GoJsonError: not JSON, of another shape, or too large.
        """
        end = self._scanner.scan(chunk)
        size = len(self._held) + (len(chunk) if end < 0 else end)
        if size > MAX_MESSAGE:
            raise GoJsonError(f"the message is larger than {MAX_MESSAGE} bytes")
        self._held += chunk if end < 0 else chunk[:end]
        return None if end < 0 else decode(gojson.load(bytes(self._held)))

    def finish(self) -> PortMapping:
        """The stream has ended: the mapping, if it is complete.

        Raises:
            GoJsonError: nothing, or less than one value, has come; or as `feed`.
        """
        self._scanner.finish()
        return decode(gojson.load(bytes(self._held)))


def decode(value: Any) -> PortMapping:
    """The mapping that a JSON value means.

    Raises:
        GoJsonError: a field of another type, or too many bindings.
    """
    remove, ports = False, dict[str, list[tuple[str, str]]]()
    for name, content in gojson.fields_of(value, "types.PortMapping"):
        match name.lower():
            case "remove":
                remove = gojson.boolean(content, remove, "PortMapping.remove")
            case "ports" if content is None:
                ports = {}
            case "ports":
                for key, listed in gojson.fields_of(content, "nat.PortMap", "PortMapping.ports"):
                    ports[gojson.string(key, key, "")] = _host_addresses(listed)
    if sum(map(len, ports.values())) > MAX_BINDINGS:
        raise GoJsonError(f"the message has more than {MAX_BINDINGS} bindings")
    return PortMapping(remove, tuple(_bindings(ports)))


def _host_addresses(value: Any) -> list[tuple[str, str]]:
    """(HostIp, HostPort) of each binding of one container port."""
    if value is None:
        return []
    if not isinstance(value, list) or isinstance(value, gojson.JsonObject):
        raise gojson.mismatch(value, "PortMapping.ports", "[]nat.PortBinding")
    found = []
    for item in value:
        host_ip = host_port = ""
        for name, content in gojson.fields_of(item, "nat.PortBinding", "PortMapping.ports"):
            match name.lower():
                case "hostip":
                    host_ip = gojson.string(content, host_ip, "PortBinding.ports.HostIp")
                case "hostport":
                    host_port = gojson.string(content, host_port, "PortBinding.ports.HostPort")
        found.append((host_ip, host_port))
    return found


def _bindings(ports: dict[str, list[tuple[str, str]]]) -> list[Binding]:
    found = []
    for key, addresses in ports.items():
        container_port, _, protocol = key.partition("/")
        found += [Binding(container_port, protocol.lower() or "tcp", *address) for address in addresses]
    return found


def listenings(binding: Binding) -> tuple[Listening, ...]:
    """What to listen on for `binding`. The port is the host's on both sides.

    No HostIp, or ``localhost``, is the loopback of both families; ``0.0.0.0`` is every address of both, as the Go daemon's
    one dual-stack socket is; ``::`` and every other address are themselves.

    Raises:
        ConfigError: HostPort is not a port, or HostIp no address; Go's words.
    """
    port = _port(binding.host_port)
    if binding.host_ip in ("", "localhost"):
        return Listening(LOCALHOST4, port, False), Listening(LOCALHOST6, port, True)
    try:
        address = ipaddress.ip_address(binding.host_ip)
    except ValueError:
        address = None
    if address is None or (isinstance(address, ipaddress.IPv6Address) and address.scope_id):
        raise ConfigError(
            f"failed creating listener for published port [{binding.host_port}]: "
            f"listen {binding.protocol}: lookup {binding.host_ip}: no such host"
        )
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    if address.packed == ANY4:
        return Listening(ANY4, port, False), Listening(ANY6, port, True)
    return (Listening(address.packed, port, False),)


def _port(text: str) -> int:
    # Go takes an empty port for 0, and 0 for any: a port that nobody can know is no published port.
    if not text:
        reason = "value is empty"
    elif not re.fullmatch(r"[+-]?[0-9]+", text):
        reason = "invalid syntax"
    elif len(text) > 10 or not 1 <= int(text) <= 65_535:
        reason = "value out of range (1\u201365535)"
    else:
        return int(text)
    raise ConfigError(f"parsing port error: invalid port '{text}': {reason}")
