"""Cancelling an operation at each of its checkpoints in turn."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

T = TypeVar("T")
MANY = 200
"""Checkpoints; an operation that has more does not end."""


class _CancelAt(trio.abc.Instrument):
    """Cancels `scope` while `task` makes its `step`th step: what it awaits next raises."""

    def __init__(self, task: trio.lowlevel.Task, scope: trio.CancelScope, step: int) -> None:
        self._task = task
        self._scope = scope
        self._left = step

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self._left -= 1
            if not self._left:
                self._scope.cancel()


async def cancel_at_each_checkpoint(
    operation: Callable[[], Awaitable[T]],
    finish: Callable[[T], Awaitable[object]],
    check: Callable[[], Awaitable[object]],
) -> int:
    """Run `operation` again and again, cancelled one checkpoint later each time, until it completes; `finish` its result,
    and `check` after each. How often it was cancelled."""
    for step in range(MANY):
        with trio.CancelScope() as scope:
            if step == 0:
                scope.cancel()
            instrument = _CancelAt(trio.lowlevel.current_task(), scope, step)
            trio.lowlevel.add_instrument(instrument)
            try:
                result = await operation()
            finally:
                trio.lowlevel.remove_instrument(instrument)
        if not scope.cancelled_caught:
            await finish(result)
        await check()
        if not scope.cancelled_caught:
            return step
    raise AssertionError(f"not complete after {MANY} checkpoints")
