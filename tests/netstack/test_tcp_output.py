"""One pass: all that the windows allow, at most one segment without payload, and nothing that is not due."""

from __future__ import annotations

from sulla_trio.netstack.tcp_header import HeaderTemplate
from sulla_trio.wire.tcp import ACK, FIN, PSH, RST, SYN, emit_options
from tests.support.peer import established, last_ack, listening


def test_nothing_to_say() -> None:
    peer = established()
    out: list[tuple[int, bytes, bytes | memoryview]] = []
    peer.connection.frames(peer.now, out)
    assert out == []


def test_headers_and_payload_are_apart() -> None:
    peer = established()
    data = bytes(5000)
    peer.connection.send(data, peer.now)
    frames = peer.stack.frames_to_send(peer.now)
    assert [len(header) for _, header, _ in frames] == [54] * 4
    assert [len(payload) for _, _, payload in frames] == [1460, 1460, 1460, 620]
    assert all(payload.obj is data for _, _, payload in frames if isinstance(payload, memoryview))


def test_timestamps_are_milliseconds_and_echo_the_peers() -> None:
    peer = established(emit_options(timestamps=(1000, 0)))
    peer.timestamps = (1234, 0)
    peer.connection.send(b"x", peer.now)
    first = peer.expect(ACK)
    peer.send(ACK, b"y" * 3000)
    peer.now += 2.5
    peer.connection.send(b"x", peer.now)
    second = peer.expect(ACK)
    assert first.ts_value is not None
    assert second.ts_value == (first.ts_value + 2500) & 0xFFFFFFFF
    assert (first.ts_echo, second.ts_echo) == (1000, 1234)


def test_the_last_byte_carries_push_and_fin() -> None:
    peer = established()
    peer.connection.send(bytes(2000), peer.now)
    peer.connection.shutdown(peer.now)
    assert peer.expect(ACK).flags == ACK
    assert peer.expect(ACK | FIN).flags == ACK | PSH | FIN
    peer.expect_nothing()


def test_fin_waits_for_what_is_queued() -> None:
    peer = established()
    peer.send(window=2000)
    peer.connection.send(bytes(3000), peer.now)
    peer.connection.shutdown(peer.now)
    peer.expect(ACK, bytes(1460))
    peer.expect_nothing()
    peer.send(window=5000)
    peer.expect(ACK, bytes(1460))
    peer.expect(ACK | FIN, bytes(80))


def test_a_fin_alone() -> None:
    peer = established()
    peer.connection.shutdown(peer.now)
    peer.expect(FIN | ACK, b"", seq=1, ack=1)
    assert last_ack().connection.snd.fin_sent


def test_after_a_pause_it_starts_with_the_initial_window() -> None:
    """RFC 5681 section 4.1: nothing sent for a retransmission time-out."""
    peer = established()
    for _ in range(3):
        peer.connection.send(bytes(14_600), peer.now)
        while peer.stack.dirty or peer.sent:
            peer.expect(ACK)
        peer.send()
    assert peer.connection.snd.cwnd > 40_000
    peer.wait(0.1)
    peer.connection.send(bytes(29_200), peer.now)
    peer._collect()
    assert len(peer.sent) == 20
    while peer.sent:
        peer.expect(ACK)
    peer.send()
    peer.wait(1)
    peer.connection.send(bytes(29_200), peer.now)
    peer._collect()
    assert len(peer.sent) == 10


def test_a_reset_goes_before_everything_else() -> None:
    peer = listening()
    peer.send(ACK, ack=77)
    peer.expect(RST, seq=77)
    peer.expect(SYN | ACK, seq=0)


def test_a_queued_frame_survives_the_end_of_the_connection() -> None:
    peer = established()
    peer.connection.send(b"kept", peer.now)
    ((_, header, payload),) = peer.stack.frames_to_send(peer.now)
    peer.connection.abort(peer.now)
    assert (len(header), bytes(payload)) == (54, b"kept")
    assert isinstance(peer.connection.header, HeaderTemplate)
