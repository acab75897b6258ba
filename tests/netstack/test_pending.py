"""The table of unanswered SYNs: its three bounds, and that it forgets what it is told to."""

from __future__ import annotations

import pytest

from sulla_trio.netstack.events import ConnectionRequest
from sulla_trio.netstack.pending import MAX_PENDING, MAX_PER_DESTINATION, MAX_PER_GUEST, PendingRequests
from sulla_trio.wire.tcp import SYN, Segment


def request(number: int, *, guest: int = 0, destination: int = 0, port: int = 0) -> ConnectionRequest:
    remote_ip, local_ip = bytes((10, 0, 0, guest)), bytes((8, 8)) + destination.to_bytes(2, "big")
    key = remote_ip + local_ip + number.to_bytes(2, "big") + b"\0\x50"
    segment = Segment(number, 80, 1, 0, SYN, 1000, 0, 0, 0)
    return ConnectionRequest(key, remote_ip, number, local_ip, 80, b"\2\0\0\0\0\1", port, segment, b"", 0.0)


def test_kept_until_taken() -> None:
    table, one = PendingRequests(), request(1)
    assert table.add(one) is None
    assert table.get(one.key) is one
    assert table.pop(one.key) is one
    assert table.get(one.key) is None
    assert table.pop(one.key) is None
    assert len(table) == 0


def test_per_destination() -> None:
    table = PendingRequests()
    assert {table.add(request(number)) for number in range(MAX_PER_DESTINATION)} == {None}
    assert table.add(request(999)) == "syn_pending_destination_full"
    assert table.add(request(999, destination=1)) is None  # the others are not starved
    table.pop(request(0).key)
    assert table.add(request(998)) is None


def test_per_guest() -> None:
    table = PendingRequests()
    assert {table.add(request(number, destination=number)) for number in range(MAX_PER_GUEST)} == {None}
    assert table.add(request(999, destination=999)) == "syn_pending_guest_full"
    assert table.add(request(999, destination=999, guest=1)) is None


def test_in_all() -> None:
    table = PendingRequests()
    for number in range(MAX_PENDING):
        assert table.add(request(number, destination=number, guest=number % 8)) is None
    assert table.add(request(9999, destination=9999, guest=9)) == "syn_pending_full"
    assert len(table) == MAX_PENDING


@pytest.mark.parametrize("rounds", [3])
def test_counts_come_back_to_nothing(rounds: int) -> None:
    table = PendingRequests()
    for _ in range(rounds):
        for number in range(MAX_PER_DESTINATION):
            assert table.add(request(number)) is None
        for number in range(MAX_PER_DESTINATION):
            table.pop(request(number).key)
    assert (len(table), table._guests, table._destinations) == (0, {}, {})


def test_of_a_port() -> None:
    table = PendingRequests()
    for number in range(4):
        table.add(request(number, port=number % 2))
    assert table.of_port(1) == [request(1).key, request(3).key]
