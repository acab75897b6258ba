"""Datagram sockets of the host that act as the next hop for a guest: its TTL less one, its DF bit, and what ICMP says of it.

On Linux a socket with IP_RECVERR keeps the ICMP errors about what it sent in a queue of its own, with the router that sent
them (ip(7)); elsewhere only what `send` raises is known. Neither numbers nor the structure are named by Python's `socket`.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from typing import Final, NamedTuple

import trio

from sulla_trio.config import format_ip, parse_ip
from sulla_trio.forward.context import Driver
from sulla_trio.services.policy import Verdict
from sulla_trio.wire import icmp

LINUX: Final = sys.platform == "linux"
IP_MTU_DISCOVER: Final = 10
IP_RECVERR: Final = 11
IP_RECVTTL: Final = 12
IP_MTU: Final = 14
PMTUDISC_DONT: Final = 0
PMTUDISC_PROBE: Final = 3
"""DF, whatever the host has learned of the path: the router in the way answers, as it would to a guest behind a real hop."""
MSG_ERRQUEUE: Final = 0x2000
ERROR_BATCH: Final = 64
"""Errors read at one time; the kernel bounds the queue by the socket's receive buffer."""
SEND_TRIES: Final = 3
"""One, one more for an earlier datagram's error, and one for an error that comes between these two."""
MAX_DATAGRAM: Final = 65_535
DEFAULT_TTL: Final = 64
OWN_TTL: Final = DEFAULT_TTL + 1
"""Of the host's own errors, as if from one hop behind the gateway."""
UNREACHABLE: Final = {
    errno.ENETUNREACH: icmp.UNREACHABLE_NET,
    errno.EHOSTUNREACH: icmp.UNREACHABLE_HOST,
    errno.ENETDOWN: icmp.UNREACHABLE_NET,
    errno.EHOSTDOWN: icmp.UNREACHABLE_HOST,
    errno.EACCES: icmp.UNREACHABLE_ADMIN,
    errno.EPERM: icmp.UNREACHABLE_ADMIN,
}
"""What the host's own refusal to send is for a guest (RFC 1812 section 5.2.7.1)."""
_EXTENDED_ERROR: Final = struct.Struct("=IBBBxII")
"""struct sock_extended_err: errno, origin, type, code, info (the MTU), data; a sockaddr_in of the sender follows."""
_SENDER: Final = slice(20, 24)
_ORIGIN_ICMP: Final = 2
_ANCILLARY: Final = 256
_QUOTED: Final = 64
"""Bytes read of the packet that an error is about, from behind its IP header: an echo's header is 8."""
_PASSED_ON: Final = frozenset((icmp.UNREACHABLE, icmp.TIME_EXCEEDED))


class HostError(NamedTuple):
    """An ICMP error about a packet that a host socket sent, or what would be one on a router: too big for the interface."""

    target: tuple[bytes, int]
    """Where the packet was sent to."""
    sender: bytes | None
    """Whose error it is; None: this host's own."""
    type: int
    code: int
    rest: int
    """The second word of the message: the MTU of frag-needed."""
    ttl: int
    quoted: bytes
    """What the error quotes of the packet, from behind the header that the socket does not show."""


class HostSocket:
    """A non-blocking datagram socket (UDP, ping or raw ICMP); closes it."""

    __slots__ = ("_dont_fragment", "_ttl", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.setblocking(False)
        self._ttl = 0
        self._dont_fragment: bool | None = None
        if LINUX:
            sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
            sock.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)

    def send(self, data: bytes, address: tuple[str, int], ttl: int, *, dont_fragment: bool) -> None:
        """Send with the TTL that is left of the guest's `ttl` behind one more hop.

        Raises:
            BlockingIOError: no room in the host's queue; OSError: as sendto(2), of this datagram and not of an earlier one.
        """
        sock = self.sock
        if ttl != self._ttl:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, max(1, ttl - 1))
            self._ttl = ttl
        if LINUX and dont_fragment != self._dont_fragment:
            sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_PROBE if dont_fragment else PMTUDISC_DONT)
            self._dont_fragment = dont_fragment
        # The kernel gives the error of an earlier datagram to whichever call comes next: only one that stays is about ours.
        for _ in range(SEND_TRIES - 1):
            try:
                sock.sendto(data, address)
                return
            except BlockingIOError:
                raise
            except OSError as error:
                if error.errno == errno.EMSGSIZE:
                    raise
        sock.sendto(data, address)

    def receive(self) -> tuple[bytes, bytes, int]:
        """One datagram: its bytes, the address it came from, its TTL (64 where the host does not tell).

        Raises:
            BlockingIOError: there is none; OSError: an error of an earlier datagram, which `errors` has with its sender.
        """
        data, ancillary, _, address = self.sock.recvmsg(MAX_DATAGRAM, _ANCILLARY)
        return data, parse_ip(address[0]), _ttl_of(ancillary)

    def errors(self) -> list[HostError]:
        """Take the errors that wait, the oldest first; those that no guest needs to know are left out."""
        found: list[HostError] = []
        if not LINUX:
            return found
        for _ in range(ERROR_BATCH):
            try:
                quoted, ancillary, _, address = self.sock.recvmsg(_QUOTED, _ANCILLARY, MSG_ERRQUEUE)
            except OSError:  # EAGAIN: that was all
                break
            for level, kind, body in ancillary:
                if level == socket.IPPROTO_IP and kind == IP_RECVERR:
                    error = decode(body, (parse_ip(address[0]), address[1]), _ttl_of(ancillary), quoted)
                    if error is not None:
                        found.append(error)
        return found

    def close(self) -> None:
        """Close the socket; whoever waits on it is woken."""
        trio.lowlevel.notify_closing(self.sock)
        self.sock.close()


