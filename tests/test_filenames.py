"""Each source file has its same-named test in the same-named folder, and each such test its source file."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "sulla_trio"
TESTS = ROOT / "tests"

# Source file -> why it has no test of its own name.
UNTESTED_BY_NAME = {
    "daemons/run_init.py": "run in real namespaces by e2e/test_run.py",
    "daemons/run_launch.py": "run in real namespaces by e2e/test_run.py",
    "daemons/run_supervise.py": "run in real namespaces by e2e/test_run.py",
    "daemons/run_config.py": "one frozen dataclass, no code that runs",
    "demo/container.py": "run in real namespaces by e2e/test_demo.py",
    "demo/four.py": "run in real namespaces by e2e/test_demo.py",
    "demo/guest.py": "run in real namespaces by e2e/test_demo.py",
    "demo/host.py": "run in real namespaces by e2e/test_demo.py",
    "demo/inside.py": "run in real namespaces by e2e/test_demo.py",
    "demo/report.py": "run in real namespaces by e2e/test_demo.py",
    "demo/run_demo.py": "run by tools/demo as a stage of .ci/run",
    "demo/vm.py": "run in real namespaces by e2e/test_demo.py",
    "demo/wsl_init.py": "run in real namespaces by e2e/test_demo.py",
    "forward/context.py": "protocols for the type checker, no code that runs",
}


def sources() -> set[str]:
    """Every source file with code in it, as a path relative to the package."""
    return {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py")
    }


def named_by_tests() -> set[str]:
    """The source files that tests are named for: ``wire/arp.py`` by ``tests/wire/test_arp.py`` or ``test_arp_*.py``.

    What ``tests/e2e`` starts are the daemons: ``e2e/test_run.py`` is a test of ``daemons/run.py``.
    """
    found = set()
    for path in TESTS.rglob("test_*.py"):
        folder = path.relative_to(TESTS).parent.as_posix().replace("e2e", "daemons")
        words = path.stem.removeprefix("test_").split("_")
        for end in range(len(words), 0, -1):
            found.add(f"{folder}/{'_'.join(words[:end])}.py".removeprefix("./"))
    return found


def test_each_source_file_has_its_test() -> None:
    assert sorted(sources() - named_by_tests() - set(UNTESTED_BY_NAME)) == []


def test_exceptions_are_needed_and_reasoned() -> None:
    assert sorted(name for name in UNTESTED_BY_NAME if name not in sources() or name in named_by_tests()) == []
    assert all(len(reason.split()) > 3 for reason in UNTESTED_BY_NAME.values())
