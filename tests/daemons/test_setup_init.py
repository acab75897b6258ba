"""The argv that makes PID 1, and its file. (The process itself: e2e/test_network_setup.py.)"""

from __future__ import annotations

import stat
from pathlib import Path

from sulla_trio.daemons.setup_init import init_arguments, remove_pid_file, write_pid_file


def test_arguments() -> None:
    assert init_arguments("/a b", 17, 9) == [
        "/usr/bin/nsenter", "-n/proc/17/fd/9", "-F",
        "/usr/bin/unshare", "--pid", "--mount-proc", "--fork", "--propagation", "slave", "/a b",
    ]  # fmt: skip


def test_the_file_is_made_private_and_truncated(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    write_pid_file(1234567, str(path))
    assert path.read_bytes() == b"1234567"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    write_pid_file(42, str(path))
    assert path.read_bytes() == b"42"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_only_our_own_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    remove_pid_file(42, str(path))
    write_pid_file(43, str(path))
    remove_pid_file(4, str(path))
    assert path.exists()
    remove_pid_file(43, str(path))
    assert not path.exists()
