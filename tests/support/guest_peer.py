"""The other end of a link for tests of vm-switch: a scripted host that answers ARP, DHCP and ping, and keeps what it saw.

It is written against the RFCs by hand (no codec of ours), so that an error of theirs cannot hide here. Blocking sockets,
no trio: it runs in a thread or a process of its own. Run as a program it stands in for host-switch: ``guest_peer.py FD``.
"""

from __future__ import annotations

import socket
import struct
import sys
from dataclasses import dataclass, field

GATEWAY_MAC = bytes.fromhex("5a94efe40cdd")
GATEWAY_IP = bytes((192, 168, 127, 1))
GUEST_IP = bytes((192, 168, 127, 2))
DISCOVER, OFFER, REQUEST, ACK = 1, 2, 3, 5


def internet_checksum(data: bytes) -> int:
    """RFC 1071, word by word."""
    total = 0
    for (word,) in struct.iter_unpack("!H", data + b"\0" * (len(data) % 2)):
        total += word
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def ipv4_packet(source: bytes, destination: bytes, protocol: int, payload: bytes) -> bytes:
    """Header with checksum, and `payload`."""
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0, source, destination)
    return header[:10] + internet_checksum(header).to_bytes(2, "big") + header[12:] + payload


def framed(frame: bytes) -> bytes:
    return len(frame).to_bytes(2, "little") + frame


@dataclass
class GuestPeer:
    """Answers on `connection` until its end. `frames` keeps all that came, in order."""

    connection: socket.socket
    mtu: int = 1500
    lease_seconds: int = 3600
    silent: bool = False
    """Answer nothing."""
    frames: list[bytes] = field(default_factory=list)
    dhcp_types: list[int] = field(default_factory=list)

    def serve(self) -> None:
        stream = self.connection.makefile("rb")
        while prefix := stream.read(2):
            frame = stream.read(int.from_bytes(prefix, "little"))
            self.frames.append(frame)
            if not self.silent:
                for answer in self.answers(frame):
                    self.send(answer)

    def send(self, frame: bytes) -> None:
        self.connection.sendall(framed(frame))

    def answers(self, frame: bytes) -> list[bytes]:
        if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\x01" and frame[38:42] == GATEWAY_IP:
            body = frame[14:20] + b"\0\x02" + GATEWAY_MAC + GATEWAY_IP + frame[22:32]
            return [frame[6:12] + GATEWAY_MAC + b"\x08\x06" + body]
        if frame[12:14] != b"\x08\0":
            return []
        if frame[23] == 1 and frame[34] == 8 and frame[30:34] == GATEWAY_IP:
            return [self.echo_reply(frame)]
        if frame[23] == 17 and frame[36:38] == b"\0\x43":
            return [self.dhcp_reply(frame)]
        return []

    def echo_reply(self, frame: bytes) -> bytes:
        echo = bytearray(frame[34:])
        echo[0] = 0
        echo[2:4] = b"\0\0"
        echo[2:4] = internet_checksum(bytes(echo)).to_bytes(2, "big")
        return frame[6:12] + GATEWAY_MAC + b"\x08\0" + ipv4_packet(GATEWAY_IP, frame[26:30], 1, bytes(echo))

    def dhcp_reply(self, frame: bytes) -> bytes:
        """RFC 2131 section 4.3: OFFER for DISCOVER, ACK for REQUEST."""
        message = frame[42:]
        kind = self.dhcp_type(frame)
        self.dhcp_types.append(kind)
        options = bytes((53, 1, OFFER if kind == DISCOVER else ACK, 54, 4)) + GATEWAY_IP
        options += bytes((51, 4)) + self.lease_seconds.to_bytes(4, "big") + bytes((1, 4, 255, 255, 255, 0))
        options += bytes((3, 4)) + GATEWAY_IP + bytes((6, 4)) + GATEWAY_IP
        options += bytes((26, 2)) + self.mtu.to_bytes(2, "big") + b"\xff"
        head = b"\x02" + message[1:4] + message[4:8] + bytes(4) + message[12:16]
        reply = head + GUEST_IP + GATEWAY_IP + bytes(4) + message[28:44] + bytes(192) + b"\x63\x82\x53\x63" + options
        reply = reply.ljust(300, b"\0")
        udp = struct.pack("!HHHH", 67, 68, 8 + len(reply), 0) + reply
        return b"\xff" * 6 + GATEWAY_MAC + b"\x08\0" + ipv4_packet(GATEWAY_IP, b"\xff" * 4, 17, udp)

    @classmethod
    def dhcp_type(cls, frame: bytes) -> int:
        """Option 53 of the DHCP message in `frame`."""
        return cls.option(frame, 53)[0]

    @staticmethod
    def option(frame: bytes, wanted: int) -> bytes:
        """One option of the DHCP message in `frame`; empty: it is not there."""
        message, at = frame[42:], 240
        while message[at] != 255:
            if message[at] == 0:
                at += 1
                continue
            if message[at] == wanted:
                return message[at + 2 : at + 2 + message[at + 1]]
            at += 2 + message[at + 1]
        return b""


if __name__ == "__main__":
    GuestPeer(socket.socket(fileno=int(sys.argv[1]))).serve()
