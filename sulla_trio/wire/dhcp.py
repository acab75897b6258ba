"""DHCP for IPv4 (RFC 2131; options of RFC 2132, long options of RFC 3396, search lists of RFC 3397)."""

from __future__ import annotations

import re
import struct
from typing import Final, NamedTuple

from sulla_trio.config import format_ip, format_mac
from sulla_trio.errors import BadPacket
from sulla_trio.wire.inet import Buffer

BOOTREQUEST: Final = 1
BOOTREPLY: Final = 2
SERVER_PORT: Final = 67
CLIENT_PORT: Final = 68
HTYPE_ETHERNET: Final = 1
BROADCAST_FLAG: Final = 0x8000

PAD: Final = 0
SUBNET_MASK: Final = 1
ROUTER: Final = 3
DNS_SERVER: Final = 6
HOST_NAME: Final = 12
DOMAIN_NAME: Final = 15
INTERFACE_MTU: Final = 26
BROADCAST_ADDRESS: Final = 28
REQUESTED_IP: Final = 50
LEASE_TIME: Final = 51
OVERLOAD: Final = 52
MESSAGE_TYPE: Final = 53
SERVER_ID: Final = 54
PARAMETER_LIST: Final = 55
MESSAGE: Final = 56
MAX_MESSAGE_SIZE: Final = 57
RENEWAL_TIME: Final = 58
REBINDING_TIME: Final = 59
VENDOR_CLASS: Final = 60
CLIENT_ID: Final = 61
RELAY_AGENT: Final = 82
DOMAIN_SEARCH: Final = 119
END: Final = 255

DISCOVER: Final = 1
OFFER: Final = 2
REQUEST: Final = 3
DECLINE: Final = 4
ACK: Final = 5
NAK: Final = 6
RELEASE: Final = 7
INFORM: Final = 8

MIN_LENGTH: Final = 300  # BOOTP's message size: old relays and clients drop shorter ones (RFC 1542 section 2.1)
MAX_SEARCH_NAMES: Final = 64  # large companies have some 60; bounds what compression pointers can blow up to
MAX_NAME: Final = 255  # RFC 1035 section 2.3.4, as encoded
MAX_LABEL: Final = 63
_MESSAGE_NAMES: Final = ("?", "Discover", "Offer", "Request", "Decline", "ACK", "NAK", "Release", "Inform")
_HEADER: Final = struct.Struct("!BBBBIHH4s4s4s4s16s64s128s4s")
_COOKIE: Final = bytes((99, 130, 83, 99))
_LABEL: Final = re.compile(rb"[A-Za-z0-9_-]{1,63}")


class Dhcp(NamedTuple):
    """One message. `chaddr` has `hlen` bytes; `secs` in seconds.

    `options` maps code (1..254) to value in the order of the message, a repeated code's values joined (RFC 3396), and
    without 0 (pad), 52 (overload, already obeyed) and 255 (end). The hop count, sname and file are not kept.
    """

    op: int
    htype: int
    hlen: int
    xid: int
    secs: int
    flags: int
    ciaddr: bytes
    yiaddr: bytes
    siaddr: bytes
    giaddr: bytes
    chaddr: bytes
    options: dict[int, bytes]

    @property
    def message_type(self) -> int | None:
        """Option 53; None where it is missing or not one byte (a BOOTP message)."""
        value = self.options.get(MESSAGE_TYPE, b"")
        return value[0] if len(value) == 1 else None


def parse(payload: Buffer) -> Dhcp:
    """Read the payload of a UDP datagram. Raises BadPacket and nothing else."""
    if len(payload) < _HEADER.size:
        raise BadPacket("dhcp_short")
    fields = _HEADER.unpack_from(payload)
    op, htype, hlen, _, xid, secs, flags, ciaddr, yiaddr, siaddr, giaddr, chaddr, sname, file, cookie = fields
    if cookie != _COOKIE:
        raise BadPacket("dhcp_cookie")
    if hlen > len(chaddr):
        raise BadPacket("dhcp_hlen")
    pieces: dict[int, list[bytes]] = {}
    _read_options(bytes(payload[_HEADER.size :]), pieces)
    overload = b"".join(pieces.pop(OVERLOAD, ()))
    if overload:
        # RFC 3396 section 5: the parts are joined in the order options, file, sname.
        for bit, area in ((1, file), (2, sname)):
            if overload[0] & bit:
                _read_options(area, pieces)
        pieces.pop(OVERLOAD, None)
    options = {code: b"".join(values) for code, values in pieces.items()}
    return Dhcp(op, htype, hlen, xid, secs, flags, ciaddr, yiaddr, siaddr, giaddr, chaddr[:hlen], options)


