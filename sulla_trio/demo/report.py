"""One line per step of the demo: whether it worked, what it is, its figure. Used on both sides of the network."""

from __future__ import annotations

from collections.abc import Callable


class Wrong(Exception):
    """A step's outcome is not what it must be; the text says what it was."""


def expect(condition: object, outcome: object) -> None:
    """Raises Wrong with `outcome` unless `condition` holds (an assert that `python -O` keeps)."""
    if not condition:
        raise Wrong(str(outcome))


class Report:
    """Runs steps, prints a line for each, counts those that failed."""

    def __init__(self) -> None:
        self.steps = 0
        self.failed = 0

    def step(self, name: str, action: Callable[[], str]) -> None:
        """Run `action`, which returns its figure or raises; a failed step does not hide the next ones."""
        self.steps += 1
        try:
            word, figure = "OK", action()
        except Exception as error:  # a demo step may fail in any way; the line says how, the exit status that it did
            self.failed += 1
            word, figure = "FAILED", f"{type(error).__name__}: {error}"
        print(f"{word:7} {name:28} {figure}", flush=True)
