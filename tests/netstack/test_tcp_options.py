"""The defaults keep what the design promises."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from sulla_trio.netstack.tcp_options import TcpOptions
from sulla_trio.netstack.tcp_recv import WINDOW_SHIFT


def test_defaults() -> None:
    options = TcpOptions()
    assert options.initial_window == 64 << 10
    assert options.send_bound == 1 << 20
    assert options.initial_window <= options.max_window <= 0xFFFF << WINDOW_SHIFT
    assert options.delayed_ack < options.min_rto <= options.initial_rto <= options.max_rto


def test_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        TcpOptions().time_wait = 1  # type: ignore[misc]
