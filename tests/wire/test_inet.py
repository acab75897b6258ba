"""The internet checksum against the definition: words added one by one (RFC 1071 section 1)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.utils import checksum as scapy_checksum

from sulla_trio.wire import inet

LENGTHS = (0, 1, 2, 3, 20, 127, 128, 129, 1480, 1499, 1536, 1537, 4096, 4097, 8192, 12_289, 65_534, 65_535)


def reference_sum(data: bytes) -> int:
    total = 0
    for at in range(0, len(data) - 1, 2):
        total += data[at] << 8 | data[at + 1]
    if len(data) & 1:
        total += data[-1] << 8
    while total >> 16:
        total = (total >> 16) + (total & 0xFFFF)
    return total


def patterns(length: int) -> list[bytes]:
    counting = (bytes(range(256)) * (length // 256 + 1))[:length]
    last = bytes(length - 1) + b"\1" if length else b""
    return [bytes(length), b"\xff" * length, counting, last, b"\x80" * length]


@pytest.mark.parametrize("length", LENGTHS)
def test_sum_of_each_length_and_pattern(length: int) -> None:
    for data in patterns(length):
        assert inet.partial_sum(data) == reference_sum(data)
        assert inet.partial_sum(memoryview(bytearray(data))) == reference_sum(data)
        assert inet.checksum(data) == reference_sum(data) ^ 0xFFFF == scapy_checksum(data)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0xFFFF),
        (b"\0\0", 0xFFFF),
        (b"\xff\xff", 0),
        (b"\xff\xff\xff\xff", 0),
        (bytes.fromhex("0001f203f4f5f6f7"), 0x220D),  # RFC 1071 section 3
        (b"\1", 0xFEFF),
    ],
)
def test_known_checksums(data: bytes, expected: int) -> None:
    assert inet.checksum(data) == expected


@given(st.binary(max_size=6000))
def test_sum_of_any_bytes(data: bytes) -> None:
    assert inet.partial_sum(data) == reference_sum(data)


@given(st.binary(max_size=200).filter(lambda data: len(data) % 2 == 0), st.binary(max_size=201))
def test_parts_add_up(first: bytes, second: bytes) -> None:
    assert inet.fold(inet.partial_sum(first) + inet.partial_sum(second)) == inet.partial_sum(first + second)
    assert inet.checksum(second, inet.partial_sum(first)) == inet.checksum(first + second)


@pytest.mark.parametrize(("total", "expected"), [(0, 0), (1, 1), (65_535, 65_535), (65_536, 1), (131_070, 65_535)])
def test_fold_keeps_zero_apart_from_all_ones(total: int, expected: int) -> None:
    assert inet.fold(total) == expected


@given(
    st.sampled_from((4, 16)).flatmap(
        lambda n: st.tuples(st.binary(min_size=n, max_size=n), st.binary(min_size=n, max_size=n))
    )
)
def test_pseudo_header(addresses: tuple[bytes, bytes]) -> None:
    source, destination = addresses
    words = source + destination + (17).to_bytes(2, "big") + (1480).to_bytes(2, "big")
    assert inet.fold(inet.pseudo_sum(source, destination, 17, 1480)) == reference_sum(words)
