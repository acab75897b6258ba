"""A guest of a real `Stack`: builds its frames, decodes what the stack answers. Each frame is overwritten after use."""

from __future__ import annotations

import random
from typing import Any

from sulla_trio.config import BROADCAST_MAC, GUEST_MAC, NetworkConfig, network_config
from sulla_trio.netstack.events import Connected
from sulla_trio.netstack.stack import Stack
from sulla_trio.netstack.tcp import TcpConnection
from sulla_trio.netstack.tcp_options import TcpOptions
from sulla_trio.wire import arp, ethernet, icmp, inet, ipv4, tcp, udp

MASK = 0xFFFFFFFF
REMOTE = bytes((93, 184, 216, 34))


class StackGuest:
    """The guest with `ip` and `mac` on switch port `port`. `now` is the test's to move."""

    def __init__(self, network: NetworkConfig | None = None, *, options: TcpOptions | None = None) -> None:
        self.network = network or network_config()
        self.stack = Stack(self.network, random.Random(7), options=options)
        self.ip, self.mac, self.port = self.network.guest_ip, GUEST_MAC, 3
        self.now = 100.0

    # Frames

    def ethernet(
        self, payload: bytes, ethertype: int = ethernet.ETHERTYPE_IPV4, destination: bytes | None = None
    ) -> bytes:
        return ethernet.emit(destination or self.network.gateway_mac, self.mac, ethertype) + payload

    def ipv4(
        self, destination: bytes, protocol: int, payload: bytes, source: bytes | None = None, **fields: Any
    ) -> bytes:
        header = ipv4.emit(source or self.ip, destination, protocol, len(payload), **fields)
        return self.ethernet(header + payload)

    def udp(
        self,
        destination: bytes,
        payload: bytes,
        port: int = 53,
        source: bytes | None = None,
        source_port: int = 5000,
        **fields: Any,
    ) -> bytes:
        source = source or self.ip
        header = udp.emit(source, source_port, destination, port, payload)
        return self.ipv4(destination, inet.IPPROTO_UDP, header + payload, source, **fields)

    def tcp(
        self,
        flags: int,
        payload: bytes = b"",
        *,
        seq: int = 100,
        ack: int = 0,
        destination: bytes = REMOTE,
        source: bytes | None = None,
        source_port: int = 4000,
        port: int = 80,
        options: bytes = b"",
        **fields: Any,
    ) -> bytes:
        source = source or self.ip
        header = tcp.emit(source, source_port, destination, port, seq, ack, flags, 65_535, payload, options=options)
        return self.ipv4(destination, inet.IPPROTO_TCP, header + payload, source, **fields)

    def echo(self, destination: bytes, payload: bytes = b"ping", **fields: Any) -> bytes:
        message = icmp.emit(icmp.ECHO_REQUEST, 0, 0x0102_0003, payload)
        return self.ipv4(destination, inet.IPPROTO_ICMP, message, **fields)

    def arp(
        self, operation: int, target_ip: bytes, sender_ip: bytes | None = None, sender_mac: bytes | None = None
    ) -> bytes:
        sender_ip = self.ip if sender_ip is None else sender_ip
        packet = arp.Arp(operation, sender_mac or self.mac, sender_ip, b"\0" * 6, target_ip)
        return self.ethernet(arp.emit(packet), ethernet.ETHERTYPE_ARP, BROADCAST_MAC)

    # What happens

    def send(self, frame: bytes) -> list[bytes]:
        """Give the stack one frame; whole frames that it answers with, each for our port or every one."""
        buffer = bytearray(frame)
        self.stack.receive(memoryview(buffer), self.port, self.now)
        buffer[:] = b"\xdb" * len(buffer)
        return self.frames()

    def frames(self) -> list[bytes]:
        return [header + bytes(payload) for _, header, payload in self.stack.frames_to_send(self.now)]

    def events(self) -> list[Any]:
        events = []
        while (event := self.stack.next_event()) is not None:
            events.append(event)
        return events

    @property
    def drops(self) -> dict[str, int]:
        return self.stack.counters.drops

    def wait(self, seconds: float) -> list[bytes]:
        """Let time pass with every timer at its moment; the frames sent meanwhile."""
        end, frames = self.now + seconds, self.frames()
        while (at := self.stack.poll_at()) is not None and at <= end:
            self.now = max(self.now, at)
            self.stack.handle_timer(self.now)
            frames += self.frames()
        self.now = end
        return frames


class OpenGuest(StackGuest):
    """A guest with one connection to `REMOTE`:80, ESTABLISHED, its sequence number 101."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.connection, self.iss = self.open()

    def open(self, source_port: int = 4000) -> tuple[TcpConnection, int]:
        self.send(self.tcp(tcp.SYN, options=tcp.emit_options(mss=1460), source_port=source_port))
        (request,) = self.events()
        connection = self.stack.accept(request, self.now)
        (frame,) = self.frames()
        iss = tcp_of(frame).seq
        self.send(self.tcp(tcp.ACK, seq=101, ack=iss + 1 & MASK, source_port=source_port))
        assert self.events() == [Connected(connection)]
        return connection, iss

    def data(self, payload: bytes = b"hello", *, seq: int = 101, flags: int = tcp.ACK, **fields: Any) -> bytes:
        return self.tcp(flags, payload, seq=seq, ack=self.iss + 1 & MASK, **fields)

    def received(self) -> bytes:
        return self.connection.receive(1 << 20, self.now)


def ip_of(frame: bytes) -> ipv4.Ipv4:
    """The verified IP header of a frame whose length is exact."""
    header = ipv4.parse(frame, 14)
    assert header.total_length == len(frame) - 14
    return header


def tcp_of(frame: bytes) -> tcp.Segment:
    header = ip_of(frame)
    assert header.protocol == inet.IPPROTO_TCP
    return tcp.parse(frame, 34, len(frame), header.source, header.destination)


def icmp_of(frame: bytes) -> tuple[icmp.Icmp, bytes]:
    """The verified message and what follows its header."""
    assert ip_of(frame).protocol == inet.IPPROTO_ICMP
    message = icmp.parse(frame, 34, len(frame))
    return message, frame[message.payload_offset :]
