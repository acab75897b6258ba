"""DNS of the gateway: local zones first, everything else is forwarded as the bytes it came in.

The rules for a name inside a local zone; the first zone that holds the name decides, letters in any case:

=========================================  ======================  ==========================
the name                                   A, AAAA                 any other type
=========================================  ======================  ==========================
has a record                               it, or NODATA           NODATA
is the zone itself, or above a record      default IP, or NODATA   forwarded
is anything else, the zone has a default   the default, or NODATA  forwarded
is anything else                           NXDOMAIN                forwarded
=========================================  ======================  ==========================

A name above a record exists (RFC 8020: NXDOMAIN there would deny what is below), so it is never NXDOMAIN. Outside the
zones an AAAA query gets NODATA at once while the network has no IPv6: an address nobody can reach costs each connection
a time-out. Source: DESIGN section 5, specs/gvproxy.md section 6.3 (there case-sensitive, and A only).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Final, NamedTuple, TypeAlias

from sulla_trio.config import NetworkConfig
from sulla_trio.errors import BadPacket
from sulla_trio.services.dns_message import (
    BADVERS,
    CLASS_ANY,
    CLASS_IN,
    FLAG_RESPONSE,
    FORMERR,
    HEADER_LENGTH,
    NOERROR,
    NOTIMP,
    NXDOMAIN,
    OPCODE_QUERY,
    TYPE_A,
    TYPE_AAAA,
    Question,
    fit_udp,
    matches,
    parse,
    question_of,
    question_text,
    rcode_text,
    reply,
    rewrite_id,
    servfail,
)

__all__ = [
    "Answer",
    "Decision",
    "Forward",
    "Ignore",
    "Question",
    "Record",
    "Zone",
    "Zones",
    "fit_udp",
    "matches",
    "parse_resolv_conf",
    "question_of",
    "question_text",
    "rcode_text",
    "reply",
    "rewrite_id",
    "servfail",
]

MAX_NAMESERVERS: Final = 3
"""resolv.conf(5) MAXNS; further ones are ignored there as well."""
_ADDRESS_LENGTH: Final = {TYPE_A: 4, TYPE_AAAA: 16}


class Record(NamedTuple):
    """An address for a name relative to its zone, or for each name that `regexp` is found in (gvproxy's,
    unanchored)."""

    name: str
    """``host``, ``a.b``; empty: the zone itself, or no name at all when there is a `regexp`."""
    ip: bytes
    """4 bytes answer A, 16 bytes AAAA."""
    regexp: re.Pattern[str] | None = None
    """The operator's own, hence trusted not to take exponential time on 253 characters."""


class Zone(NamedTuple):
    """A local zone. `name` is fully qualified; ``""`` and ``"."`` hold every name."""

    name: str
    records: tuple[Record, ...] = ()
    default_ip: bytes | None = None
    """What names without a record have."""


class Answer(NamedTuple):
    """Send `message` back (by UDP through `fit_udp`)."""

    message: bytes


class Forward(NamedTuple):
    """Ask an upstream with `query`; whatever comes of it, the guest gets an answer."""

    query: bytes


class Ignore(NamedTuple):
    """Not a query: no answer. `reason` is a counter name."""

    reason: str


Decision: TypeAlias = Answer | Forward | Ignore
_Labels: TypeAlias = tuple[bytes, ...]


def _labels(name: str) -> _Labels:
    return tuple(label.encode() for label in name.lower().split(".") if label)


