"""`sulla run` as its user meets it: statuses, streams, signals, terminals, identity; and that nothing is left of it.

The kernel is the guest. Everything runs as root and, where it matters, as a user without any privilege.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.runs import NOBODY, PATIENCE, Terminal, Watched, sulla_run, terminal, wait_until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.geteuid() != 0, reason="the other user is made from root"),
    pytest.mark.skipif(not os.path.exists("/dev/net/tun"), reason="no /dev/net/tun"),
]


@pytest.fixture
def watched() -> Iterator[Watched]:
    found = Watched()
    yield found
    found.close()


@pytest.fixture(params=["root", "nobody"])
def user(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


# What CMD finds


def test_the_network_is_there(watched: Watched, user: str) -> None:
    done = watched.run(*watched.line(user, "sh", "-c", "ip -br addr show eth0; ip route; ping -c1 -W5 192.168.127.1"))
    assert done.returncode == 0, done.stderr
    assert "192.168.127.2/24" in done.stdout
    assert "default via 192.168.127.1 dev eth0" in done.stdout
    assert "fe80" not in done.stdout
    assert "1 received" in done.stdout
    assert done.stderr == ""


def test_the_mac_and_the_mtu(watched: Watched) -> None:
    done = watched.run(*sulla_run("ip", "link", "show", "eth0", options=["--mtu", "9000"]))
    assert "5a:94:ef:e4:0c:ee" in done.stdout
    assert "mtu 9000" in done.stdout


def test_another_subnet(watched: Watched) -> None:
    done = watched.run(
        *sulla_run("sh", "-c", "ip -br addr show eth0; cat /etc/resolv.conf", options=["--subnet", "10.9.8.0/24"])
    )
    assert "10.9.8.2/24" in done.stdout
    assert "nameserver 10.9.8.1\n" in done.stdout


def test_names_are_asked_of_us_alone(watched: Watched, user: str) -> None:
    done = watched.run(
        *watched.line(user, "sh", "-c", "grep nameserver /etc/resolv.conf; grep ^hosts: /etc/nsswitch.conf")
    )
    assert done.stdout == "nameserver 192.168.127.1\nhosts: files dns\n"
    assert "192.168.127.1" not in Path("/etc/resolv.conf").read_text()


@pytest.mark.parametrize("target", ["/run/nowhere/at/all/resolv.conf", "/run/resolv.conf", "/nowhere/resolv.conf"])
def test_a_dangling_resolv_conf(watched: Watched, target: str) -> None:
    """In a mount namespace where /etc/resolv.conf is a link to nothing, as on a machine whose resolver is not running."""
    script = f"""
    mount -t tmpfs -o mode=755 tmpfs /mnt && cp -a /etc /mnt/etc && rm -f /mnt/etc/resolv.conf || exit 99
    ln -s {target} /mnt/etc/resolv.conf && mount --bind /mnt/etc /etc && exec "$@"
    """
    inner = sulla_run("sh", "-c", "cat /etc/resolv.conf; test -e /etc/passwd && test -d /run/lock && echo kept")
    done = watched.run("unshare", "-m", "sh", "-c", script, "sh", *inner)
    assert "nameserver 192.168.127.1\n" in done.stdout, done.stderr
    assert done.stdout.endswith("kept\n")


def test_caches_outside_are_out_of_reach(watched: Watched) -> None:
    script = """
    mount -t tmpfs -o mode=755 tmpfs /run && mkdir -p /run/nscd /run/systemd/resolve /run/lock || exit 99
    touch /run/nscd/socket /run/systemd/resolve/stub-resolv.conf
    exec "$@"
    """
    inner = sulla_run("sh", "-c", "find /run/nscd /run/systemd/resolve -type f")
    done = watched.run("unshare", "-m", "sh", "-c", script, "sh", *inner)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_identity(watched: Watched, user: str) -> None:
    done = watched.run(*watched.line(user, "sh", "-c", "id -u; id -g; stat -c %u /etc/passwd; ip link set lo down"))
    ids = done.stdout.split()
    if user == "nobody":
        assert ids[:2] == [str(NOBODY), str(NOBODY)]
        assert done.returncode != 0, "CMD may change its network"
    else:
        assert ids == ["0", "0", "0"]


def test_root_option(watched: Watched, user: str) -> None:
    done = watched.run(*watched.line(user, "sh", "-c", "id -u; ip link set lo down && echo may", options=("--root",)))
    assert done.stdout == "0\nmay\n", done.stderr


def test_its_own_pid_namespace_and_proc(watched: Watched, user: str) -> None:
    done = watched.run(*watched.line(user, "sh", "-c", "echo $PPID; ls -d /proc/[0-9]* | wc -l"))
    parent, count = map(int, done.stdout.split())
    assert parent == 1
    assert count < 10


def test_working_directory_environment_umask_and_limits(watched: Watched, tmp_path: Path) -> None:
    done = watched.run(
        *sulla_run("sh", "-c", "pwd; echo $GIVEN; umask; ulimit -Sn; ls /proc/self/fd | wc -l"),
        cwd=tmp_path,
        env={**watched.environment, "GIVEN": "given"},
        preexec_fn=lambda: (os.umask(0o027), resource.setrlimit(resource.RLIMIT_NOFILE, (256, 4096))),
    )
    assert done.stdout.split() == [str(tmp_path), "given", "0027", "256", "4"]


def test_streams_are_binary_and_end(watched: Watched) -> None:
    data = os.urandom(300_000)
    done = subprocess.run(sulla_run("cat"), input=data, capture_output=True, timeout=PATIENCE, env=watched.environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, data, b"")
    watched.wait_gone()


def test_closed_output_is_seen_closed(watched: Watched) -> None:
    """Nobody but CMD holds its stdout."""
    with subprocess.Popen(
        sulla_run("sh", "-c", "echo last; exec >&-; read wait"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=watched.environment,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read() == b"last\n"
        assert process.poll() is None
    watched.wait_gone()


# How it ends


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (("true",), 0),
        (("sh", "-c", "exit 42"), 42),
        (("sh", "-c", "kill -KILL $$"), 137),
        (("sh", "-c", "kill -SEGV $$"), 139),
        (("sh", "-c", "sleep 100 & exit 3"), 3),
        (("sh", "-c", "setsid sleep 100 & trap '' HUP TERM; exit 4"), 4),
    ],
)
def test_status(watched: Watched, user: str, command: tuple[str, ...], status: int) -> None:
    done = watched.run(*watched.line(user, *command))
    assert (done.returncode, done.stderr) == (status, "")


def test_command_that_cannot_run(watched: Watched) -> None:
    missing, forbidden = watched.run(*sulla_run("no-such-command")), watched.run(*sulla_run("/etc/passwd"))
    assert (missing.returncode, missing.stderr) == (127, "sulla run: no-such-command: command not found\n")
    assert (forbidden.returncode, forbidden.stderr) == (126, "sulla run: /etc/passwd: Permission denied\n")


def started(watched: Watched, *line: str) -> subprocess.Popen[str]:
    """A run whose CMD has printed ``up``."""
    process = subprocess.Popen(
        line,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=watched.environment,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


def finish(process: subprocess.Popen[str]) -> int:
    process.communicate(timeout=PATIENCE)
    return process.returncode


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT])
def test_signals_are_passed_on(watched: Watched, number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    process = started(watched, *sulla_run("sh", "-c", f"trap 'exit 9' {name}; echo up; while :; do sleep 0.05; done"))
    process.send_signal(number)
    assert finish(process) == 9
    watched.wait_gone()


def test_term_ends_a_command_that_does_not_handle_it(watched: Watched) -> None:
    process = started(watched, *sulla_run("sh", "-c", "echo up; exec sleep 100"))
    process.terminate()
    assert finish(process) == 128 + signal.SIGTERM
    watched.wait_gone()


@pytest.mark.parametrize("victim", ["sulla", "launcher"])
def test_kill_9_leaves_nothing(watched: Watched, victim: str) -> None:
    process = started(watched, *sulla_run("sh", "-c", "setsid sleep 100 & sleep 100 & echo up; wait"))
    assert watched.network_namespaces()
    if victim == "sulla":
        process.kill()
    else:
        os.kill(watched.find("run_launch")[0], signal.SIGKILL)
    assert finish(process) != 0
    watched.wait_gone()


@pytest.mark.parametrize("victim", ["cli.daemons vm-switch", "cli.daemons host-switch"])
def test_a_daemon_that_dies_is_started_again(watched: Watched, tmp_path: Path, victim: str) -> None:
    script = (
        "echo up; until test -e $FLAG; do sleep 0.05; done; until ping -c1 -W1 192.168.127.1; do :; done >&2; echo back"
    )
    flag = tmp_path / "flag"
    line = sulla_run("env", f"FLAG={flag}", "sh", "-c", script)
    process = started(watched, *line)
    old = watched.find(victim)
    os.kill(old[0], signal.SIGKILL)
    wait_until(lambda: watched.find(victim) not in ([], old))
    flag.touch()
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (0, "back\n")
    assert "starting the network again" in err
    watched.wait_gone()


# At a terminal


@pytest.fixture
def prompt(watched: Watched) -> object:
    """An interactive shell with job control at a terminal."""
    environment = {**watched.environment, "PS1": "prompt> ", "HISTFILE": "/dev/null", "TERM": "dumb"}
    with terminal(["bash", "--norc", "--noprofile", "-i"], environment) as shell:
        shell.expect("prompt> ")
        shell.send("stty -echo\n")
        shell.expect("prompt> ")
        yield shell
        shell.send("exit\n")
    watched.wait_gone()


def typed(*command: str) -> str:
    return " ".join("'" + word.replace("'", "'\\''") + "'" for word in sulla_run(*command)) + "\n"


def test_ctrl_c_ends_the_command(prompt: Terminal) -> None:
    prompt.send(typed("sh", "-c", "echo up; exec sleep 100"))
    prompt.expect("up")
    prompt.send("\x03")
    prompt.expect("prompt> ")
    prompt.send("echo status $?\n")
    prompt.expect("status 130")


def test_ctrl_c_that_the_command_handles(prompt: Terminal) -> None:
    prompt.send(typed("sh", "-c", "trap 'echo got' INT; echo up; until read line; do :; done; echo line $line; exit 5"))
    prompt.expect("up")
    prompt.send("\x03")
    prompt.expect("got")
    prompt.send("more\n")
    prompt.expect("line more")
    prompt.expect("prompt> ")
    prompt.send("echo status $?\n")
    prompt.expect("status 5")


def test_ctrl_z_and_fg(prompt: Terminal) -> None:
    prompt.send(typed("sh", "-c", "echo up; while read line; do echo got $line; done"))
    prompt.expect("up")
    for word in ("first", "second"):
        prompt.send("\x1a")
        prompt.expect("Stopped")
        prompt.expect("prompt> ")
        prompt.send("fg\n")
        prompt.send(f"{word}\n")
        prompt.expect(f"got {word}")
    prompt.send("\x04")
    prompt.expect("prompt> ")
    prompt.send("echo status $?\n")
    prompt.expect("status 0")


def test_a_command_that_stops_itself(prompt: Terminal) -> None:
    prompt.send(typed("sh", "-c", "echo up; kill -STOP $$; echo resumed; exit 6"))
    prompt.expect("up")
    prompt.expect("Stopped")
    prompt.expect("prompt> ")
    prompt.send("fg\n")
    prompt.expect("resumed")
    prompt.expect("prompt> ")
    prompt.send("echo status $?\n")
    prompt.expect("status 6")


def test_an_interactive_shell_hands_the_terminal_back(prompt: Terminal) -> None:
    prompt.send(typed("env", "PS1=inner> ", "bash", "--norc", "--noprofile", "-i"))
    prompt.expect("inner> ")
    prompt.send("sh -c 'echo star''ted; exec sleep 100'\n")
    prompt.expect("started\r?\n")  # only then has the shell given the terminal to it
    prompt.send("\x03")
    prompt.expect("inner> ")
    prompt.send("sh -c 'echo star''ted; read line; echo got $line'\n")
    prompt.expect("started\r?\n")
    prompt.send("\x1a")
    prompt.expect("Stopped")
    prompt.expect("inner> ")
    prompt.send("fg\n")
    prompt.send("word\n")
    prompt.expect("got word")
    prompt.expect("inner> ")
    prompt.send("exit 7\n")
    prompt.expect("prompt> ")
    prompt.send("echo status $?\n")
    prompt.expect("status 7")


def test_hang_up(watched: Watched) -> None:
    with terminal(sulla_run("sh", "-c", "echo up; sleep 100 & wait"), watched.environment) as shell:
        shell.expect("up")
    watched.wait_gone()


# Where it cannot be


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("sulla run: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_no_tun_device(watched: Watched) -> None:
    script = 'mount -t tmpfs tmpfs /dev/net && exec "$@"'
    text = one_line(watched.run("unshare", "-m", "sh", "-c", script, "sh", *sulla_run("true")))
    assert "/dev/net/tun" in text
    assert "modprobe tun" in text


def test_a_forbidden_tun_device(watched: Watched) -> None:
    line = watched.line("nobody", "true")
    index = line.index("-c") + 1
    line[index] = line[index].replace("chmod 0666", "chmod 0600")
    text = one_line(watched.run(*line))
    assert "/dev/net/tun" in text
    assert "0600" in text


def test_no_user_namespaces(watched: Watched) -> None:
    """max_user_namespaces is per user namespace: the inner one has a limit of its own to set."""
    script = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    text = one_line(watched.run("unshare", "-Ur", "sh", "-c", script, "sh", *sulla_run("true")))
    assert "sysctl user.max_user_namespaces is 0" in text


def test_a_taken_port_is_one_line(watched: Watched) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        text = one_line(watched.run(*sulla_run("true", options=["-p", f"127.0.0.1:{port}=192.168.127.2:80"])))
    assert f"127.0.0.1:{port}" in text
