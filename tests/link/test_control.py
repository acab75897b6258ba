"""The control descriptor: what is sent is what arrives, everything else is refused, and no descriptor is left behind."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from sulla_trio.errors import BadPacket, ConfigError
from sulla_trio.link import control
from sulla_trio.link.control import Message


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    before = os.listdir("/proc/self/fd")
    ours, theirs = control.socket_pair()
    yield ours, theirs
    ours.close()
    theirs.close()
    assert os.listdir("/proc/self/fd") == before


Pair = tuple[socket.socket, socket.socket]


def test_a_link_arrives_as_a_descriptor_of_its_own(pair: Pair) -> None:
    left, right = socket.socketpair()
    control.send_link(pair[0], left.fileno())
    left.close()
    message = control.receive(pair[1])
    assert message is not None
    assert message.fd is not None
    assert message == Message("link", "", message.fd)
    assert not os.get_inheritable(message.fd)
    os.write(message.fd, b"across")
    os.close(message.fd)
    assert right.recv(100) == b"across"
    right.close()


def test_words_in_order_and_then_nothing(pair: Pair) -> None:
    ours, theirs = pair
    control.send(theirs, "up")
    control.send(theirs, "lost", "end of stream inside a frame (3 bytes of it)")
    assert control.receive(ours) == Message("up", "", None)
    assert control.receive(ours) == Message("lost", "end of stream inside a frame (3 bytes of it)", None)
    with pytest.raises(BlockingIOError):
        control.receive(ours)


def test_a_reason_is_made_one_short_line(pair: Pair) -> None:
    ours, theirs = pair
    control.send(theirs, "lost", "naïve\n" + "x" * 10_000)
    message = control.receive(ours)
    assert message is not None
    assert message.text.startswith("na?ve?xxx")
    assert len(message.text) == control.MAX_MESSAGE - len("lost ")


def test_the_end_is_none_for_ever(pair: Pair) -> None:
    ours, theirs = pair
    control.send(ours, "up")
    ours.close()
    assert control.receive(theirs) == Message("up", "", None)
    assert control.receive(theirs) is None
    assert control.receive(theirs) is None


def test_an_end_with_something_unread_is_an_end(pair: Pair) -> None:
    ours, theirs = pair
    control.send(ours, "up")
    theirs.close()
    assert control.receive(ours) is None


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "control_unknown_message"),
        (b"hello", "control_unknown_message"),
        (b"LINK", "control_unknown_message"),
        (b"up ", "control_unknown_message"),
        (b"lost ", "control_unknown_message"),
        (b"up now", "control_unknown_message"),
        (b"lost", "control_unknown_message"),
        (b"link", "control_descriptor_count"),
        (b"link 3", "control_unknown_message"),
        (b"link\n", "control_not_ascii"),
        (b"lost \xff", "control_not_ascii"),
        (b"lost " + b"x" * 1000, "control_too_long"),
    ],
)
def test_bad_messages_are_passed_over(pair: Pair, data: bytes, reason: str) -> None:
    ours, theirs = pair
    ours.send(data)
    control.send(ours, "up")
    with pytest.raises(BadPacket, match=f"^{reason}$"):
        control.receive(theirs)
    assert control.receive(theirs) == Message("up", "", None)


@pytest.mark.parametrize("data", [b"", b"up", b"lost end of stream"])
def test_a_descriptor_with_another_word_is_refused(pair: Pair, data: bytes) -> None:
    file = os.open("/dev/null", os.O_RDONLY)
    socket.send_fds(pair[0], [data], [file])
    os.close(file)
    with pytest.raises(BadPacket):
        control.receive(pair[1])


@pytest.mark.parametrize("count", [2, 8, 9, 200])
def test_more_than_one_descriptor_is_refused_and_all_are_closed(pair: Pair, count: int) -> None:
    left, right = socket.socketpair()
    socket.send_fds(pair[0], [b"link"], [left.fileno()] * count)
    left.close()
    with pytest.raises(BadPacket, match=r"^control_descriptor_count$"):
        control.receive(pair[1])
    assert right.recv(1) == b""  # nobody holds the other end any more
    right.close()


def test_what_is_no_connected_stream_is_refused(pair: Pair) -> None:
    file = os.open("/dev/null", os.O_RDONLY)
    datagram, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    alone = socket.socket()
    for number in (file, datagram.fileno(), alone.fileno(), pair[0].fileno()):
        control.send_link(pair[0], number)
        with pytest.raises(BadPacket, match=r"^control_not_a_connected_stream$"):
            control.receive(pair[1])
    os.close(file)
    for sock in (datagram, other, alone):
        sock.close()


def test_a_reader_that_sleeps_blocks_nobody(pair: Pair) -> None:
    with pytest.raises(BlockingIOError):
        for _ in range(100_000):
            control.send(pair[0], "up")


def test_the_inherited_socket(pair: Pair) -> None:
    number = os.dup(pair[1].fileno())
    os.set_inheritable(number, True)
    os.set_blocking(number, True)
    with control.inherited(number) as taken:
        assert not os.get_inheritable(number)
        assert not os.get_blocking(number)
        control.send(pair[0], "up")
        assert control.receive(taken) == Message("up", "", None)


@pytest.mark.parametrize("number", [-1, 9999, 1 << 40])
def test_a_number_that_is_no_socket(number: int) -> None:
    with pytest.raises(ConfigError, match=f"SULLA_CTL_FD={number} is not an inherited socket"):
        control.inherited(number)


def test_a_socket_of_another_kind_stays_open() -> None:
    left, right = socket.socketpair()
    with left, right:
        with pytest.raises(ConfigError, match="SOCK_SEQPACKET"):
            control.inherited(left.fileno())
        left.send(b"x")
