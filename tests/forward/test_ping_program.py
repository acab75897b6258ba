"""The ping program: its command line, its output, its absence, and a bounded number of it. Real hops: e2e/test_hops.py."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import trio

from sulla_trio.config import parse_ip
from sulla_trio.forward import ping_program
from sulla_trio.forward.echo_path import Echo, EchoAnswer
from sulla_trio.forward.ping_program import PingPrograms, arguments, interpret
from sulla_trio.wire import icmp

REMOTE, ROUTER = parse_ip("10.99.2.2"), parse_ip("10.99.1.2")
ECHO = Echo(REMOTE, 7, b"the guest's", 64, True)
HEAD = "PING 10.99.2.2 (10.99.2.2) 11(39) bytes of data.\n"
REPLY = HEAD + "19 bytes from 10.99.2.2: icmp_seq=1 ttl=62\n\n--- 10.99.2.2 ping statistics ---\n"


def test_the_command_line() -> None:
    line = "/bin/ping -n -c 1 -W 5 -s 11 -t 63 -M do 10.99.2.2"
    assert arguments("/bin/ping", ECHO) == line.split()
    assert arguments("ping", ECHO._replace(dont_fragment=False, payload=b""))[7:] == [
        "0",
        "-t",
        "63",
        "-M",
        "dont",
        "10.99.2.2",
    ]


def test_a_reply() -> None:
    assert interpret(ECHO, 0, REPLY, "") == EchoAnswer(REMOTE, 7, b"the guest's", 62, None)
    timed = HEAD + "64 bytes from 10.99.2.2: icmp_seq=1 ttl=62 time=0.492 ms\n"
    assert interpret(ECHO, 0, timed, "") == EchoAnswer(REMOTE, 7, b"the guest's", 62, None)


@pytest.mark.parametrize(
    ("status", "out", "complaint"),
    [
        (1, HEAD + "\n--- 10.99.2.2 ping statistics ---\n1 packets transmitted, 0 received\n", ""),
        (1, REPLY, ""),
        (0, REPLY.replace("from 10.99.2.2", "from 10.99.2.3"), ""),
        (1, HEAD + "From 10.99.1.2 icmp_seq=1 Source Quench\n", ""),
        (2, "", "ping: something else\n"),
        (-9, "", ""),
    ],
)
def test_no_answer(status: int, out: str, complaint: str) -> None:
    assert interpret(ECHO, status, out, complaint) is None


@pytest.mark.parametrize(
    ("out", "complaint", "sender", "kind", "code", "rest"),
    [
        ("From 10.99.1.2 icmp_seq=1 Time to live exceeded", "", ROUTER, icmp.TIME_EXCEEDED, 0, 0),
        ("From 10.99.1.2 icmp_seq=1 Destination Host Unreachable", "", ROUTER, 3, icmp.UNREACHABLE_HOST, 0),
        ("From 10.99.1.2 icmp_seq=1 Destination Net Unreachable", "", ROUTER, 3, icmp.UNREACHABLE_NET, 0),
        ("From 10.99.1.2 icmp_seq=1 Packet filtered", "", ROUTER, 3, icmp.UNREACHABLE_ADMIN, 0),
        ("From 10.99.1.2 icmp_seq=1 Frag needed and DF set (mtu = 1300)", "", ROUTER, 3, 4, 1300),
        ("", "ping: local error: message too long, mtu=1280", None, 3, 4, 1280),
        ("", "ping: local error: message too long, mtu: 1280", None, 3, 4, 1280),
        ("", "ping: connect: Network is unreachable", None, 3, icmp.UNREACHABLE_NET, 0),
    ],
)
def test_errors(out: str, complaint: str, sender: bytes | None, kind: int, code: int, rest: int) -> None:
    answer = interpret(ECHO, 1, HEAD + out + "\n", complaint)
    assert answer is not None
    assert (answer.target, answer.sequence) == (REMOTE, 7)
    assert answer.error is not None
    assert answer.error[1:5] == (sender, kind, code, rest)


@pytest.mark.parametrize(
    "complaint",
    [
        "ping: socket: Operation not permitted",
        "ping: socktype: SOCK_RAW\nping: socket: Operation not permitted\nping: => missing cap_net_raw+p capability",
        "ping: Lacking privilege for icmp socket.",
    ],
)
def test_it_may_not_either(complaint: str) -> None:
    with pytest.raises(PermissionError):
        interpret(ECHO, 2, "", complaint)


# Running it


def program(folder: Path, script: str) -> str:
    path = folder / "ping"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


async def test_a_run(tmp_path: Path) -> None:
    # The program's own words make the reply: its last argument is the address.
    script = 'for last; do :; done; echo "19 bytes from $last: icmp_seq=1 ttl=62"'
    path = PingPrograms(program(tmp_path, script)).open()
    got: list[EchoAnswer] = []
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:

            def answered(answer: EchoAnswer) -> None:
                got.append(answer)
                if len(got) == 2:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(path.run, answered)
            path.send(ECHO)
            path.send(ECHO._replace(sequence=8))
    path.close()
    assert {answer.sequence for answer in got} == {7, 8}
    assert all(answer.payload == b"the guest's" for answer in got)


async def test_one_that_may_not_ping_is_not_asked_again(tmp_path: Path) -> None:
    programs = PingPrograms(program(tmp_path, "echo 'ping: socket: Operation not permitted' >&2; exit 2"))
    path = programs.open()
    path.send(ECHO)
    with trio.fail_after(20), pytest.raises(PermissionError):
        await path.run(lambda answer: None)
    path.close()
    with pytest.raises(PermissionError) as raised:
        programs.open()
    assert raised.value.errno == errno.EACCES


async def test_one_that_cannot_be_started_is_not_asked_again(tmp_path: Path) -> None:
    (tmp_path / "ping").write_text("not a program")
    path = PingPrograms(str(tmp_path / "ping")).open()
    path.send(ECHO)
    with trio.fail_after(20), pytest.raises(PermissionError):
        await path.run(lambda answer: None)
    path.close()


async def test_no_such_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ping_program, "SEARCH_PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError):
        PingPrograms().open()


async def test_a_bounded_number_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ping_program, "MAX_PROCESSES", 2)
    path = PingPrograms(program(tmp_path, "exec sleep 100")).open()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(path.run, lambda answer: None)
            path.send(ECHO)
            path.send(ECHO)
            while path._slots.value:
                await trio.sleep(0.01)
            with pytest.raises(BlockingIOError):
                path.send(ECHO)
            nursery.cancel_scope.cancel()  # ends the processes
    path.close()
