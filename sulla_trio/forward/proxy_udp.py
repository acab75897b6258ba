"""A published UDP port between two kernel sockets: each client has an upstream socket, and its replies come back to it.

Source: specs/gvproxy.md section 5.5 (90 s, 65,507 bytes), specs/daemons.md section 6.2.
"""

from __future__ import annotations

import errno
import logging
import socket
import struct
import sys
from collections import OrderedDict
from typing import Any, Final, NamedTuple

import trio

from sulla_trio.forward.host_sockets import Descriptors, address_text
from sulla_trio.forward.proxy_journal import ProxyJournal
from sulla_trio.services.flows import Flow

log = logging.getLogger(__name__)

UDP_IDLE: Final = 90.0
MAX_CLIENTS: Final = 1024
"""Clients of one port; the longest idle goes."""
MAX_DATAGRAM: Final = 65_535
BATCH: Final = 64
"""Datagrams read from one socket before other tasks run."""

_IP_PKTINFO: Final = 8  # Linux; the socket module does not name it before 3.14
_PKTINFO4: Final = struct.Struct("=I4s4s")  # struct in_pktinfo: interface, our address, the header's
_PKTINFO6: Final = struct.Struct("=16sI")  # struct in6_pktinfo: our address, interface
_ANCILLARY: Final = 64  # bytes, with its header and padding


class _Key(NamedTuple):
    """Who sends, and which of our addresses to: an answer must come from there."""

    peer: Any
    """The socket module's address of the client."""
    local: bytes
    """Empty where the listener has one address only."""


class _Client:
    __slots__ = ("deadline", "flow", "scope", "sock")

    def __init__(self, sock: socket.socket, flow: Flow) -> None:
        self.sock = sock
        self.flow = flow
        self.scope = trio.CancelScope()
        self.deadline = 0.0


