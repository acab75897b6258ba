"""Headers against our own parsers and against scapy, which computes every checksum anew."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from sulla_trio.netstack.tcp_header import HeaderTemplate
from sulla_trio.wire import ipv4, tcp

SOURCE_MAC, MAC = b"\x02\0\0\0\0\1", b"\x02\0\0\0\0\2"
LOCAL, REMOTE = bytes([192, 168, 127, 1]), bytes([192, 168, 127, 2])
WORD = st.integers(0, 0xFFFFFFFF)


@pytest.fixture(name="template", scope="module")
def make_template() -> HeaderTemplate:
    return HeaderTemplate(SOURCE_MAC, MAC, LOCAL, 80, REMOTE, 40_000)


def check(frame: bytes) -> tcp.Segment:
    ip = ipv4.parse(frame, 14)
    assert (ip.source, ip.destination, ip.protocol, ip.total_length) == (LOCAL, REMOTE, 6, len(frame) - 14)
    assert ip.dont_fragment
    return tcp.parse(frame, 34, len(frame), LOCAL, REMOTE)


@given(seq=WORD, ack=WORD, window=st.integers(0, 0xFFFF), payload=st.binary(max_size=70))
def test_plain(template: HeaderTemplate, seq: int, ack: int, window: int, payload: bytes) -> None:
    segment = check(template.plain(seq, ack, tcp.ACK | tcp.PSH, window, memoryview(payload)) + payload)
    assert segment[:7] == (80, 40_000, seq, ack, tcp.ACK | tcp.PSH, window, 0)
    assert segment.payload_end - segment.payload_offset == len(payload)


@given(seq=WORD, ack=WORD, payload=st.binary(max_size=70), value=WORD, echo=WORD)
def test_stamped(template: HeaderTemplate, seq: int, ack: int, payload: bytes, value: int, echo: int) -> None:
    segment = check(template.stamped(seq, ack, tcp.ACK, 512, payload, value, echo) + payload)
    assert (segment.seq, segment.ack, segment.ts_value, segment.ts_echo) == (seq, ack, value, echo)


@given(seq=WORD, mss=st.integers(0, 0xFFFF), blocks=st.lists(st.tuples(WORD, WORD), max_size=3))
def test_with_options(template: HeaderTemplate, seq: int, mss: int, blocks: list[tuple[int, int]]) -> None:
    options = tcp.emit_options(mss=mss, sack_blocks=tuple(blocks))
    segment = check(template.with_options(seq, 0, tcp.SYN, 1, options))
    assert (segment.mss, segment.sack_blocks, segment.flags) == (mss, tuple(blocks), tcp.SYN)


@pytest.mark.parametrize("payload", [b"", b"x", bytes(1460), bytes(range(256)) * 5])
def test_scapy_agrees_on_the_bytes(template: HeaderTemplate, payload: bytes) -> None:
    ours = template.stamped(1, 2, tcp.ACK, 3, payload, 4, 5) + payload
    packet = Ether(ours)
    del packet[IP].chksum
    del packet[TCP].chksum
    assert bytes(packet) == ours
    assert packet[TCP].options == [("NOP", None), ("NOP", None), ("Timestamp", (4, 5))]