class Zones:
    """The local zones in their order, and the decision about each query.

    `ipv6`: whether the network carries IPv6; if not, AAAA queries outside the zones get NODATA (see above).
    """

    def __init__(self, zones: Iterable[Zone] = (), *, ipv6: bool = False) -> None:
        self._ipv6 = ipv6
        self._zones: list[Zone] = []
        self._compiled: list[tuple[_Labels, dict[_Labels, list[bytes]], frozenset[_Labels], Zone]] = []
        for zone in zones:
            self.add(zone)

    @classmethod
    def built_in(cls, network: NetworkConfig) -> Zones:
        """``gateway`` and ``host`` in each zone of the network."""
        records = (Record("gateway", network.gateway_ip), Record("host", network.host_ip))
        return cls(Zone(name, records) for name in network.zones)

    def all(self) -> tuple[Zone, ...]:
        """The zones in the order they are looked at."""
        return tuple(self._zones)

    def add(self, zone: Zone) -> None:
        """Append a zone, or merge it into the one of exactly that name, which keeps its place.

        Merged: the new records go before the old ones and the default is the new one's, even if it has none
        (specs/gvproxy.md section 2.7).
        """
        for index, old in enumerate(self._zones):
            if old.name == zone.name:
                self._zones[index] = merged = Zone(zone.name, zone.records + old.records, zone.default_ip)
                self._compiled[index] = self._compile(merged)
                return
        self._zones.append(zone)
        self._compiled.append(self._compile(zone))

    @staticmethod
    def _compile(zone: Zone) -> tuple[_Labels, dict[_Labels, list[bytes]], frozenset[_Labels], Zone]:
        by_name: dict[_Labels, list[bytes]] = {}
        for record in zone.records:
            if record.regexp is None or record.name:
                by_name.setdefault(_labels(record.name), []).append(record.ip)
        above = frozenset(name[depth:] for name in by_name for depth in range(1, len(name) + 1))
        return _labels(zone.name), by_name, above, zone

    def decide(self, query: bytes) -> Decision:
        """What to do about one message from a guest. Never raises, and its work is bounded whatever the bytes.

        Not a query (short, or a response): Ignore. Another opcode: NOTIMP. Malformed, or not exactly one question:
        FORMERR. An EDNS version we do not know: BADVERS.
        """
        if len(query) < HEADER_LENGTH:
            return Ignore("dns_short")
        flags = int.from_bytes(query[2:4], "big")
        if flags & FLAG_RESPONSE:
            return Ignore("dns_response")
        if flags >> 11 & 0xF != OPCODE_QUERY:
            return Answer(reply(query, NOTIMP))
        try:
            parsed = parse(query)
        except BadPacket:
            return Answer(reply(query, FORMERR))
        if parsed.edns_version != 0:
            return Answer(reply(query, BADVERS))
        question = parsed.question
        if question.rclass in (CLASS_IN, CLASS_ANY):
            outcome = self._look_up(question)
            if outcome is not None:
                return Answer(reply(query, *outcome))
            if question.type == TYPE_AAAA and not self._ipv6:
                return Answer(reply(query, NOERROR))
        return Forward(query)

    def _look_up(self, question: Question) -> tuple[int, list[bytes]] | None:
        """(rcode, addresses) by the table at the top; None: not ours."""
        key = question.key
        for apex, by_name, above, zone in self._compiled:
            depth = len(key) - len(apex)
            if depth < 0 or key[depth:] != apex:
                continue
            prefix = key[:depth]
            length = _ADDRESS_LENGTH.get(question.type)
            recorded = self._recorded(prefix, by_name, zone)
            if recorded:
                return NOERROR, [ip for ip in recorded if len(ip) == length][:1]
            if length is None or (depth == 0 and not apex):  # the root itself is never ours
                return None
            if zone.default_ip is not None:
                return NOERROR, [zone.default_ip] if len(zone.default_ip) == length else []
            return (NOERROR if depth == 0 or prefix in above else NXDOMAIN), []
        return None

    @staticmethod
    def _recorded(prefix: _Labels, by_name: dict[_Labels, list[bytes]], zone: Zone) -> list[bytes]:
        """Addresses of the records that match, in the zone's order of names, then of expressions."""
        found = list(by_name.get(prefix, ()))
        if prefix:
            text = b".".join(prefix).decode("latin-1")
            found += [record.ip for record in zone.records if record.regexp is not None and record.regexp.search(text)]
        return found


def parse_resolv_conf(text: str) -> tuple[list[str], list[str]]:
    """(nameservers, search list) of resolv.conf(5) text. What does not parse is skipped; never raises.

    At most `MAX_NAMESERVERS` literal addresses, IPv6 with its scope; the last of the ``search`` and ``domain`` lines
    counts.
    """
    nameservers: list[str] = []
    search: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if not words or words[0][0] in "#;":
            continue
        if words[0] == "nameserver" and len(words) > 1 and len(nameservers) < MAX_NAMESERVERS:
            try:
                ipaddress.ip_address(words[1])
            except ValueError:
                continue
            nameservers.append(words[1])
        elif words[0] == "search":
            search = words[1:]
        elif words[0] == "domain":
            search = words[1:2]
    return nameservers, search
