"""prctl, signalfd and dispositions, each seen from outside by a process that is their subject."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap

import pytest

from sulla_trio.link import process

PATIENCE = 30


def python(code: str, **more: object) -> subprocess.Popen[str]:
    program = "import os, signal, sys, time\nfrom sulla_trio.link import process\n" + textwrap.dedent(code)
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, **more)  # type: ignore[call-overload,no-any-return]


def output(code: str, **more: object) -> str:
    with python(code, **more) as child:
        text, _ = child.communicate(timeout=PATIENCE)
    assert child.returncode == 0
    return text


def test_errors_carry_errno_and_name() -> None:
    with pytest.raises(OSError) as caught:
        process.libc_call("prctl", -1)
    assert (caught.value.errno, caught.value.filename) == (22, "prctl")


def test_a_child_dies_with_its_parent() -> None:
    code = """
        child = os.fork()
        if not child:
            process.die_with_parent()
            print("ready", os.getpid(), flush=True)
            time.sleep(100)
        time.sleep(100)
    """
    with python(code) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline().split()[1])
        handle = os.pidfd_open(pid)
        parent.kill()
        assert select.select([handle], [], [], PATIENCE)[0], "the child lives"
        os.close(handle)


def test_orphans_are_adopted() -> None:
    code = """
        process.adopt_orphans()
        between = os.fork()
        if not between:
            os.fork() or os._exit(0 if time.sleep(0.1) else 7)
            os._exit(0)
        os.waitpid(between, 0)
        print(os.waitstatus_to_exitcode(os.waitpid(-1, 0)[1]))
    """
    assert output(code) == "7\n"


def test_the_name() -> None:
    assert (
        output("process.set_process_name('vm-switch'); print(open('/proc/self/comm').read(), end='')") == "vm-switch\n"
    )


def test_ignored_signals_are_those_of_the_caller() -> None:
    code = "print(sorted(process.ignored_signals()) == [signal.SIGHUP, signal.SIGUSR1])"

    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    assert output(code, preexec_fn=ignore) == "True\n"


def test_dispositions_and_mask_are_restored() -> None:
    code = """
        for number in (signal.SIGTERM, signal.SIGTSTP):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
        process.restore_signals((signal.SIGHUP,), (signal.SIGUSR2,))
        os.execvp("grep", ("grep", "-E", "SigBlk|SigIgn", "/proc/self/status"))
    """
    words = output(code).split()
    assert int(words[1], 16) == 1 << (signal.SIGUSR2 - 1)
    assert int(words[3], 16) & LIBC_SIGNALS_MASK == 1 << (signal.SIGHUP - 1)


LIBC_SIGNALS_MASK = ~(0b11 << 31)
"""Without signals 32 and 33: the C library keeps them for itself, and some interpreters start with them blocked."""

ORIGIN = """
import os, signal
from sulla_trio.link import process

signals = process.SignalDescriptor((signal.SIGUSR1, signal.SIGCONT))
try:
    signals.read()
except BlockingIOError:
    pass
else:
    raise AssertionError
os.kill(os.getpid(), signal.SIGUSR1)
assert signals.read() == (signal.SIGUSR1, 0, os.getpid())
assert os.get_inheritable(signals.fileno()) is False
signals.close()
assert signal.SIGUSR1 not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
print("all right")
"""


def test_signals_have_an_origin() -> None:
    # In a process of its own: with a second thread about, the kernel may give the signal to that one, which does not block it.
    done = subprocess.run([sys.executable, "-c", ORIGIN], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("all right\n", "")


def test_the_descriptor_limit_becomes_the_hard_one() -> None:
    code = """
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 300))
        print(process.raise_descriptor_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))
    """
    assert output(code) == "300 300 300\n"
