"""What a guest's own ping, traceroute and tracepath see of the outside: real routers, in namespaces made for each test."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator

import pytest

from tests.support.hops import FAR, NEAR, NO_ROUTE, NOBODY_THERE, SERVER, SMALL_MTU, Hops, hops
from tests.support.runs import Watched, as_nobody, sulla_run

pytestmark = pytest.mark.e2e

GATEWAY = "192.168.127.1"
OPEN, CLOSED = "0 2147483647", "1 0"
UDP_ERROR = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(10)
sock.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR: without it Linux tells a program of closed ports only
sock.connect((sys.argv[1], int(sys.argv[2])))
sock.send(b"x" * int(sys.argv[3]))
try:
    print(sock.recv(100))
except OSError as error:
    print(type(error).__name__, error.errno)
"""

EVENTS = (
    """
import json, os, socket, trio
from sulla_trio.api.client import ApiClient
from sulla_trio.api.location import find_api
async def main():
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"the last flow", ("%s", 9))
    async with ApiClient(find_api(None, os.environ)).events(since=0, types=("flow",)) as stream:
        async for event in stream:
            print(json.dumps(event))
            if event.get("kind") == "udp":
                return
trio.run(main)
"""
    % SERVER
)
"""The guest's own look at the events so far: it opens a UDP flow, and that one is the end."""


@pytest.fixture
def lab() -> Iterator[Hops]:
    with hops() as found:
        found.sysctl("host", "net.ipv4.ping_group_range", OPEN)
        yield found


def guest(lab: Hops, script: str, *options: str, user: str = "root") -> str:
    """Output of `script` in a guest whose switch runs in the host's namespace, by root or by one who may nothing."""
    watched = Watched()
    try:
        line = sulla_run("sh", "-c", script, options=["--strict", *options])
        if user == "nobody":
            line = as_nobody(line, watched.runtime_of_nobody)
        elif user == "unprivileged":  # but a program with file capabilities is allowed what they say
            line = as_nobody(line, watched.runtime_of_nobody)
            line.remove("--bounding-set=-all")
        done = watched.run(*lab.line("host", *line), timeout=90)
    finally:
        watched.close()
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def hop_addresses(output: str) -> list[str]:
    return re.findall(r"^ *\d+ +(\S+)  [\d.]+ ms", output, re.MULTILINE)


def test_ping_with_its_bytes_and_hops(lab: Hops) -> None:
    out = guest(lab, f"ping -n -c3 -i0.2 -s1400 -p 5a {SERVER}")
    replies = re.findall(r"^1408 bytes from (\S+): icmp_seq=(\d) ttl=(\d+) ", out, re.MULTILINE)
    # Linux sends 64, two routers and the gateway take one each.
    assert replies == [(SERVER, "1", "61"), (SERVER, "2", "61"), (SERVER, "3", "61")]
    assert "wrong data" not in out
    assert "3 received" in out


def test_ping_in_fragments(lab: Hops) -> None:
    assert "2 received" in guest(lab, f"ping -n -c2 -i0.2 -s8000 -M dont {SERVER}")


def test_a_silent_outside_is_silence(lab: Hops) -> None:
    lab.sysctl("server", "net.ipv4.icmp_echo_ignore_all", "1")
    assert "2 packets transmitted, 0 received" in guest(lab, f"ping -n -c2 -i0.2 -W1 {SERVER} || :")


@pytest.mark.parametrize("mode", ["", "-I"])
def test_traceroute(lab: Hops, mode: str) -> None:
    out = guest(lab, f"traceroute -n -q1 -w5 {mode} {SERVER}", "--root")
    assert hop_addresses(out) == [GATEWAY, NEAR, FAR, SERVER], out


def test_tracepath_finds_the_narrow_wire(lab: Hops) -> None:
    lab.narrow()
    out = guest(lab, f"tracepath -n {SERVER}")
    assert re.search(rf"^ *4: +{re.escape(FAR)} .*pmtu {SMALL_MTU}", out, re.MULTILINE), out
    assert f"pmtu {SMALL_MTU} hops 4 back 4" in out


def test_frag_needed_by_ping(lab: Hops) -> None:
    lab.narrow()
    out = guest(lab, f"ping -n -c1 -W5 -s1400 -M do {SERVER} || :")
    assert re.search(rf"From {re.escape(FAR)} icmp_seq=1 Frag needed and DF set \(mtu = {SMALL_MTU}\)", out), out


