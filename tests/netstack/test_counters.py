"""Counters start at nothing and are shown by name."""

from __future__ import annotations

from sulla_trio.netstack.counters import Counters


def test_drops_are_counted_by_reason() -> None:
    counters = Counters()
    counters.drop("tcp_checksum")
    counters.drop("tcp_checksum", 3)
    counters.drop("arp_short")
    assert counters.drops == {"tcp_checksum": 4, "arp_short": 1}


def test_as_dict_has_every_counter() -> None:
    counters = Counters()
    counters.tcp_retransmits += 2
    counters.drop("x")
    shown = counters.as_dict()
    assert shown.pop("drops") == {"x": 1}
    assert shown.pop("tcp_retransmits") == 2
    assert set(shown.values()) == {0}
    assert set(shown) == set(Counters.__slots__) - {"drops", "tcp_retransmits"}
