"""The internet checksum (RFC 1071) and protocol numbers."""

from __future__ import annotations

from typing import Final

Buffer = bytes | bytearray | memoryview

IPPROTO_ICMP: Final = 1
IPPROTO_TCP: Final = 6
IPPROTO_UDP: Final = 17

_CHUNK: Final = 4096  # bytes; even, so that every chunk is whole words. Measured best of 512..16384 for 64 KiB
_SMALL: Final = 1536  # bytes: an Ethernet frame
_PLAIN: Final = 128  # bytes below which folding costs more than it saves


def _masks(*widths: int) -> tuple[tuple[int, int], ...]:
    return tuple((bits, (1 << bits) - 1) for bits in widths)


_SMALL_MASKS: Final = _masks(6144, 3072, 1536)
_CHUNK_MASKS: Final = _masks(16_384, 8192, 4096, 2048)


def partial_sum(data: Buffer) -> int:
    """Ones-complement sum of `data` as big-endian 16-bit words, 0..65535, not complemented; 0 only if all bytes are zero.

    An odd last byte counts as the high half of a word. 2**16 is 1 modulo 65535, so the sum of the words is the remainder
    of the whole as one long integer; chunks are added and halves folded first (linear), because the division is not.
    """
    length = len(data)
    if length <= _CHUNK:
        number = int.from_bytes(data, "big")
        if length & 1:
            number <<= 8
        if length > _PLAIN:
            for bits, mask in _SMALL_MASKS if length <= _SMALL else _CHUNK_MASKS:
                number = (number >> bits) + (number & mask)
    else:
        whole = length - length % _CHUNK
        number = int.from_bytes(data[whole:], "big")
        if length & 1:
            number <<= 8
        for start in range(0, whole, _CHUNK):
            number += int.from_bytes(data[start : start + _CHUNK], "big")
        for bits, mask in _CHUNK_MASKS:
            number = (number >> bits) + (number & mask)
    return number % 65_535 or (65_535 if number else 0)


def fold(total: int) -> int:
    """A sum of partial sums, folded to 16 bits; 0 only for 0."""
    remainder = total % 65_535
    return 65_535 if not remainder and total else remainder


def checksum(data: Buffer, initial: int = 0) -> int:
    """The checksum field for `data` whose field bytes are zero; over data with a right field in it the result is 0."""
    return fold(partial_sum(data) + initial) ^ 0xFFFF


def pseudo_sum(source: bytes, destination: bytes, protocol: int, length: int) -> int:
    """Sum of the pseudo header (RFC 9293 section 3.1; RFC 8200 section 8.1 for 16-byte addresses), not folded.

    It is congruent to the sum of the words modulo 65535, and above 0: add it to partial sums, then `fold`.
    """
    return int.from_bytes(source + destination, "big") + protocol + length