def _ttl_of(ancillary: list[tuple[int, int, bytes]]) -> int:
    for level, kind, body in ancillary:
        if level == socket.IPPROTO_IP and kind == socket.IP_TTL and len(body) >= 4:
            return int.from_bytes(body[:4], sys.byteorder)
    return DEFAULT_TTL


def decode(body: bytes, target: tuple[bytes, int], ttl: int, quoted: bytes) -> HostError | None:
    """The error in the control message `body`; None: not of a kind that is passed on (source quench, and what `send` raised)."""
    if len(body) < _EXTENDED_ERROR.size:
        return None
    _, origin, kind, code, info, _ = _EXTENDED_ERROR.unpack_from(body)
    if origin != _ORIGIN_ICMP or kind not in _PASSED_ON:
        return None
    rest = info & 0xFFFF if (kind, code) == (icmp.UNREACHABLE, icmp.UNREACHABLE_FRAG_NEEDED) else 0
    sender = bytes(body[_SENDER])
    return HostError(target, sender if len(sender) == 4 else None, kind, code, rest, ttl, quoted)


def tell_guest(driver: Driver, error: HostError, header: bytes, mac: bytes, port: int) -> None:
    """Pass `error` on, quoting the guest's own packet, which began with `header`.

    Its source is the router that the outside's error came from. The address that the guest sent to stands for the one behind
    it, and the gateway for the host itself and for addresses that mean something else to the guest.
    """
    network = driver.network
    sender = error.sender
    if sender == error.target[0]:
        sender = header[16:20]
    elif sender is None or sender in network or not 0 < sender[0] < 224 or sender[0] == 127:
        sender = network.gateway_ip
    driver.stack.send_icmp_error(
        error.type,
        error.code,
        error.rest,
        header,
        header[12:16],
        mac,
        port,
        driver.now(),
        sender=sender,
        ttl=max(1, error.ttl - 1),
    )


def tell_denied(driver: Driver, verdict: Verdict, header: bytes, mac: bytes, port: int) -> None:
    """Say at once that policy keeps the guest's packet from going out, rather than have it wait for an answer."""
    if verdict.reason == "virtual_subnet":
        return  # a neighbour's address: on a wire nobody would answer, and for the subnet's broadcast nobody may
    stack = driver.stack
    stack.send_icmp_error(icmp.UNREACHABLE, icmp.UNREACHABLE_ADMIN, 0, header, header[12:16], mac, port, driver.now())


def refusal_of(error: OSError, target: tuple[bytes, int]) -> HostError | None:
    """What the host's refusal to send is for a guest; None: nothing that a router would say (no memory, a full queue)."""
    if error.errno == errno.EMSGSIZE:
        mtu = path_mtu(target[0])
        if mtu is None:
            return None
        return HostError(target, None, icmp.UNREACHABLE, icmp.UNREACHABLE_FRAG_NEEDED, mtu, OWN_TTL, b"")
    code = UNREACHABLE.get(error.errno or 0)
    return None if code is None else HostError(target, None, icmp.UNREACHABLE, code, 0, OWN_TTL, b"")


def path_mtu(ip: bytes) -> int | None:
    """The largest datagram that the host knows to pass on the way to `ip`; None: there is no way. Sends nothing.

    The kernel also queues it as an error of the socket, but without the port or the packet that it is about.
    """
    if not LINUX:
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((format_ip(ip), 9))
            return min(probe.getsockopt(socket.IPPROTO_IP, IP_MTU), 0xFFFF)
        except OSError:
            return None
