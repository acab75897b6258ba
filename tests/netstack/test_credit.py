"""The budget of advertised windows."""

from __future__ import annotations

from sulla_trio.netstack.credit import MIN_SEND_SHARE, SMALL_WINDOW, CreditBudget

KIB = 1 << 10


def test_new_connections_get_little_when_the_budget_is_nearly_spent() -> None:
    budget = CreditBudget(16 * 64 * KIB)
    granted = [budget.open(64 * KIB) for _ in range(18)]
    assert granted == [64 * KIB] * 15 + [SMALL_WINDOW] * 3
    assert budget.charged == sum(granted)
    assert budget.connections == 18


def test_growth_leaves_room_for_newcomers() -> None:
    budget = CreditBudget(1024 * KIB)
    size = budget.open(64 * KIB)
    while budget.grow(size):
        size *= 2
    assert size == 512 * KIB
    assert budget.open(64 * KIB) == 64 * KIB


def test_what_is_given_back_can_be_had_again() -> None:
    budget = CreditBudget(128 * KIB)
    first = budget.open(64 * KIB)
    assert budget.open(64 * KIB) == SMALL_WINDOW
    budget.close(first)
    assert budget.open(64 * KIB) == 64 * KIB
    assert budget.charged == 64 * KIB + SMALL_WINDOW


def test_a_small_wish_is_granted_whole() -> None:
    assert CreditBudget(0).open(100) == 100


def test_send_share() -> None:
    budget = CreditBudget(1024 * KIB)
    assert budget.send_share() == 1024 * KIB
    for _ in range(4):
        budget.open(1)
    assert budget.send_share() == 256 * KIB
    for _ in range(1000):
        budget.open(1)
    assert budget.send_share() == MIN_SEND_SHARE
