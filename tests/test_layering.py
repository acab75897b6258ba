"""The trio line holds: import contracts, and the code above the line runs where trio and sockets do not exist."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import sulla_trio

ROOT = Path(__file__).resolve().parent.parent
ABOVE = ("errors", "config", "wire", "netstack", "services")

# The interpreter itself may load a clock before ours runs, so blocking is by refusing the import statement's finder
# *and* by dropping what is there already.
IMPORT_BLOCKED = """
import importlib, sys
blocked = {"trio", "socket", "_socket", "select", "ssl", "subprocess", "threading", "asyncio"}
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name in blocked:
            raise ImportError(name + " is below the trio line")
for name in blocked:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Refuse())
for name in sys.argv[1:]:
    importlib.import_module(name)
print(len(sys.argv) - 1)
"""


def modules_above() -> list[str]:
    """Dotted names of every module above the trio line."""
    return [
        module.name
        for module in pkgutil.walk_packages(sulla_trio.__path__, "sulla_trio.")
        if module.name.split(".")[1] in ABOVE
    ]


def test_import_contracts() -> None:
    command = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports())"
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_above_the_line_imports_without_trio_or_sockets() -> None:
    names = modules_above()
    assert {"sulla_trio.wire.tcp", "sulla_trio.netstack.tcp", "sulla_trio.config"} <= set(names)
    done = subprocess.run([sys.executable, "-c", IMPORT_BLOCKED, *names], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(len(names))


@pytest.mark.parametrize("name", ["trio", "socket"])
def test_the_block_itself_refuses(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT_BLOCKED, name], capture_output=True, text=True)
    assert done.returncode == 1
    assert "below the trio line" in done.stderr


def test_no_file_is_named_for_nothing() -> None:
    nothing = {"utils", "util", "helpers", "helper", "manager", "common", "misc"}
    named = [str(path) for path in (ROOT / "sulla_trio").rglob("*.py") if path.stem in nothing]
    assert named == []
