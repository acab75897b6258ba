"""Only BadPacket escapes, emit(parse(x)) is stable on the second round, and a search list costs bounded work and is clean text."""

from __future__ import annotations

import re

from sulla_trio.errors import BadPacket
from sulla_trio.wire import dhcp

DICTIONARY = (b"\x63\x82\x53\x63", b"\x35\x01\x01", b"\x34\x01\x03", b"\x77\x05", b"\x03eng\x00", b"\xc0\x00", b"\xff")
_CLEAN = re.compile(r"[A-Za-z0-9_.-]+")


def fuzz_search(value: bytes) -> None:
    """A search list: what is taken can be written to resolv.conf, and comes back the same."""
    try:
        names = dhcp.parse_search(value)
    except BadPacket:
        return
    assert len(names) <= dhcp.MAX_SEARCH_NAMES
    assert all(_CLEAN.fullmatch(name) for name in names)
    assert dhcp.parse_search(dhcp.emit_search(names)) == names


def fuzz_one(data: bytes) -> None:
    """`data` is the payload of a datagram; its part behind the fixed header is also tried as a search list."""
    fuzz_search(data[240:])
    try:
        message = dhcp.parse(memoryview(data))
    except BadPacket:
        return
    assert dhcp.format(message).isprintable()
    fuzz_search(message.options.get(dhcp.DOMAIN_SEARCH, b""))
    first = dhcp.emit(message)
    again = dhcp.parse(first)
    assert again == message
    assert dhcp.emit(again) == first
