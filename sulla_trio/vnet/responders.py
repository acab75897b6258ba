"""The gateway's own DHCP and DNS, on the driven stack. What they answer is decided above the trio line, in `services`."""

from __future__ import annotations

from functools import partial
from typing import Final

import trio

from sulla_trio.config import BROADCAST_MAC, format_ip
from sulla_trio.errors import BadPacket
from sulla_trio.forward.context import Driver
from sulla_trio.netstack.events import DatagramReceived
from sulla_trio.netstack.stack import BROADCAST_PORT
from sulla_trio.services import dns
from sulla_trio.services.dhcp import DhcpServer
from sulla_trio.vnet.resolver import Resolver, receive_message
from sulla_trio.vnet.sockets import TcpStream
from sulla_trio.wire import dhcp

DHCP_SERVER_PORT: Final = 67
DNS_PORT: Final = 53
MAX_QUERIES: Final = 1024
"""Queries forwarded at one time; beyond it the answer is SERVFAIL at once (each holds a host socket)."""
TCP_IDLE: Final = 10.0
TCP_PIPELINE: Final = 16
"""Queries of one TCP connection forwarded side by side."""
BROADCAST_IP: Final = b"\xff" * 4


class DhcpResponder:
    """Answers DHCP on port 67, whatever address it was sent to."""

    def __init__(self, driver: Driver, server: DhcpServer) -> None:
        self._driver = driver
        self._server = server

    def __call__(self, event: DatagramReceived) -> None:
        driver, now = self._driver, self._driver.now()
        try:
            request = dhcp.parse(event.payload)
        except BadPacket as error:
            driver.stack.counters.drop(error.reason)
            return
        reply = self._server.handle(request, event.source_ip, now, source_port=event.source_port)
        if reply is None:
            return
        broadcast = reply.destination_ip == BROADCAST_IP
        driver.stack.send_datagram(
            driver.network.gateway_ip,
            DHCP_SERVER_PORT,
            reply.destination_ip,
            reply.destination_port,
            dhcp.emit(reply.message),
            now,
            mac=BROADCAST_MAC if broadcast else event.mac,
            port=BROADCAST_PORT if broadcast else event.port,
        )


class DnsResponder:
    """Answers DNS on the gateway, UDP by `datagram` and TCP by `stream`.

    Local zones are answered at once; everything else is forwarded as the bytes it came in. Never silence: a query that no
    upstream answers gets SERVFAIL.
    """

    def __init__(self, driver: Driver, zones: dns.Zones, resolver: Resolver) -> None:
        self._driver = driver
        self._zones = zones
        self._resolver = resolver
        self._active = 0

    def datagram(self, event: DatagramReceived) -> None:
        """One UDP query; the answer goes back to where it came from."""
        decision = self._zones.decide(event.payload)
        reply = partial(self._send, event)
        match decision:
            case dns.Answer():
                reply(dns.fit_udp(decision.message, event.payload))
            case dns.Forward():
                if not self._driver.spawn(event.port, self._forward_datagram, event):
                    self._driver.stack.counters.drop("dns_port_gone")

    async def _forward_datagram(self, event: DatagramReceived) -> None:
        answer = await self._upstream(event.payload, f"{format_ip(event.source_ip)}:{event.source_port}", tcp=False)
        self._send(event, dns.fit_udp(answer, event.payload))
        self._driver.pump()

    def _send(self, event: DatagramReceived, message: bytes) -> None:
        self._driver.stack.send_datagram(
            event.destination_ip,
            event.destination_port,
            event.source_ip,
            event.source_port,
            message,
            self._driver.now(),
            mac=event.mac,
            port=event.port,
        )

    async def _upstream(self, query: bytes, client: str, *, tcp: bool) -> bytes:
        """The upstream's answer, or SERVFAIL; never longer than the resolver's bound."""
        if self._active >= MAX_QUERIES:
            self._driver.stack.counters.drop("dns_busy")
            return dns.servfail(query)
        self._active += 1
        started = self._driver.now()
        try:
            answer = await self._resolver.forward(query, tcp=tcp)
        finally:
            self._active -= 1
        self._driver.events.emit(
            "dns.query",
            name=dns.question_text(query),
            client=client,
            result=dns.rcode_text(answer) if answer is not None else "no upstream answered",
            milliseconds=round((self._driver.now() - started) * 1000, 1),
        )
        return dns.servfail(query) if answer is None else answer

    async def stream(self, stream: TcpStream) -> None:
        """One TCP connection: queries in, answers out as they come (RFC 7766 section 6.2.1.1)."""
        buffered = bytearray()
        send_lock = trio.Lock()
        limit = trio.CapacityLimiter(TCP_PIPELINE)

        async def answer(query: bytes, token: object) -> None:
            try:
                match self._zones.decide(query):
                    case dns.Answer(message=message):
                        pass
                    case dns.Forward():
                        message = await self._upstream(query, stream.peer[0], tcp=True)
                    case _:
                        return
                async with send_lock:
                    await stream.send_all(len(message).to_bytes(2, "big") + message)
            except trio.BrokenResourceError:
                pass  # the guest went away: the reader finds out too
            finally:
                limit.release_on_behalf_of(token)

        async with stream, trio.open_nursery() as nursery:
            while True:
                query: bytes | None = None
                with trio.move_on_after(TCP_IDLE):
                    try:
                        query = await receive_message(stream, buffered)
                    except trio.BrokenResourceError:
                        nursery.cancel_scope.cancel()
                if query is None:
                    break
                token = object()
                await limit.acquire_on_behalf_of(token)
                nursery.start_soon(answer, query, token)
