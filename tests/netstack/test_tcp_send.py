"""Segmentation, zero copy, retransmission and congestion control."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sulla_trio.netstack import tcp_recovery
from sulla_trio.netstack.events import Writable
from sulla_trio.netstack.tcp_options import TcpOptions
from sulla_trio.netstack.tcp_send import COALESCE, Sender
from sulla_trio.wire.tcp import ACK, emit_options
from tests.support.peer import Peer, established

KIB = 1 << 10


def flying(mss: int = 1000, count: int = 8, window: int = 60_000) -> Peer:
    """Established, with `count` full segments sent and looked at."""
    peer = established(emit_options(mss=mss))
    peer.connection.send(bytes(range(256)) * 200, peer.now)
    peer._collect()
    for at in range(count):
        assert len(peer.payloads[at]) == mss
    del peer.sent[count:], peer.payloads[count:]
    for _ in range(count):
        peer.expect(ACK)
    return peer


# Segmentation


def test_full_segments_and_the_rest() -> None:
    peer = established()
    peer.connection.send(b"x" * 3000, peer.now)
    assert peer.expect(ACK, b"x" * 1460, seq=1).flags == ACK
    assert peer.expect(ACK, b"x" * 1460, seq=1461).flags == ACK
    assert peer.expect(ACK, b"x" * 80, seq=2921).flags != ACK  # PSH: it empties the queue
    peer.expect_nothing()


def test_small_writes_are_joined() -> None:
    peer = established()
    for letter in b"abc":
        peer.connection.send(bytes([letter]), peer.now)
    peer.expect(ACK, b"abc")


def test_payloads_are_slices_of_what_was_given() -> None:
    snd = Sender(TcpOptions(), 0, 1000)
    snd.wnd = 1 << 20
    data = bytes(5000)
    snd.enqueue(data)
    payload = snd.take(1000)
    assert isinstance(payload, memoryview)
    assert payload.obj is data


def test_the_initial_window_is_ten_segments() -> None:
    peer = established()
    peer.connection.send(bytes(60_000), peer.now)
    peer._collect()
    assert len(peer.sent) == 10


def test_no_more_than_the_peers_window() -> None:
    peer = established()
    peer.send(window=3000)
    peer.connection.send(bytes(10_000), peer.now)
    peer._collect()
    assert [len(payload) for payload in peer.payloads] == [1460, 1460]  # no silly rest of 80
    peer.sent.clear()
    peer.payloads.clear()
    peer.ack = 1 + 2920
    peer.send(window=6000)
    peer._collect()
    assert sum(map(len, peer.payloads)) <= 6000


@given(
    writes=st.lists(st.integers(1, 9000), min_size=1, max_size=20),
    steps=st.lists(st.tuples(st.sampled_from(["take", "ack", "timeout", "first"]), st.integers(1, 5000)), max_size=60),
)
def test_every_segment_is_the_bytes_at_its_place(writes: list[int], steps: list[tuple[str, int]]) -> None:
    stream = bytes(number % 251 for number in range(sum(writes)))
    snd = Sender(TcpOptions(), 0xFFFFF000, 1000)
    snd.established()
    snd.wnd = snd.max_wnd = 30_000
    base = snd.una
    given_ = 0
    todo = list(writes)
    for verb, amount in [*steps, *[("take", 1)] * 30]:
        if todo:
            size = todo.pop()
            snd.enqueue(stream[given_ : given_ + size])
            given_ += size
        acked, sent = (snd.una - base) & 0xFFFFFFFF, (snd.max - base) & 0xFFFFFFFF
        if verb == "take":
            at = (snd.nxt - base) & 0xFFFFFFFF
            payload = snd.take(1000)
            if payload is not None:
                assert payload == stream[at : at + len(payload)]
                assert 0 < len(payload) <= 1000
                if (snd.max - snd.nxt) & 0x80000000:
                    snd.max = snd.nxt
        elif verb == "first":
            assert snd.first(amount) == stream[acked : min(acked + amount, sent)]
            assert snd.sent_again(amount // 2, amount) == stream[acked + amount // 2 : sent][:amount]
        elif verb == "timeout":
            tcp_recovery.timed_out(snd)
        elif sent > acked:
            snd.acknowledged(min(amount, sent - acked), 0.0)
        assert snd.queued == given_ - ((snd.una - base) & 0xFFFFFFFF)
        assert snd.unsent == given_ - ((snd.nxt - base) & 0xFFFFFFFF)


def test_tiny_writes_do_not_make_tiny_chunks() -> None:
    snd = Sender(TcpOptions(), 0, 1000)
    for _ in range(3 * COALESCE):
        snd.enqueue(b"x")
    assert len(snd.chunks) == 3


# The bound


def test_room_and_writable() -> None:
    peer = established()
    connection = peer.connection
    room = connection.send_room()
    assert room == 65_536
    connection.send(bytes(room), peer.now)
    assert connection.send_room() == 0
    for _ in range(10):
        peer.expect(ACK)
    peer.send()
    peer.no_event()  # 14,600 of 65,536 are free: not half
    while connection.snd.queued > room // 2:
        peer._collect()
        while peer.sent:
            peer.expect(ACK)
        peer.no_event()
        peer.send()
    peer.event(Writable)
    assert connection.send_room() >= room // 2


def test_preferred_read_is_whole_segments() -> None:
    peer = established()
    assert peer.connection.preferred_read() == 65_536 // 1460 * 1460
    peer.connection.send(bytes(65_536 - 1000), peer.now)
    assert peer.connection.preferred_read() == 0
    assert peer.connection.blocked


def test_a_peer_with_a_large_window_gets_up_to_a_mebibyte() -> None:
    peer = established(emit_options(mss=1460, window_scale=10))
    assert peer.connection.send_room() == 1 << 20


def test_many_connections_share_the_budget() -> None:
    peer = established(emit_options(mss=1460, window_scale=10), options=TcpOptions(budget=1 << 20))
    for _ in range(3):
        peer.stack.credit.open(0)
    assert peer.connection.send_room() == 256 * KIB


def test_a_segment_larger_than_the_share_does_not_stall() -> None:
    peer = established(emit_options(mss=64_960), mss=64_960, options=TcpOptions(budget=1 << 20))
    for _ in range(63):
        peer.stack.credit.open(0)
    assert peer.connection.preferred_read() == 16 * KIB
