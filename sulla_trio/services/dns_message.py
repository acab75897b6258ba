"""The little of a DNS message that the gateway reads and writes: header, one question, EDNS, address answers (RFC 1035,
6891).

Upstream's answers are never parsed: they pass as bytes, checked by `matches` and cut by `fit_udp`. So no name is ever
decompressed and no message costs more than its first few hundred bytes, however long or hostile.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from sulla_trio.errors import BadPacket

HEADER_LENGTH: Final = 12
MAX_NAME: Final = 255  # RFC 1035 2.3.4, length octets and the root included
MAX_LABEL: Final = 63
MIN_UDP: Final = 512  # RFC 1035 4.2.1: what a querier without EDNS takes
MAX_UDP: Final = 65_507  # what a UDP datagram over IPv4 can carry
EDNS_SIZE: Final = 1232  # what we say we take ourselves: no fragments on any path (DNS flag day 2020)
LOCAL_TTL: Final = 0
"""Seconds; as gvproxy: local records change at any time and asking again costs nothing."""

TYPE_A: Final = 1
TYPE_AAAA: Final = 28
TYPE_OPT: Final = 41
CLASS_IN: Final = 1
CLASS_ANY: Final = 255
OPCODE_QUERY: Final = 0

NOERROR: Final = 0
FORMERR: Final = 1
SERVFAIL: Final = 2
NXDOMAIN: Final = 3
NOTIMP: Final = 4
REFUSED: Final = 5
BADVERS: Final = 16  # RFC 6891 6.1.3; its upper bits go into the OPT

FLAG_RESPONSE: Final = 0x8000
FLAG_TRUNCATED: Final = 0x0200
_FLAG_AVAILABLE: Final = 0x0080  # RA
_OPCODE_MASK: Final = 0x7800
_COPIED_FLAGS: Final = 0x0110  # RD and CD come back as they were (RFC 1035 4.1.1, RFC 4035 3.2.2)
_DNSSEC_OK: Final = 0x8000
_ERRORS_WITHOUT_QUESTION: Final = frozenset({FORMERR, SERVFAIL, NOTIMP, REFUSED})

_HEADER: Final = struct.Struct("!6H")
_QUESTION_TAIL: Final = struct.Struct("!HH")
_RECORD_TAIL: Final = struct.Struct("!HHIH")

_RCODES: Final = ("NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED")
_TYPES: Final = (
    (1, "A"), (2, "NS"), (5, "CNAME"), (6, "SOA"), (12, "PTR"), (15, "MX"), (16, "TXT"), (28, "AAAA"), (33, "SRV"),
    (35, "NAPTR"), (43, "DS"), (48, "DNSKEY"), (64, "SVCB"), (65, "HTTPS"), (252, "AXFR"), (255, "ANY"), (257, "CAA"),
)  # fmt: skip


class Question(NamedTuple):
    """The one question of a message."""

    labels: tuple[bytes, ...]
    """The name's labels as sent, without the root."""
    type: int
    rclass: int

    @property
    def key(self) -> tuple[bytes, ...]:
        """The labels for comparing: ASCII letters in lower case (RFC 4343 section 3)."""
        return tuple(label.lower() for label in self.labels)

    @property
    def name(self) -> str:
        """Presentation form with the final dot; safe to print whatever the bytes are (RFC 4343 section 2.1)."""
        return "".join(_escape(label) + "." for label in self.labels) or "."


class Query(NamedTuple):
    """What is read of a message: see `parse`."""

    id: int
    flags: int
    question: Question
    question_end: int
    """Offset after the question; it begins at `HEADER_LENGTH`."""
    edns_size: int | None
    """UDP payload size of the OPT; None without EDNS."""
    edns_version: int
    dnssec_ok: bool