def _read_options(area: bytes, pieces: dict[int, list[bytes]]) -> None:
    """Collect the options up to the end mark, which must be there (RFC 2131 section 4.1)."""
    at = 0
    while at < len(area):
        code = area[at]
        at += 1
        if code == PAD:
            continue
        if code == END:
            return
        stop = at + 1 + area[at] if at < len(area) else len(area) + 1
        if stop > len(area):
            raise BadPacket("dhcp_option")
        pieces.setdefault(code, []).append(area[at + 1 : stop])
        at = stop
    raise BadPacket("dhcp_end")


def emit(message: Dhcp) -> bytes:
    """The bytes of `message`, zero-padded to at least 300; a value over 255 bytes is split (RFC 3396).

    Raises struct.error or ValueError where a field does not fit its place on the wire: a bug of the caller.
    """
    out = bytearray(
        _HEADER.pack(
            message.op,
            message.htype,
            message.hlen,
            0,
            message.xid,
            message.secs,
            message.flags,
            message.ciaddr,
            message.yiaddr,
            message.siaddr,
            message.giaddr,
            message.chaddr,
            b"",
            b"",
            _COOKIE,
        )
    )
    for code, value in message.options.items():
        for start in range(0, len(value) or 1, 255):
            piece = value[start : start + 255]
            out += bytes((code, len(piece))) + piece
    out.append(END)
    return bytes(out.ljust(MIN_LENGTH, b"\0"))


def emit_search(names: tuple[str, ...], *, compress: bool = False, room: int = MAX_SEARCH_NAMES * MAX_NAME) -> bytes:
    """The value of option 119: the names as labels, as they are or with pointers to what was there before (RFC 3397).

    A name that DNS cannot carry, or beyond the first `MAX_SEARCH_NAMES`, is left out: the lists come from files people write.
    The first that does not fit `room` bytes ends the list.
    """
    out = bytearray()
    known: dict[tuple[bytes, ...], int] = {}
    for name in names[:MAX_SEARCH_NAMES]:
        labels = name.removesuffix(".").encode("utf-8", "replace").split(b".")
        if sum(map(len, labels)) + len(labels) + 1 > MAX_NAME or not all(map(_LABEL.fullmatch, labels)):
            continue
        start = len(out)
        for index, label in enumerate(labels):
            rest = tuple(labels[index:])
            if compress and rest in known:
                out += (0xC000 | known[rest]).to_bytes(2, "big")
                break
            known.setdefault(rest, len(out))
            out.append(len(label))
            out += label
        else:
            out.append(0)
        if len(out) > room:
            return bytes(out[:start])
    return bytes(out)


def parse_search(value: bytes) -> tuple[str, ...]:
    """The names in the value of option 119, compression pointers followed; those beyond the first
    `MAX_SEARCH_NAMES` are left out.

    Only letters, digits, ``-`` and ``_`` are taken: the names end up in resolv.conf. Raises BadPacket and nothing else.
    """
    names: list[str] = []
    at = 0
    while at < len(value) and len(names) < MAX_SEARCH_NAMES:
        name, at = _read_name(value, at)
        names.append(name)
    return tuple(names)


def _read_name(value: bytes, at: int) -> tuple[str, int]:
    """The name at `at`, and where the one behind it begins. Pointers only ever go backwards, so they cannot loop."""
    labels: list[str] = []
    start, after, length = at, 0, 1
    while at < len(value):
        size = value[at]
        if size == 0 and labels:
            return ".".join(labels), after or at + 1
        if size >> 6 == 3 and at + 1 < len(value):
            after = after or at + 2
            at = (size & 0x3F) << 8 | value[at + 1]
            if at >= start:
                break
            start = at
            continue
        label = value[at + 1 : at + 1 + size]
        length += 1 + size
        if length > MAX_NAME or len(label) != size or not _LABEL.fullmatch(label):
            break
        labels.append(label.decode("ascii"))
        at += 1 + size
    raise BadPacket("dhcp_search")


def format(message: Dhcp) -> str:
    """One line, as tcpdump has it."""
    kind = message.message_type or 0
    name = _MESSAGE_NAMES[kind] if kind < len(_MESSAGE_NAMES) else "?"
    way = {BOOTREQUEST: "Request", BOOTREPLY: "Reply"}.get(message.op, f"op {message.op}")
    client = format_mac(message.chaddr) if len(message.chaddr) == 6 else message.chaddr.hex(":")
    text = f"BOOTP/DHCP, {way} from {client}, {name}, xid 0x{message.xid:08x}"
    for label, address in (("client", message.ciaddr), ("your", message.yiaddr), ("relay", message.giaddr)):
        if any(address):
            text += f", {label} {format_ip(address)}"
    wanted = message.options.get(REQUESTED_IP, b"")
    if len(wanted) == 4:
        text += f", wants {format_ip(wanted)}"
    return text
