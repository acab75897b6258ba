"""Ways of an ICMP echo to the outside, behind one interface: the ping socket, else the raw socket (else `ping_program`).

A path serves one session of a guest: its echoes of one identifier, to whatever addresses. The guest's sequence numbers go out
as they are; the identifier outside is the path's own, and no answer to another's comes back.
"""

from __future__ import annotations

import ctypes
import errno
import secrets
import socket
import struct
import sys
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

import trio

from sulla_trio.config import format_ip
from sulla_trio.errors import BadPacket
from sulla_trio.forward.datagram_socket import LINUX, HostError, HostSocket
from sulla_trio.wire import icmp, ipv4

BATCH: Final = 64
"""Answers read from one socket before other tasks run."""
NOT_HERE: Final = frozenset((errno.EACCES, errno.EPERM, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.ENOENT))
"""What says that this way does not exist, or not for this user; the next one may."""
_SOL_RAW: Final = 255
_ICMP_FILTER: Final = 1
_ONLY_REPLIES: Final = 0xFFFFFFFF ^ 1 << icmp.ECHO_REPLY
_SO_ATTACH_FILTER: Final = 26
_INSTRUCTION: Final = struct.Struct("=HBBI")


class Echo(NamedTuple):
    """One echo request for the outside."""

    target: bytes
    sequence: int
    payload: bytes
    ttl: int
    """The guest's; one less goes out."""
    dont_fragment: bool


class EchoAnswer(NamedTuple):
    """What the outside said: `payload` of the reply, or an `error` about the request."""

    target: bytes
    """Where the request went; a reply comes from there."""
    sequence: int
    payload: bytes
    ttl: int
    error: HostError | None


class EchoPath(Protocol):
    """One session's way out."""

    def send(self, echo: Echo) -> None:
        """Send on one request. Never waits. Raises OSError: it was not sent."""

    async def run(self, answered: Callable[[EchoAnswer], None]) -> None:
        """Hand over every answer until cancelled.

        Raises:
            PermissionError: the way turned out to be closed.
        """

    def close(self) -> None:
        """Let go of what the host lent."""


class EchoSocket:
    """An `EchoPath` over a socket of the host. `identifier` None: the kernel sets its own, and filters by it."""

    def __init__(self, sock: socket.socket, identifier: int | None) -> None:
        self._identifier = identifier
        try:
            self._host = HostSocket(sock)
        except OSError:
            sock.close()
            raise

    def send(self, echo: Echo) -> None:
        rest = (self._identifier or 0) << 16 | echo.sequence
        message = icmp.emit(icmp.ECHO_REQUEST, 0, rest, echo.payload)
        self._host.send(message, (format_ip(echo.target), 0), echo.ttl, dont_fragment=echo.dont_fragment)

    async def run(self, answered: Callable[[EchoAnswer], None]) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._host.sock)
            for answer in self._errors() + self._replies():
                answered(answer)

    def _replies(self) -> list[EchoAnswer]:
        found: list[EchoAnswer] = []
        for _ in range(BATCH):
            try:
                data, source, ttl = self._host.receive()
            except BlockingIOError:
                break
            except OSError:
                found += self._errors()
                continue
            try:
                offset = 0 if self._identifier is None else ipv4.parse(data, 0).header_length
                message = icmp.parse(data, offset, len(data))
            except BadPacket:
                continue
            if message.type == icmp.ECHO_REPLY and self._is_ours(message.rest):
                payload = data[message.payload_offset :]
                found.append(EchoAnswer(source, message.rest & 0xFFFF, payload, ttl, None))
        return found

    def _errors(self) -> list[EchoAnswer]:
        found = []
        for error in self._host.errors():
            if len(error.quoted) >= icmp.HEADER_LENGTH:
                rest = int.from_bytes(error.quoted[4:8], "big")
                if error.quoted[0] == icmp.ECHO_REQUEST and self._is_ours(rest):
                    found.append(EchoAnswer(error.target[0], rest & 0xFFFF, b"", error.ttl, error))
        return found

    def _is_ours(self, rest: int) -> bool:
        return self._identifier is None or rest >> 16 == self._identifier

    def close(self) -> None:
        self._host.close()


def open_ping_socket() -> EchoSocket:
    """The unprivileged way (icmp(7), net.ipv4.ping_group_range). Raises OSError: closed, or no descriptor."""
    return EchoSocket(socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP), None)


def open_raw_socket() -> EchoSocket:
    """The privileged way (raw(7), CAP_NET_RAW). Raises OSError: not ours to have, or no descriptor."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    identifier = secrets.randbelow(0xFFFF) + 1
    try:
        if LINUX:
            sock.setsockopt(_SOL_RAW, _ICMP_FILTER, _ONLY_REPLIES.to_bytes(4, sys.byteorder))
            _only_identifier(sock, identifier)
    except OSError:
        sock.close()
        raise
    return EchoSocket(sock, identifier)


def _only_identifier(sock: socket.socket, identifier: int) -> None:
    """Have the kernel keep other programs' replies away: each raw socket would be woken by all of them."""
    program = (
        (0xB1, 0, 0, 0),  # x = 4 * (packet[0] & 15): the IP header's length
        (0x48, 0, 0, 4),  # a = the 16 bits at x + 4
        (0x15, 0, 1, identifier),
        (0x06, 0, 0, 0xFFFF),  # equal: all of it
        (0x06, 0, 0, 0),
    )
    code = ctypes.create_string_buffer(b"".join(_INSTRUCTION.pack(*line) for line in program))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(code)))
