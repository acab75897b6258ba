"""Forwards DNS messages to the system's own servers as bytes: one connected socket per query, random port and ID.

A dead upstream or none at all is a normal state: the caller gets None in bounded time and answers SERVFAIL.
"""

from __future__ import annotations

import os
import random
import socket
from typing import Final

import trio

from sulla_trio.services.dns import matches, parse_resolv_conf, rewrite_id

TRY_TIMEOUT: Final = 2.0
"""Seconds for one server before the next is asked too (the earlier one may still answer)."""
TOTAL_TIMEOUT: Final = 6.0
"""Seconds for the whole query: below a stub resolver's own 5 s times two tries."""
MAX_MESSAGE: Final = 65_535
DNS_PORT: Final = 53


class Resolver:
    """The upstream side of the gateway's DNS.

    `path` is read again whenever it changes, so a VPN that comes up is followed from the next query on.
    """

    def __init__(self, path: str = "/etc/resolv.conf", servers: tuple[str, ...] | None = None) -> None:
        self._path = path
        self._fixed = servers
        self._servers: tuple[str, ...] = ()
        self._stamp: tuple[int, int, int] | None = None
        self._search: tuple[str, ...] = ()
        self.refresh()

    @property
    def servers(self) -> tuple[str, ...]:
        """The servers in use now; empty when there is no network."""
        self.refresh()
        return self._servers

    @property
    def search(self) -> tuple[str, ...]:
        """The host's search list now."""
        self.refresh()
        return self._search

    def refresh(self) -> None:
        """Read the system's list again if it changed."""
        if self._fixed is not None:
            self._servers = self._fixed
            return
        try:
            status = os.stat(self._path)
            stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
            if stamp == self._stamp:
                return
            with open(self._path, encoding="utf-8", errors="replace") as file:
                nameservers, search = parse_resolv_conf(file.read())
        except OSError:
            self._servers, self._search, self._stamp = (), (), None
            return
        self._stamp, self._servers, self._search = stamp, tuple(nameservers), tuple(search)

    async def forward(self, query: bytes, *, tcp: bool = False) -> bytes | None:
        """The first matching answer to `query`, with the query's own ID; None when nobody answered in time.

        A truncated UDP answer is asked for again by TCP only when the guest itself asked by TCP: otherwise the guest gets the
        truncation and decides.
        """
        servers = self.servers
        answer: bytes | None = None
        if not servers:
            await trio.lowlevel.checkpoint()
            return None

        async def ask(server: str, delay: float) -> None:
            nonlocal answer
            await trio.sleep(delay)
            try:
                got = await (self._by_tcp if tcp else self._by_udp)(server, query)
            except (OSError, trio.BrokenResourceError):
                got = None
            if got is not None and answer is None:
                answer = got
                nursery.cancel_scope.cancel()

        with trio.move_on_after(TOTAL_TIMEOUT):
            async with trio.open_nursery() as nursery:
                for index, server in enumerate(servers):
                    nursery.start_soon(ask, server, index * TRY_TIMEOUT)
                if not tcp:  # a lost datagram is not a dead server
                    nursery.start_soon(ask, servers[0], len(servers) * TRY_TIMEOUT)
        return answer

    async def _by_udp(self, server: str, query: bytes) -> bytes | None:
        family = socket.AF_INET6 if ":" in server else socket.AF_INET
        asked = rewrite_id(query, random.getrandbits(16))
        with trio.socket.socket(family, socket.SOCK_DGRAM) as sock:
            await sock.connect((server, DNS_PORT))
            await sock.send(asked)
            while True:
                answer = await sock.recv(MAX_MESSAGE)
                if matches(asked, answer):
                    return rewrite_id(answer, int.from_bytes(query[:2], "big"))

    async def _by_tcp(self, server: str, query: bytes) -> bytes | None:
        asked = rewrite_id(query, random.getrandbits(16))
        stream = await trio.open_tcp_stream(server, DNS_PORT)
        async with stream:
            await stream.send_all(len(asked).to_bytes(2, "big") + asked)
            answer = await receive_message(stream)
        if answer is None or not matches(asked, answer):
            return None
        return rewrite_id(answer, int.from_bytes(query[:2], "big"))


async def receive_message(stream: trio.abc.ReceiveStream, buffered: bytearray | None = None) -> bytes | None:
    """One DNS message of a TCP stream (RFC 1035 section 4.2.2); None at end of stream.

    `buffered` keeps what came after it for the next call.
    """
    data = bytearray() if buffered is None else buffered
    while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2], "big"):
        more = await stream.receive_some()
        if not more:
            return None
        data += more
    end = 2 + int.from_bytes(data[:2], "big")
    message = bytes(data[2:end])
    del data[:end]
    return message
