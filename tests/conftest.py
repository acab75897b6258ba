"""Settings of the whole suite."""

from __future__ import annotations

from hypothesis import settings

# No test asserts a time, and hypothesis's deadline of 200 ms is one: a busy machine would fail it.
settings.register_profile("sulla", deadline=None)
settings.load_profile("sulla")