def test_frag_needed_by_the_host_itself(lab: Hops) -> None:
    lab.run("host", "ip", "link", "set", "to-near", "mtu", str(SMALL_MTU))
    out = guest(lab, f"ping -n -c1 -W5 -s1400 -M do {SERVER} || :; tracepath -n {SERVER}")
    assert f"From {GATEWAY} icmp_seq=1 Frag needed and DF set (mtu = {SMALL_MTU})" in out
    assert f"pmtu {SMALL_MTU} hops 4 back 4" in out


def test_a_datagram_without_df_passes_the_narrow_wire(lab: Hops) -> None:
    """Fragmented by the far router for us; the answer, port unreachable, says that it has arrived whole."""
    lab.narrow()
    out = guest(lab, f"sysctl -qw net.ipv4.ip_no_pmtu_disc=1; python3 -c '{UDP_ERROR}' {SERVER} 9 1400", "--root")
    assert out == "ConnectionRefusedError 111\n"


@pytest.mark.parametrize(
    ("address", "port", "error"),
    [
        (SERVER, 9, "ConnectionRefusedError 111"),
        (NOBODY_THERE, 9, "OSError 113"),
        (NO_ROUTE, 9, "OSError 101"),
        ("169.254.1.1", 9, "OSError 113"),
    ],
    ids=["closed port", "dead host", "no route", "never dialled"],
)
def test_the_errno_of_udp(lab: Hops, address: str, port: int, error: str) -> None:
    assert guest(lab, f"python3 -c '{UDP_ERROR}' {address} {port} 1") == error + "\n"


def test_the_text_of_ping(lab: Hops) -> None:
    out = guest(
        lab,
        f"""ping -n -c1 -W5 {NO_ROUTE}
        ping -n -c1 -W9 {NOBODY_THERE}
        ping -n -c1 -W5 -t2 {SERVER}
        ping -n -c1 -W5 10.97.0.1
        ping -n -c1 -W5 169.254.169.254 || :""",
        "--deny-out",
        "10.97.0.0/16",
    )
    assert re.findall(r"^From (\S+) icmp_seq=1 (.*)$", out, re.MULTILINE) == [
        (FAR, "Destination Net Unreachable"),
        (FAR, "Destination Host Unreachable"),
        (NEAR, "Time to live exceeded"),
        (GATEWAY, "Packet filtered"),
        (GATEWAY, "Packet filtered"),
    ]


def test_no_network_at_all(lab: Hops) -> None:
    lab.run("host", "ip", "route", "delete", "default")
    out = guest(lab, f"ping -n -c1 -W5 {SERVER} || :; python3 -c '{UDP_ERROR}' {SERVER} 9 1")
    assert f"From {GATEWAY} icmp_seq=1 Destination Net Unreachable" in out
    assert out.endswith("OSError 101\n")


# Where ping sockets are closed


def test_raw_sockets_instead(lab: Hops) -> None:
    lab.sysctl("host", "net.ipv4.ping_group_range", CLOSED)
    out = guest(lab, f"ping -n -c2 -i0.2 -s1400 {SERVER}; traceroute -n -I -q1 -w5 {SERVER}", "--root")
    assert "2 received" in out
    assert hop_addresses(out) == [GATEWAY, NEAR, FAR, SERVER], out


def test_the_program_instead(lab: Hops) -> None:
    lab.sysctl("host", "net.ipv4.ping_group_range", CLOSED)
    script = f"""ping -n -c2 -s1400 -p 5a {SERVER}
        ping -n -c1 -W5 {NO_ROUTE}
        ping -n -c1 -W5 -t2 {SERVER}
        ping -n -c1 -W5 -t3 {SERVER} || :"""
    out = guest(lab, script, user="unprivileged")
    assert "2 received" in out
    assert "wrong data" not in out
    assert re.findall(r"^From (\S+) icmp_seq=1 (.*)$", out, re.MULTILINE) == [
        (FAR, "Destination Net Unreachable"),
        (NEAR, "Time to live exceeded"),
        (FAR, "Time to live exceeded"),
    ]


def test_no_way_is_no_reply_and_one_event(lab: Hops) -> None:
    lab.sysctl("host", "net.ipv4.ping_group_range", CLOSED)
    script = f"""ping -n -c2 -W1 -i0.2 {SERVER}
        ping -n -c1 -W1 {SERVER}
        {sys.executable} -c '{EVENTS}'"""
    out = guest(lab, script, user="nobody")
    assert out.count(" 0 received") == 2
    events = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    (failed,) = [event for event in events if event["type"] == "flow.failed"]
    assert failed["protocol"] == "icmp"
    assert "net.ipv4.ping_group_range" in failed["reason"]