def parse(message: bytes) -> Query:
    """Header, question and OPT of a query. Raises BadPacket and nothing else.

    The counts are bounded as in gvproxy (one question, at most 1 answer, 1 authority and 2 additional records), so the
    work is.
    """
    if len(message) < HEADER_LENGTH:
        raise BadPacket("dns_short")
    identifier, flags, questions, answers, authorities, additionals = _HEADER.unpack_from(message)
    if questions != 1 or answers > 1 or authorities > 1 or additionals > 2:
        raise BadPacket("dns_counts")
    labels, offset = _read_name(message, HEADER_LENGTH)
    if offset + 4 > len(message):
        raise BadPacket("dns_short")
    question = Question(labels, *_QUESTION_TAIL.unpack_from(message, offset))
    question_end = offset = offset + 4
    edns_size, ttl = None, 0
    for index in range(answers + authorities + additionals):
        start = offset
        rtype, rclass, rttl, offset = _read_record(message, offset)
        if rtype == TYPE_OPT and index >= answers + authorities:
            if edns_size is not None or message[start] != 0:  # RFC 6891 6.1.1 and 6.1.2: only one, at the root
                raise BadPacket("dns_opt")
            edns_size, ttl = rclass, rttl
    return Query(identifier, flags, question, question_end, edns_size, ttl >> 16 & 0xFF, bool(ttl & _DNSSEC_OK))


def _read_name(message: bytes, offset: int) -> tuple[tuple[bytes, ...], int]:
    """Labels of an uncompressed name and the offset after it. A question's name has nothing before it to point to."""
    labels: list[bytes] = []
    start = offset
    while True:
        if offset >= len(message):
            raise BadPacket("dns_short")
        length = message[offset]
        offset += 1
        if offset + length - start > MAX_NAME or length > MAX_LABEL:
            raise BadPacket("dns_name")
        if length == 0:
            return tuple(labels), offset
        if offset + length > len(message):
            raise BadPacket("dns_short")
        labels.append(message[offset : offset + length])
        offset += length


def _read_record(message: bytes, offset: int) -> tuple[int, int, int, int]:
    """(type, class, ttl, offset after it) of a record whose name may be compressed; it is skipped, never followed."""
    start = offset
    while True:
        if offset >= len(message) or offset - start > MAX_NAME:
            raise BadPacket("dns_record")
        length = message[offset]
        if length & 0xC0 == 0xC0:
            offset += 2
            break
        if length > MAX_LABEL:
            raise BadPacket("dns_record")
        offset += 1 + length
        if length == 0:
            break
    if offset + _RECORD_TAIL.size > len(message):
        raise BadPacket("dns_record")
    rtype, rclass, ttl, length = _RECORD_TAIL.unpack_from(message, offset)
    offset += _RECORD_TAIL.size + length
    if offset > len(message):
        raise BadPacket("dns_record")
    return rtype, rclass, ttl, offset


def reply(query: bytes, rcode: int, addresses: Sequence[bytes] = ()) -> bytes:
    """An answer of our own to `query` (at least a header): its ID, opcode, RD, CD and question as sent, RA set, AA
    clear.

    `addresses` of 4 or 16 bytes become A and AAAA records of the name asked for. There is an OPT when the query had one
    (RFC 6891 section 6.1.1). A query that does not parse is answered with a header alone. Never raises for 12 bytes or
    more.
    """
    try:
        parsed = parse(query)
    except BadPacket:
        identifier, flags = _QUESTION_TAIL.unpack_from(query)
        return _HEADER.pack(identifier, _reply_flags(flags, rcode), 0, 0, 0, 0)
    opt = _opt(parsed, rcode)
    parts = [
        _HEADER.pack(parsed.id, _reply_flags(parsed.flags, rcode), 1, len(addresses), 0, 1 if opt else 0),
        query[HEADER_LENGTH : parsed.question_end],
    ]
    for address in addresses:
        rtype = TYPE_A if len(address) == 4 else TYPE_AAAA
        # 0xc00c points to the question's name, so its case comes back too.
        parts.append(b"\xc0\x0c" + _RECORD_TAIL.pack(rtype, CLASS_IN, LOCAL_TTL, len(address)) + address)
    parts.append(opt)
    return b"".join(parts)


