"""Merging trains: what becomes one, what ends one, and that no octet and no checksum is lost."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw

from sulla_trio.errors import BadPacket
from sulla_trio.netstack import merging
from sulla_trio.wire import ipv4, tcp, virtio

A, B = bytes((10, 0, 0, 1)), bytes((192, 168, 127, 2))
LINK = {"src": "5a:94:ef:e4:0c:dd", "dst": "5a:94:ef:e4:0c:ee"}
STAMPS = [("NOP", None), ("NOP", None), ("Timestamp", (5, 6))]


def segment(
    seq: int,
    payload: bytes,
    *,
    flags: str = "A",
    sport: int = 80,
    ip: dict[str, object] | None = None,
    **fields: object,
) -> bytes:
    """A segment from A to B, 66 bytes of headers."""
    header = IP(**{"src": "10.0.0.1", "dst": "192.168.127.2", "flags": "DF", "id": 0, **(ip or {})})
    body = {"ack": 1, "window": 501, "options": STAMPS, **fields}
    return bytes(Ether(**LINK) / header / TCP(sport=sport, dport=40_000, seq=seq, flags=flags, **body) / Raw(payload))


def train(count: int, size: int = 100, start: int = 1000, **fields: object) -> list[bytes]:
    """`count` segments that follow each other, each with payload of its own."""
    return [segment(start + at * size, bytes((at + 1,)) * size, **fields) for at in range(count)]  # type: ignore[arg-type]


def merge(frames: Sequence[bytes]) -> list[tuple[tuple[int, ...], bytes]]:
    """(virtio-net header, frame) of each write."""
    writes = merging.merge([memoryview(frame) for frame in frames])
    joined = [b"".join(write) for write in writes]
    return [(struct.unpack_from("<BBHHHH", write), write[10:]) for write in joined]


PLAIN = (0, 0, 0, 0, 0, 0)


def check_valid(frame: bytes) -> tcp.Segment:
    """Its lengths and both checksums hold."""
    ip = ipv4.parse(frame, 14)
    assert ip.total_length == len(frame) - 14
    return tcp.parse(frame, 14 + ip.header_length, len(frame), ip.source, ip.destination)


def test_a_train_becomes_one() -> None:
    frames = train(4)
    ((todo, frame),) = merge(frames)
    assert todo == (0, virtio.GSO_TCPV4, 66, 100, 0, 0)
    # What scapy makes of all the payload at once is the same frame, checksums included.
    assert frame == segment(1000, b"".join(each[66:] for each in frames))
    assert check_valid(frame).payload_end == 14 + 20 + 32 + 400


def test_payloads_are_views_of_what_was_received() -> None:
    buffers = [bytearray(frame) for frame in train(3)]
    (write,) = merging.merge([memoryview(buffer) for buffer in buffers])
    assert [view.obj for view in write[1:] if isinstance(view, memoryview)] == buffers


@pytest.mark.parametrize("size", [99, 101, 1447])
def test_odd_sizes(size: int) -> None:
    frames = [*train(5, size), segment(1000 + 5 * size, b"tail!", flags="PA")]
    ((todo, frame),) = merge(frames)
    assert todo[3] == size
    assert frame == segment(1000, b"".join(each[66:] for each in frames), flags="PA")


def test_the_last_may_be_shorter_and_ends_it() -> None:
    frames = [*train(2), segment(1200, b"x" * 40), segment(1240, b"y" * 40)]
    assert [(todo[3], len(frame)) for todo, frame in merge(frames)] == [(100, 66 + 240), (0, 66 + 40)]


def test_push_ends_a_train() -> None:
    frames = [*train(2), *train(1, start=1200, flags="PA"), *train(2, start=1300)]
    merged = merge(frames)
    assert [len(frame) - 66 for _, frame in merged] == [300, 200]
    assert check_valid(merged[0][1]).flags == tcp.ACK | tcp.PSH
    assert check_valid(merged[1][1]).flags == tcp.ACK


def test_acknowledgments_go_on_and_the_newest_window_holds() -> None:
    frames = [
        segment(1000, b"a" * 50, ack=0xFFFF_FFFF, window=9),
        segment(1050, b"b" * 50, ack=3, window=9),
        segment(1100, b"c" * 50, ack=3, window=2),
    ]
    ((_, frame),) = merge(frames)
    assert frame == segment(1000, b"a" * 50 + b"b" * 50 + b"c" * 50, ack=3, window=2)


def test_the_sequence_number_wraps() -> None:
    frames = [segment(0xFFFF_FFCE, b"a" * 50), segment(0, b"b" * 50)]
    ((_, frame),) = merge(frames)
    assert frame == segment(0xFFFF_FFCE, b"a" * 50 + b"b" * 50)


BEFORE = segment(1000, b"a" * 50)
SECOND = b"b" * 50


@pytest.mark.parametrize(
    "second",
    [
        segment(1050, b"b" * 51),  # longer than the first
        segment(1051, SECOND),  # a hole
        segment(1050, b""),  # a pure acknowledgment
        segment(1050, SECOND, ack=0),  # backwards
        segment(1050, SECOND, flags="FA"),
        segment(1050, SECOND, flags="RA"),
        segment(1050, SECOND, flags="SA"),
        segment(1050, SECOND, flags="UA"),
        segment(1050, SECOND, flags="EA"),
        segment(1050, SECOND, flags="CA"),
        segment(1050, SECOND, flags=""),
        segment(1050, SECOND, options=[]),
        segment(1050, SECOND, options=[("NOP", None), ("NOP", None), ("Timestamp", (6, 6))]),
        segment(1050, SECOND, ip={"tos": 3}),
        segment(1050, SECOND, ip={"ttl": 63}),
        segment(1050, SECOND, ip={"flags": 0}),
        segment(1050, SECOND, ip={"flags": "MF"}),
        segment(1050, SECOND, ip={"frag": 4}),
        segment(1050, SECOND, ip={"proto": 17}),
        segment(1050, SECOND, ip={"chksum": 1}),
        segment(1050, SECOND) + b"\0",  # padded
        segment(1050, SECOND)[:-1],
        b"\0\1" + segment(1050, SECOND)[2:],  # another station
    ],
)
def test_what_does_not_follow(second: bytes) -> None:
    """Both go as they came, in order; and what would have followed is not put in front of what came between."""
    third = segment(1050, SECOND)
    assert merge([BEFORE, second, third]) == [(PLAIN, BEFORE), (PLAIN, second), (PLAIN, third)]


def test_a_duplicate_begins_again() -> None:
    frames = train(2)
    assert merge([frames[0], *frames]) == [(PLAIN, frames[0]), *merge(frames)]


@pytest.mark.parametrize(
    "first",
    [
        segment(1000, b"a" * 50, flags="PA"),
        segment(1000, b"a" * 50, flags="FA"),
        segment(1000, b"a" * 50, flags="EA"),
        segment(1000, b"a" * 7),  # GSO sizes below 8 are refused
        segment(1000, b""),
        segment(1000, b"a" * 50, ip={"flags": "MF"}),
        segment(1000, b"a" * 50, ip={"frag": 4}),
        segment(1000, b"a" * 50, ip={"chksum": 1}),
        segment(1000, b"a" * 50, ip={"options": b"\x94\x04\x00\x00"}),
        segment(1000, b"a" * 50, dataofs=4),
        segment(1000, b"a" * 50, dataofs=15),
        segment(1000, b"a" * 50) + b"\0",
        bytes(Ether(**LINK) / IP(src="10.0.0.1", dst="192.168.127.2") / UDP(sport=80, dport=40_000) / Raw(b"a" * 50)),
        bytes(Ether(**LINK) / ARP()),
        bytes(14),
        bytes(53),
        bytes(60),
    ],
)
def test_what_begins_no_train(first: bytes) -> None:
    second = segment(1000 + len(first) - 66, b"b" * 7)
    assert merge([first, second]) == [(PLAIN, first), (PLAIN, second)]


def test_without_df_the_identification_counts() -> None:
    numbered = [segment(1000 + at * 50, b"a" * 50, ip={"flags": 0, "id": 0xFFFE + at & 0xFFFF}) for at in range(4)]
    assert len(merge(numbered)) == 1
    assert len(merge(numbered[:2] + numbered[3:])) == 2
    assert len(merge([segment(1000 + at * 50, b"a" * 50, ip={"flags": 0, "id": 5}) for at in range(2)])) == 2
    assert len(merge([segment(1000 + at * 50, b"a" * 50, ip={"id": 9 * at}) for at in range(4)])) == 1


def test_flows_side_by_side() -> None:
    """Each flow keeps its order, and a train stands where its first segment stood."""
    one, two = train(3, sport=80), train(3, sport=81)
    arp = bytes(Ether(**LINK) / ARP())
    merged = merge([one[0], two[0], one[1], arp, two[1], one[2], two[2]])
    assert [frame for _, frame in merged] == [merge(one)[0][1], merge(two)[0][1], arp]


def test_an_out_of_order_segment_ends_the_train_before_it() -> None:
    """The second train of a flow never comes before the first."""
    frames = train(6)
    merged = merge([frames[0], frames[1], frames[4], frames[5], frames[2], frames[3]])
    assert [check_valid(frame).seq for _, frame in merged] == [1000, 1400, 1200]


def test_up_to_the_largest_datagram() -> None:
    frames = train(60, 1448)
    merged = merge(frames)
    assert [ipv4.parse(frame, 14).total_length for _, frame in merged] == [52 + 45 * 1448, 52 + 15 * 1448]
    exact = [segment(1000, bytes(32_742)), segment(33_742, bytes(32_741))]
    ((_, frame),) = merge(exact)
    assert ipv4.parse(frame, 14).total_length == 65_535
    beyond = [segment(1000, bytes(32_742)), segment(33_742, bytes(32_742))]
    assert len(merge(beyond)) == 2


def test_damage_is_not_blessed() -> None:
    """A segment whose payload does not fit its checksum makes the whole one's checksum wrong."""
    frames = train(3)
    frames[1] = frames[1][:-1] + b"!"
    ((_, frame),) = merge(frames)
    with pytest.raises(BadPacket, match=r"^tcp_checksum$"):
        check_valid(frame)


