"""RFC 6298."""

from __future__ import annotations

import pytest

from sulla_trio.netstack.tcp_options import TcpOptions
from sulla_trio.netstack.tcp_rtt import RttEstimator


def test_before_any_sample_one_second() -> None:
    assert RttEstimator(TcpOptions()).rto == 1.0


def test_first_sample() -> None:
    rtt = RttEstimator(TcpOptions())
    rtt.sample(0.5)
    assert (rtt.srtt, rtt.rttvar, rtt.rto) == (0.5, 0.25, 1.5)


def test_later_samples() -> None:
    rtt = RttEstimator(TcpOptions())
    rtt.sample(0.5)
    rtt.sample(0.9)
    assert rtt.rttvar == pytest.approx(0.75 * 0.25 + 0.25 * 0.4)
    assert rtt.srtt == pytest.approx(0.875 * 0.5 + 0.125 * 0.9)
    assert rtt.rto == pytest.approx(rtt.srtt + 4 * rtt.rttvar)


def test_bounds() -> None:
    rtt = RttEstimator(TcpOptions(min_rto=0.2, max_rto=60.0))
    rtt.sample(0.0001)
    assert rtt.rto == 0.2
    for _ in range(20):
        rtt.back_off()
    assert rtt.rto == 60.0
    rtt.sample(0.0001)
    assert rtt.rto == 0.2


def test_backing_off_doubles() -> None:
    rtt = RttEstimator(TcpOptions())
    rtt.back_off()
    assert rtt.rto == 2.0


def test_a_lost_syn_means_three_seconds() -> None:
    rtt = RttEstimator(TcpOptions())
    rtt.syn_was_lost()
    assert rtt.rto == 3.0
