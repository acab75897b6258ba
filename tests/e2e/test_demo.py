"""`sulla demo`: all four daemons on this machine, by root and by an ordinary user, to the end and cut short.

Starts itself: host-switch, network-setup, vm-switch and wsl-proxy of this checkout, in namespaces that `sulla demo` makes.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.runs import SULLA, Watched, as_nobody, wait_until

pytestmark = pytest.mark.e2e

DEMO = (*SULLA, "demo", "--size", "4")
STEPS = (
    "four daemons", "PID 1 of the guest", "download from the host", "a container in the guest", "container: out, hash equal",
    "guest agent publishes", "host reaches the container", "another distro, by wsl-proxy", "another distro, by route",
    "events of wsl-proxy", "host-switch killed", "vm-switch killed", "guest agent withdraws", "network-setup told to end",
)  # fmt: skip


@pytest.fixture
def watched() -> Iterator[Watched]:
    made = Watched()
    yield made
    made.close()


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_every_step_works_and_nothing_is_left(watched: Watched, user: str) -> None:
    line = as_nobody(DEMO, watched.runtime_of_nobody) if user == "nobody" else list(DEMO)
    done = watched.run(*line, timeout=240)
    words = [row.split()[0] for row in done.stdout.splitlines()[:-1]]
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(words) == {"OK"}, done.stdout
    for step in STEPS:
        assert f"OK      {step}" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("all of it worked")


def test_stay_is_a_shell_in_the_guest_and_its_status_ours(watched: Watched) -> None:
    script = "ip -br -4 addr show eth0; readlink /proc/self/ns/pid; exit 7\n"
    done = watched.run(*SULLA, "demo", "--stay", stdin=None, input=script, timeout=120)
    assert done.returncode == 7, done.stdout + done.stderr
    assert "192.168.127.2/24" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_cut_short_it_takes_everything_along(watched: Watched, number: signal.Signals) -> None:
    demo = subprocess.Popen(
        [*SULLA, "demo", "--stay"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=watched.environment
    )
    try:
        # The shell in the guest is there: everything else is up.
        wait_until(lambda: watched.find("vm-switch -tap-interface") and len(watched.network_namespaces()) == 2)
    finally:
        demo.send_signal(number)
        if demo.stdin is not None:
            demo.stdin.close()
        demo.wait()
    watched.wait_gone()


def test_what_is_missing_is_one_line(watched: Watched) -> None:
    code = "import sys, os; os.environ['PATH'] = '/nowhere'; from sulla_trio.cli.sulla import main; main()"
    done = watched.run(sys.executable, "-c", code, "demo")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("FAILED  unshare is missing: it is part of util-linux\n")
