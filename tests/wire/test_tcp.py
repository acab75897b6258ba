"""TCP segments, both ways, and against scapy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.packet import Raw

from sulla_trio.config import format_ip
from sulla_trio.errors import BadPacket
from sulla_trio.wire import inet, tcp

A, B = bytes((192, 168, 127, 2)), bytes((192, 168, 127, 1))
IPS = st.binary(min_size=4, max_size=4)
U16, U32 = st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)
PLAIN = tcp.Segment(40_000, 80, 1000, 2000, tcp.ACK, 502, 0, 20, 20)


def segment(options: bytes = b"", payload: bytes = b"", flags: int = tcp.ACK) -> bytes:
    return tcp.emit(A, 40_000, B, 80, 1000, 2000, flags, 502, payload, options=options) + payload


def parsed(data: bytes) -> tcp.Segment:
    return tcp.parse(data, 0, len(data), A, B)


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ("", {}),
        ("0101080a 00000005 00000006", {"ts_value": 5, "ts_echo": 6}),
        ("080a 00000005 00000006 0101", {"ts_value": 5, "ts_echo": 6}),  # the same, in an order of its own
        ("01010101 01010101 01010101", {}),  # twelve bytes that are not timestamps
        ("020405b4", {"mss": 1460}),
        (
            "020405b4 0402 080a 00000001 00000000 01 030307",
            {"mss": 1460, "sack_permitted": True, "ts_value": 1, "window_scale": 7},
        ),
        ("01030307", {"window_scale": 7}),
        ("0101050a 00000001 00000002", {"sack_blocks": ((1, 2),)}),
        ("0101 0512 00000001 00000002 fffffffe ffffffff", {"sack_blocks": ((1, 2), (0xFFFFFFFE, 0xFFFFFFFF))}),
        ("fe04abcd 020405b4", {"mss": 1460}),  # an unknown kind is passed over
        ("00 020405b4 000000", {}),  # nothing counts behind the end of the list
        ("020405b4 fe000101", {"mss": 1460}),  # a length of 0, 1 or beyond the header ends the list
        ("020405b4 fe010101", {"mss": 1460}),
        ("020405b4 03ff0701", {"mss": 1460}),
        ("020405b4 010101fe", {"mss": 1460}),  # no room for the length
        ("0203 05 01", {}),  # a known kind with a wrong length is passed over
        ("0103 0407 01010101 020405b4 000000 00", {"mss": 1460}),
        ("0101 0505 010203 00", {}),
    ],
)
def test_options(options: str, changes: dict[str, object]) -> None:
    raw = bytes.fromhex(options)
    raw += bytes(-len(raw) % 4)
    data = segment(raw, b"payload")
    expected = PLAIN._replace(payload_offset=20 + len(raw), payload_end=len(data))._replace(**changes)
    assert parsed(data) == expected
    moved = tcp.parse(memoryview(b"\xee" * 34 + data + b"\xee" * 9), 34, 34 + len(data), A, B)
    assert moved == expected._replace(payload_offset=54 + len(raw), payload_end=34 + len(data))


def test_a_known_segment() -> None:
    """A bare ACK, byte for byte, with the checksum put in by scapy."""
    wire = bytes.fromhex("9c400050000003e8000007d0501001f6")
    theirs = IP(src="192.168.127.2", dst="192.168.127.1") / TCP(
        sport=40_000, dport=80, seq=1000, ack=2000, window=502, flags="A"
    )
    assert segment() == bytes(theirs)[20:]
    assert segment()[:16] == wire


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "tcp_short"),
        (segment()[:19], "tcp_short"),
        (segment()[:12] + b"\x40" + segment()[13:], "tcp_offset"),
        (segment()[:12] + b"\x60" + segment()[13:], "tcp_offset"),
        (segment()[:12] + b"\x00" + segment()[13:], "tcp_offset"),
        (segment()[:-1] + b"\1", "tcp_checksum"),
        (segment(payload=b"ab")[:-1] + b"c", "tcp_checksum"),
        (bytes(12) + b"\x50" + bytes(7), "tcp_checksum"),
    ],
)
def test_bad_segments(data: bytes, reason: str) -> None:
    with pytest.raises(BadPacket, match=f"^{reason}$"):
        parsed(data)


def test_checksum_is_not_looked_at_when_told() -> None:
    data = segment()[:-4] + b"\xde\xad\0\0"
    assert tcp.parse(data, 0, len(data), A, B, verify=False) == PLAIN


def test_checksum_covers_the_addresses() -> None:
    with pytest.raises(BadPacket, match=r"^tcp_checksum$"):
        tcp.parse(segment(), 0, 20, A, bytes((192, 168, 127, 3)))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, ""),
        ({"mss": 1460}, "020405b4"),
        ({"window_scale": 7}, "01030307"),
        ({"sack_permitted": True}, "01010402"),
        ({"timestamps": (5, 6)}, "0101080a0000000500000006"),
        ({"sack_blocks": ((1, 2),)}, "0101050a0000000100000002"),
        ({"sack_blocks": ((1, 2),) * 9}, "01010522" + "0000000100000002" * 4),
        (
            {"timestamps": (5, 6), "sack_blocks": ((1, 2),) * 4},
            "0101080a0000000500000006" + "0101051a" + "0000000100000002" * 3,
        ),
    ],
)
def test_emit_options(arguments: dict[str, object], expected: str) -> None:
    assert tcp.emit_options(**arguments).hex() == expected


@given(
    IPS,
    U16,
    IPS,
    U16,
    U32,
    U32,
    st.integers(0, 255),
    U16,
    st.binary(max_size=1600),
    U16,
    st.none() | U16,
    st.none() | st.integers(0, 14),
    st.booleans(),
    st.none() | st.tuples(U32, U32),
    st.lists(st.tuples(U32, U32), max_size=2),
)
def test_round_trip_and_scapy(
    source: bytes,
    sport: int,
    destination: bytes,
    dport: int,
    seq: int,
    ack: int,
    flags: int,
    window: int,
    payload: bytes,
    urgent: int,
    mss: int | None,
    scale: int | None,
    sack: bool,
    stamps: tuple[int, int] | None,
    blocks: list[tuple[int, int]],
) -> None:
    options = tcp.emit_options(
        mss=mss, window_scale=scale, sack_permitted=sack, timestamps=stamps, sack_blocks=tuple(blocks)
    )
    assert len(options) <= tcp.MAX_OPTIONS
    assert len(options) % 4 == 0
    header = tcp.emit(
        source, sport, destination, dport, seq, ack, flags, window, memoryview(payload), options=options, urgent=urgent
    )
    data = header + payload
    value = tcp.parse(memoryview(data), 0, len(data), source, destination)
    expected = tcp.Segment(sport, dport, seq, ack, flags, window, urgent, len(header), len(data), mss, scale, sack)
    if stamps:
        expected = expected._replace(ts_value=stamps[0], ts_echo=stamps[1])
    assert value._replace(sack_blocks=()) == expected
    assert value.sack_blocks == tuple(blocks)[: len(value.sack_blocks)]
    theirs = TCP(header)
    assert (theirs.sport, theirs.dport, theirs.seq, theirs.ack, theirs.window, theirs.urgptr) == (
        sport,
        dport,
        seq,
        ack,
        window,
        urgent,
    )
    assert dict(theirs.options).get("MSS") == mss
    assert dict(theirs.options).get("Timestamp") == stamps
    del theirs.chksum
    whole = IP(src=format_ip(source), dst=format_ip(destination), proto=inet.IPPROTO_TCP) / theirs / Raw(payload)
    assert bytes(whole)[20:] == data


def test_format() -> None:
    value = PLAIN._replace(flags=tcp.SYN | tcp.ACK, mss=1460, window_scale=7, sack_blocks=((1, 2),), payload_end=25)
    line = "TCP 40000 > 80: Flags [S.], seq 1000, ack 2000, win 502, mss 1460, wscale 7, sack ((1, 2),), length 5"
    assert tcp.format(value) == line
    assert "Flags [FRPU]" in tcp.format(PLAIN._replace(flags=tcp.FIN | tcp.RST | tcp.PSH | tcp.URG))
