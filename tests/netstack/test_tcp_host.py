"""Whoever owns connections offers what they need."""

from __future__ import annotations

import inspect

from sulla_trio.netstack.stack import Stack
from sulla_trio.netstack.tcp_host import CLOSED, TcpHost
from tests.support.bare_stack import BareStack


def test_the_stack_and_its_stand_in_have_the_verbs_of_a_host() -> None:
    verbs = {name: value for name, value in vars(TcpHost).items() if inspect.isfunction(value) and name[0] != "_"}
    assert set(verbs) == {"mark_dirty", "arm", "raise_event", "forget", "path_mss", "is_queued", "entered_time_wait"}
    for host in (Stack, BareStack):
        for name, verb in verbs.items():
            assert list(inspect.signature(getattr(host, name)).parameters) == list(inspect.signature(verb).parameters)


def test_closed_is_no_count_of_bytes() -> None:
    assert CLOSED < 0