class UdpProxy:
    """One listening socket (bound, non-blocking), which it owns, and its clients."""

    def __init__(
        self,
        sock: socket.socket,
        local: str,
        upstream: tuple[str, int],
        descriptors: Descriptors,
        journal: ProxyJournal,
    ) -> None:
        self._sock = sock
        self._local = local
        self._upstream = upstream
        self._descriptors = descriptors
        self._journal = journal
        self._clients: OrderedDict[_Key, _Client] = OrderedDict()
        """Longest idle first."""
        self._scope = trio.CancelScope()
        self._nursery: trio.Nursery | None = None
        self._wildcard = sys.platform == "linux" and _tell_addresses(sock)

    def close(self) -> None:
        """Free the port now; `run` ends, and the clients with it."""
        self._scope.cancel()
        if self._sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()

    async def run(self) -> None:
        """Carry datagrams both ways until closed or cancelled."""
        try:
            with self._scope:
                async with trio.open_nursery() as self._nursery:
                    await trio.lowlevel.checkpoint()  # closed before it began
                    while self._sock.fileno() >= 0:
                        self._read_batch()
                        await trio.lowlevel.wait_readable(self._sock)
        finally:
            self._nursery = None
            self.close()

    # Client to upstream

    def _read_batch(self) -> None:
        for _ in range(BATCH):
            try:
                if self._wildcard:
                    payload, ancillary, _, peer = self._sock.recvmsg(MAX_DATAGRAM, _ANCILLARY)
                    key = _Key(peer, _local_address(ancillary))
                else:
                    payload, peer = self._sock.recvfrom(MAX_DATAGRAM)
                    key = _Key(peer, b"")
            except BlockingIOError:
                return
            except OSError:
                continue  # the ICMP error of an earlier answer: told once, the socket lives on
            self._to_upstream(key, payload)

    def _to_upstream(self, key: _Key, payload: bytes) -> None:
        client = self._clients.get(key) or self._open(key)
        if client is None:
            return
        self._clients.move_to_end(key)
        client.deadline = trio.current_time() + UDP_IDLE
        for _ in range(2):
            try:
                client.sock.send(payload)
            except ConnectionRefusedError:
                continue  # that was the answer to an earlier datagram: this one has not been sent yet
            except OSError:
                break  # no route, or a full buffer: a datagram may be lost
            client.flow.bytes_in += len(payload)
            break

    def _open(self, key: _Key) -> _Client | None:
        if self._nursery is None:
            return None
        if self._clients and (len(self._clients) >= MAX_CLIENTS or not self._descriptors.free):
            _, oldest = self._clients.popitem(last=False)
            oldest.scope.cancel()
            self._give_up(oldest, "replaced")
        if not self._descriptors.take(1):
            return None
        try:
            sock = socket.socket(socket.AF_INET6 if ":" in self._upstream[0] else socket.AF_INET, socket.SOCK_DGRAM)
            try:
                sock.setblocking(False)
                sock.connect(self._upstream)
            except BaseException:
                sock.close()
                raise
        except OSError as error:
            self._descriptors.give(1)
            log.debug("no upstream socket for udp %s: %s", address_text(*self._upstream), error.strerror)
            return None
        peer = address_text(*key.peer[:2])
        log.debug("udp client %s of %s", peer, self._local)
        client = _Client(sock, self._journal.opened("udp", self._local, address_text(*self._upstream), peer))
        self._clients[key] = client
        self._nursery.start_soon(self._serve_client, key, client)
        return client

    # Upstream to client

    async def _serve_client(self, key: _Key, client: _Client) -> None:
        reason = "shutdown"
        try:
            with client.scope:
                while client.sock.fileno() >= 0 and trio.current_time() < client.deadline:
                    self._read_answers(key, client)
                    with trio.move_on_at(client.deadline):
                        await trio.lowlevel.wait_readable(client.sock)
                reason = "idle"
        finally:
            if self._clients.get(key) is client:
                del self._clients[key]
            self._give_up(client, reason)

    def _give_up(self, client: _Client, reason: str) -> None:
        """Close a client's socket, once."""
        if client.sock.fileno() < 0:
            return
        trio.lowlevel.notify_closing(client.sock)
        client.sock.close()
        self._descriptors.give(1)
        self._journal.closed("udp", self._local, client.flow, reason)

    def _read_answers(self, key: _Key, client: _Client) -> None:
        for _ in range(BATCH):
            try:
                payload = client.sock.recv(MAX_DATAGRAM)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.EBADF:
                    return  # closed in the same moment
                continue  # ECONNREFUSED: nobody listens upstream, yet
            client.deadline = trio.current_time() + UDP_IDLE
            self._clients.move_to_end(key)
            try:
                if key.local:
                    self._sock.sendmsg([payload], _from_address(key.local), 0, key.peer)
                else:
                    self._sock.sendto(payload, key.peer)
            except OSError:
                continue  # the client is gone, or its buffer full
            client.flow.bytes_out += len(payload)


def _tell_addresses(sock: socket.socket) -> bool:
    """Have a wildcard socket tell which address each datagram was sent to. False: it has one address."""
    host = sock.getsockname()[0]
    if host == "0.0.0.0":
        sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
    elif host == "::":
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        return False
    return True


def _local_address(ancillary: list[tuple[int, int, bytes]]) -> bytes:
    """Our address that a datagram was sent to; for IPv6 with the interface, without which a link-local one means nothing."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            return bytes(_PKTINFO4.unpack_from(data)[1])
        if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            return data[: _PKTINFO6.size]
    return b""


def _from_address(local: bytes) -> list[tuple[int, int, bytes]]:
    """The ancillary data that sends a datagram from `local`."""
    if len(local) == 4:
        return [(socket.IPPROTO_IP, _IP_PKTINFO, _PKTINFO4.pack(0, local, bytes(4)))]
    address, interface = _PKTINFO6.unpack(local)
    link_local = address[:2] == b"\xfe\x80"
    return [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _PKTINFO6.pack(address, interface if link_local else 0))]
