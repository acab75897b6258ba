"""Link negotiation: one Ethernet frame of EtherType 0x88B5 for each step (DESIGN section 3). All in network byte order.

offset  size  field
     0     4  magic ``SLLA``
     4     1  version, 1 or later
     5     1  1 HELLO, 2 WELCOME, 3 SWITCHED
     6    16  nonce: the guest's, echoed by the host and again by the guest
    HELLO
    22     4  capabilities: the offloads the guest takes, as `wire.virtio` has them
    26    16  boot id of the guest
    WELCOME
    22     4  capabilities: those of the HELLO that both sides may use from now on
    26     4  link id: the host's number for the link, for its logs and the guest's
    30     4  subnet
    34     1  its prefix length
    35     2  MTU of IP

What follows is Ethernet padding, or a later version's; unknown bits of the capabilities likewise.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple, TypeAlias

from sulla_trio.config import MAX_MTU, MIN_MTU, format_ip
from sulla_trio.errors import BadPacket
from sulla_trio.wire.inet import Buffer

ETHERTYPE: Final = 0x88B5
"""IEEE local experimental: a Go peer counts it as unknown and goes on."""
MAGIC: Final = b"SLLA"
VERSION: Final = 1
NONCE_LENGTH: Final = 16
BOOT_ID_LENGTH: Final = 16
HELLO: Final = 1
WELCOME: Final = 2
SWITCHED: Final = 3
_HEADER: Final = struct.Struct("!4sBB16s")
_HELLO: Final = struct.Struct("!I16s")
_WELCOME: Final = struct.Struct("!II4sBH")
_ETHERTYPE_BYTES: Final = ETHERTYPE.to_bytes(2, "big")


class Hello(NamedTuple):
    """A guest that can do more asks for it."""

    version: int
    nonce: bytes
    capabilities: int
    boot_id: bytes


class Welcome(NamedTuple):
    """The host agrees; what it sends behind this is in the extended framing."""

    version: int
    nonce: bytes
    capabilities: int
    link_id: int
    subnet: bytes
    prefix: int
    mtu: int


class Switched(NamedTuple):
    """The guest's last word in the legacy framing."""

    version: int
    nonce: bytes


Message: TypeAlias = Hello | Welcome | Switched


def is_control(frame: Buffer) -> bool:
    """Whether a whole frame is of link negotiation. From a tap or between ports such a frame is dropped and counted."""
    return frame[12:14] == _ETHERTYPE_BYTES


def parse(payload: Buffer) -> Message:
    """Read what follows the Ethernet header. Raises BadPacket and nothing else."""
    if len(payload) < _HEADER.size:
        raise BadPacket("control_short")
    magic, version, kind, nonce = _HEADER.unpack_from(payload)
    if magic != MAGIC:
        raise BadPacket("control_magic")
    if not version:
        raise BadPacket("control_version")
    if kind == SWITCHED:
        return Switched(version, nonce)
    body = {HELLO: _HELLO, WELCOME: _WELCOME}.get(kind)
    if body is None:
        raise BadPacket("control_kind")
    if len(payload) < _HEADER.size + body.size:
        raise BadPacket("control_short")
    fields = body.unpack_from(payload, _HEADER.size)
    if kind == HELLO:
        return Hello(version, nonce, *fields)
    welcome = Welcome(version, nonce, *fields)
    if not 1 <= welcome.prefix <= 30 or int.from_bytes(welcome.subnet, "big") << welcome.prefix & 0xFFFFFFFF:
        raise BadPacket("control_subnet")
    if not MIN_MTU <= welcome.mtu <= MAX_MTU:
        raise BadPacket("control_mtu")
    return welcome


def emit(message: Message) -> bytes:
    """The payload of `message`."""
    match message:
        case Hello(version, nonce, capabilities, boot_id):
            return _HEADER.pack(MAGIC, version, HELLO, nonce) + _HELLO.pack(capabilities, boot_id)
        case Welcome(version, nonce):
            return _HEADER.pack(MAGIC, version, WELCOME, nonce) + _WELCOME.pack(*message[2:])
        case Switched(version, nonce):
            return _HEADER.pack(MAGIC, version, SWITCHED, nonce)


def format(message: Message) -> str:
    """One line. The nonce is a secret of the link, and only its beginning is shown."""
    text = f"link {type(message).__name__.upper()} version {message.version} nonce {message.nonce[:2].hex()}.."
    match message:
        case Hello():
            return f"{text}, capabilities 0x{message.capabilities:02x}, boot {message.boot_id.hex()}"
        case Welcome():
            subnet = f"{format_ip(message.subnet)}/{message.prefix}"
            return f"{text}, capabilities 0x{message.capabilities:02x}, link {message.link_id}, {subnet}, mtu {message.mtu}"
    return text