def servfail(query: bytes) -> bytes:
    """What a query gets that nobody could answer: SERVFAIL, never silence."""
    return reply(query, SERVFAIL)


def fit_udp(message: bytes, query: bytes) -> bytes:
    """`message`, an answer to `query`, as it may go by UDP: itself, or when too long for the querier a truncated one.

    The limit is 512 bytes or the size in the query's OPT. A truncated answer has TC, the question and the OPT, and no
    records (RFC 2181 section 9: what is cut is of no use anyway), so the querier comes again by TCP.
    """
    try:
        parsed = parse(query)
    except BadPacket:
        return message[:MIN_UDP]  # only our own header-only answers go to such a query
    limit = MIN_UDP if parsed.edns_size is None else min(max(parsed.edns_size, MIN_UDP), MAX_UDP)
    if len(message) <= limit:
        return message
    flags = int.from_bytes(message[2:4], "big") | FLAG_TRUNCATED
    opt = _opt(parsed, NOERROR)
    header = _HEADER.pack(parsed.id, flags, 1, 0, 0, 1 if opt else 0)
    return header + query[HEADER_LENGTH : parsed.question_end] + opt


def matches(query: bytes, response: bytes) -> bool:
    """Whether `response` answers `query`: same ID, opcode and question, the name in any case (RFC 5452 section 9.1).

    An error without a question (some servers send the header alone) is accepted: all it can say is no. Never raises.
    """
    if len(response) < HEADER_LENGTH or response[:2] != query[:2]:
        return False
    flags, questions = _QUESTION_TAIL.unpack_from(response, 2)
    if not flags & FLAG_RESPONSE or flags & _OPCODE_MASK != int.from_bytes(query[2:4], "big") & _OPCODE_MASK:
        return False
    if questions == 0:
        return flags & 0xF in _ERRORS_WITHOUT_QUESTION
    try:
        end = parse(query).question_end
    except BadPacket:
        return False
    name = slice(HEADER_LENGTH, end - 4)  # lower() of a length octet is itself: it is at most 63
    return (
        questions == 1
        and response[name].lower() == query[name].lower()
        and response[end - 4 : end] == query[end - 4 : end]
    )


def rewrite_id(message: bytes, identifier: int) -> bytes:
    """`message` with another ID (0..65535)."""
    return identifier.to_bytes(2, "big") + message[2:]


def question_of(message: bytes) -> Question | None:
    """The question of a query, or None when it does not parse."""
    try:
        return parse(message).question
    except BadPacket:
        return None


def question_text(message: bytes) -> str:
    """``name. TYPE`` of a query for people, ``?`` when it does not parse."""
    question = question_of(message)
    if question is None:
        return "?"
    types = dict(_TYPES)
    return f"{question.name} {types.get(question.type, f'TYPE{question.type}')}"


def rcode_text(message: bytes) -> str:
    """``NOERROR``, ``NXDOMAIN``... of an answer, ``?`` for less than a header."""
    if len(message) < HEADER_LENGTH:
        return "?"
    rcode = message[3] & 0xF
    return _RCODES[rcode] if rcode < len(_RCODES) else f"RCODE{rcode}"


def _reply_flags(flags: int, rcode: int) -> int:
    return FLAG_RESPONSE | flags & (_OPCODE_MASK | _COPIED_FLAGS) | _FLAG_AVAILABLE | rcode & 0xF


def _opt(query: Query, rcode: int) -> bytes:
    """The OPT of an answer: our size, version 0, the DO bit as it was (RFC 3225 section 3); empty without EDNS."""
    if query.edns_size is None:
        return b""
    ttl = (rcode >> 4) << 24 | (_DNSSEC_OK if query.dnssec_ok else 0)
    return b"\x00" + _RECORD_TAIL.pack(TYPE_OPT, EDNS_SIZE, ttl, 0)


def _escape(label: bytes) -> str:
    return "".join(
        "\\" + chr(byte) if byte in b'."\\' else chr(byte) if 0x21 <= byte <= 0x7E else f"\\{byte:03d}"
        for byte in label
    )
