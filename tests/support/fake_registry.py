"""What of `winreg` discovery uses, over a dictionary."""

from __future__ import annotations

import contextlib


class FakeRegistry:
    """`keys`: path below HKEY_LOCAL_MACHINE -> names of its sub-keys."""

    HKEY_LOCAL_MACHINE = 18446744071562067970

    def __init__(self, keys: dict[str, list[str]]) -> None:
        self.keys = keys
        self.open = 0

    def OpenKey(self, key: int, sub_key: str) -> contextlib.AbstractContextManager[object]:
        assert key == self.HKEY_LOCAL_MACHINE
        if sub_key not in self.keys:
            raise FileNotFoundError(2, "The system cannot find the file specified")
        return self._opened(self.keys[sub_key])

    @contextlib.contextmanager
    def _opened(self, names: list[str]):
        self.open += 1
        yield names
        self.open -= 1

    def EnumKey(self, key: list[str], index: int) -> str:
        if index >= len(key):
            raise OSError(22, "No more data is available")
        return key[index]