def test_nothing() -> None:
    assert merge([]) == []
    assert merge([BEFORE]) == [(PLAIN, BEFORE)]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.integers(0, 40),
            st.sampled_from(["A", "A", "A", "PA", "FA"]),
            st.integers(0, 5),
        ),
        max_size=30,
    )
)
def test_any_batch_keeps_each_flow(steps: list[tuple[int, int, str, int]]) -> None:
    """Flows of any sizes, flags and holes: octets and order of each are what they were, and all checksums hold."""
    seqs, frames = [0, 0, 0], []
    for flow, size, flags, hole in steps:
        seqs[flow] += hole == 0
        frames.append(segment(seqs[flow], bytes(range(size)), flags=flags, sport=80 + flow))
        seqs[flow] += size

    def streams(batch: Sequence[bytes]) -> list[list[tuple[int, int]]]:
        """Of each flow: (sequence number, octet) in the order of arrival."""
        found: list[list[tuple[int, int]]] = [[], [], []]
        for frame in batch:
            at = check_valid(frame)
            payload = frame[at.payload_offset : at.payload_end]
            found[at.source_port - 80] += [(at.seq + index, octet) for index, octet in enumerate(payload)]
        return found

    merged = [frame for _, frame in merge(frames)]
    assert streams(merged) == streams(frames)
    assert len(merged) <= len(frames)
