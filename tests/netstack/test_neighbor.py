"""The neighbor cache: learning, asking three times, and the bounds of what waits."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sulla_trio.netstack import neighbor
from sulla_trio.netstack.counters import Counters
from sulla_trio.netstack.neighbor import Neighbor, NeighborCache

MAC = b"\x02\0\0\0\0\1"


def address(number: int) -> bytes:
    return bytes((10, 0)) + number.to_bytes(2, "big")


class Asking:
    """A cache and what it asked for; `answers` collects what waiters were told."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.counters = Counters()
        self.cache = NeighborCache(self.asked.append, self.counters)
        self.answers: list[Neighbor | None] = []

    def resolve(self, number: int, now: float = 0.0, size: int = 0) -> None:
        self.cache.resolve(address(number), self.answers.append, now, size)


@pytest.fixture
def asking() -> Asking:
    return Asking()


def test_known_is_answered_at_once_without_asking(asking: Asking) -> None:
    asking.cache.learn(address(1), MAC, 4)
    asking.resolve(1)
    assert asking.answers == [Neighbor(MAC, 4)]
    assert asking.asked == []
    assert asking.cache.poll_at() is None


def test_what_waits_goes_in_order_when_learned(asking: Asking) -> None:
    order: list[str] = []

    def note(name: str) -> Callable[[Neighbor | None], None]:
        return lambda found: order.append(f"{name} {found.port if found else None}")

    for name in "abc":
        asking.cache.resolve(address(1), note(name), 0.0, 10)
    assert asking.asked == [address(1)]
    assert asking.cache.waiting == (3, 30)
    asking.cache.learn(address(1), MAC, 2)
    assert order == ["a 2", "b 2", "c 2"]
    assert asking.cache.waiting == (0, 0)
    assert asking.cache.poll_at() is None


def test_three_requests_a_second_apart_then_nobody(asking: Asking) -> None:
    asking.resolve(1, now=10.0, size=5)
    for at in (11.0, 12.0):
        assert asking.cache.poll_at() == at
        asking.cache.handle_timer(at - 0.1)
        asking.cache.handle_timer(at)
        assert asking.answers == []
    assert asking.asked == [address(1)] * 3
    asking.cache.handle_timer(13.0)
    assert asking.answers == [None]
    assert asking.asked == [address(1)] * 3
    assert asking.cache.poll_at() is None
    assert asking.cache.waiting == (0, 0)
    assert asking.counters.drops == {"neighbor_unresolved": 1}


def test_a_neighbor_that_moved(asking: Asking) -> None:
    asking.cache.learn(address(1), MAC, 0)
    asking.cache.learn(address(1), MAC, 1)
    assert asking.cache.get(address(1)) == Neighbor(MAC, 1)
    assert len(asking.cache) == 1


def test_the_cache_is_bounded_and_the_longest_unused_goes(asking: Asking) -> None:
    for number in range(neighbor.CACHE_LIMIT):
        asking.cache.learn(address(number), MAC, 0)
    asking.resolve(0)  # used: not the one to go
    asking.cache.learn(address(neighbor.CACHE_LIMIT), MAC, 0)
    assert len(asking.cache) == neighbor.CACHE_LIMIT == 512
    assert asking.cache.get(address(0)) is not None
    assert asking.cache.get(address(1)) is None


def test_what_waits_for_one_address_is_bounded(asking: Asking) -> None:
    for _ in range(neighbor.PENDING_LIMIT + 1):
        asking.resolve(1)
    assert asking.answers == [None]
    assert asking.counters.drops == {"neighbor_queue_full": 1}


def test_what_waits_in_all_is_bounded(asking: Asking) -> None:
    for count in range(neighbor.PENDING_TOTAL + 1):
        asking.resolve(count % 200)
    assert asking.answers == [None]
    assert asking.cache.waiting[0] == neighbor.PENDING_TOTAL


def test_bytes_that_wait_are_bounded(asking: Asking) -> None:
    asking.resolve(1, size=neighbor.PENDING_BYTES)
    asking.resolve(2, size=1)
    asking.resolve(3)  # a connection holds no bytes
    assert asking.answers == [None]
    assert asking.cache.waiting == (2, neighbor.PENDING_BYTES)


def test_addresses_asked_for_are_bounded(asking: Asking) -> None:
    for number in range(neighbor.UNRESOLVED_LIMIT + 1):
        asking.resolve(number)
    assert len(asking.asked) == neighbor.UNRESOLVED_LIMIT
    assert asking.answers == [None]
    assert asking.counters.drops == {"neighbor_table_full": 1}


def test_a_removed_port_is_forgotten(asking: Asking) -> None:
    asking.cache.learn(address(1), MAC, 0)
    asking.cache.learn(address(2), MAC, 1)
    asking.cache.port_removed(0)
    assert asking.cache.get(address(1)) is None
    assert asking.cache.get(address(2)) is not None


def test_a_waiter_that_asks_again_at_once_waits_anew(asking: Asking) -> None:
    asking.cache.resolve(address(1), lambda _: asking.resolve(1, now=3.0), 0.0)
    for at in (1.0, 2.0, 3.0):
        asking.cache.handle_timer(at)
    assert asking.asked == [address(1)] * 4
    assert asking.cache.waiting == (1, 0)
