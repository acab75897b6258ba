"""DHCP clients behind one link of host-switch, by frames in the length-prefixed framing: as many MACs as a test likes."""

from __future__ import annotations

import trio

from sulla_trio.config import BROADCAST_MAC
from sulla_trio.wire import dhcp, ethernet, inet, ipv4, udp

ANY = bytes(4)
BROADCAST_IP = b"\xff" * 4


def mac(number: int) -> bytes:
    """A MAC of its own for each number."""
    return b"\2\0\0" + number.to_bytes(3, "big")


class DhcpLink:
    """A guest's end of a link: `stream` carries frames of any number of clients without an address."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._buffered = bytearray()
        self.others: list[dhcp.Dhcp] = []
        """Answers to others that `reply` met."""

    async def send(self, mac: bytes, kind: int, options: dict[int, bytes] | None = None, ciaddr: bytes = ANY) -> None:
        """One message from 0.0.0.0 to everybody."""
        options = {dhcp.MESSAGE_TYPE: bytes((kind,)), **(options or {})}
        message = dhcp.emit(
            dhcp.Dhcp(1, 1, 6, int.from_bytes(mac[2:], "big"), 0, 0, ciaddr, ANY, ANY, ANY, mac, options)
        )
        segment = udp.emit(ANY, 68, BROADCAST_IP, 67, message) + message
        packet = ipv4.emit(ANY, BROADCAST_IP, inet.IPPROTO_UDP, len(segment)) + segment
        frame = ethernet.emit(BROADCAST_MAC, mac, ethernet.ETHERTYPE_IPV4) + packet
        await self._stream.send_all(len(frame).to_bytes(2, "little") + frame)

    async def reply(self, mac: bytes) -> dhcp.Dhcp:
        """The next answer to `mac`; frames that are no answers are passed over."""
        while True:
            frame = await self._frame()
            if frame[12:14] == b"\x08\0" and frame[23] == inet.IPPROTO_UDP:
                message = dhcp.parse(frame[42:])
                if message.chaddr == mac:
                    return message
                self.others.append(message)

    async def _frame(self) -> bytes:
        while True:
            end = 2 + int.from_bytes(self._buffered[:2], "little")
            if len(self._buffered) >= max(2, end):
                frame = bytes(self._buffered[2:end])
                del self._buffered[:end]
                return frame
            more = await self._stream.receive_some()
            if not more:
                raise EOFError
            self._buffered += more

    async def lease(self, mac: bytes) -> bytes:
        """The address that `mac` gets by DISCOVER and REQUEST, asking for nothing."""
        await self.send(mac, dhcp.DISCOVER)
        offer = await self.reply(mac)
        assert offer.message_type == dhcp.OFFER
        server = offer.options[dhcp.SERVER_ID]
        await self.send(mac, dhcp.REQUEST, {dhcp.REQUESTED_IP: offer.yiaddr, dhcp.SERVER_ID: server})
        ack = await self.reply(mac)
        assert (ack.message_type, ack.yiaddr) == (dhcp.ACK, offer.yiaddr)
        return ack.yiaddr
