"""Ethernet, IPv4 and TCP header of one connection's segments, as one `bytes` from one `Struct.pack`.

What never changes is packed and summed once per connection. All sums are modulo 65535: in ones' complement arithmetic
65536 is 1, so a 32-bit field may be added whole (RFC 1071 section 2).
"""

from __future__ import annotations

from struct import Struct
from typing import Final, TypeAlias

from sulla_trio.wire import inet

Buffer: TypeAlias = bytes | bytearray | memoryview

# Ethernet header + version/IHL/TOS, total length, identification, DF + TTL + protocol, checksum, addresses and ports,
# then seq, ack, offset + flags, window, checksum, urgent pointer.
_PLAIN: Final = Struct(">16sHHIH12sIIHHHH")
_STAMPED: Final = Struct(">16sHHIH12sIIHHHHIII")
_VERSION_IHL_TOS: Final = b"\x45\x00"
_DF_TTL_PROTOCOL: Final = (
    0x4000_4006  # don't fragment, TTL 64, TCP; with DF the identification means nothing (RFC 6864 section 4)
)
_NOP_NOP_TIMESTAMPS: Final = 0x0101_080A  # RFC 7323 appendix A
_ETHERTYPE_IPV4: Final = b"\x08\x00"
_pack_plain = _PLAIN.pack
_pack_stamped = _STAMPED.pack
_partial_sum = inet.partial_sum


class HeaderTemplate:
    """Makes headers from `local` (us) to `remote` (the guest)."""

    __slots__ = ("_addresses", "_ip_sum", "_prefix", "_tcp_sum")

    def __init__(
        self, source_mac: bytes, mac: bytes, local_ip: bytes, local_port: int, remote_ip: bytes, remote_port: int
    ) -> None:
        self._prefix = mac + source_mac + _ETHERTYPE_IPV4 + _VERSION_IHL_TOS
        ips = local_ip + remote_ip
        self._addresses = ips + local_port.to_bytes(2, "big") + remote_port.to_bytes(2, "big")
        ip_words = _partial_sum(ips)
        self._ip_sum = 0x4500 + _DF_TTL_PROTOCOL + ip_words
        self._tcp_sum = ip_words + inet.IPPROTO_TCP + local_port + remote_port

    def plain(self, seq: int, ack: int, flags: int, window: int, payload: Buffer) -> bytes:
        """54 bytes: no options."""
        length = 20 + len(payload)
        flags |= 0x5000
        total = self._tcp_sum + length + seq + ack + flags + window
        if payload:
            total += _partial_sum(payload)
        return _pack_plain(
            self._prefix,
            length + 20,
            0,
            _DF_TTL_PROTOCOL,
            -(self._ip_sum + length + 20) % 65535,
            self._addresses,
            seq,
            ack,
            flags,
            window,
            -total % 65535,
            0,
        )

    def stamped(self, seq: int, ack: int, flags: int, window: int, payload: Buffer, value: int, echo: int) -> bytes:
        """66 bytes: the timestamps option (RFC 7323 section 3)."""
        length = 32 + len(payload)
        flags |= 0x8000
        total = self._tcp_sum + length + seq + ack + flags + window + _NOP_NOP_TIMESTAMPS + value + echo
        if payload:
            total += _partial_sum(payload)
        return _pack_stamped(
            self._prefix,
            length + 20,
            0,
            _DF_TTL_PROTOCOL,
            -(self._ip_sum + length + 20) % 65535,
            self._addresses,
            seq,
            ack,
            flags,
            window,
            -total % 65535,
            0,
            _NOP_NOP_TIMESTAMPS,
            value,
            echo,
        )

    def with_options(self, seq: int, ack: int, flags: int, window: int, options: bytes) -> bytes:
        """A segment without payload and with `options`, padded to a multiple of 4 and at most 40 bytes."""
        length = 20 + len(options)
        flags |= length << 10
        total = self._tcp_sum + length + seq + ack + flags + window + _partial_sum(options)
        return (
            _pack_plain(
                self._prefix,
                length + 20,
                0,
                _DF_TTL_PROTOCOL,
                -(self._ip_sum + length + 20) % 65535,
                self._addresses,
                seq,
                ack,
                flags,
                window,
                -total % 65535,
                0,
            )
            + options
        )
