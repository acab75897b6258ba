"""Traced packets: our own decode always, scapy's beside it when it is there and only when somebody traces."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import trio

from sulla_trio.cli.logrus import LogrusFormatter
from sulla_trio.daemons import vm_trace
from sulla_trio.daemons.vm_trace import Tracer
from tests.support.guest_peer import GATEWAY_IP, GUEST_IP, ipv4_packet

ARP = bytes.fromhex("ffffffffffff5a94efe40cee0806000108000604000100000000000000000000000000000000c0a87f01") + bytes(18)
PING = bytes.fromhex("5a94efe40cdd5a94efe40cee0800") + ipv4_packet(
    GUEST_IP, GATEWAY_IP, 1, bytes.fromhex("0800f7ff00000000")
)


@pytest.fixture(autouse=True)
def _info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger=vm_trace.__name__)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [LogrusFormatter().format(record).partition("level=")[2] for record in caplog.records]


def test_both_line_shapes(caplog: pytest.LogCaptureFixture) -> None:
    tracer = Tracer(True, lambda: None)
    tracer.sent(memoryview(ARP))
    tracer.received(memoryview(ARP[:7]))
    first, second = lines(caplog)
    assert first.startswith(f'info msg="wrote packet (vm -> host {len(ARP)}): ')
    assert "192.168.127.1" in first
    assert second == 'info msg="read packet (host -> vm 7): bad packet (ethernet_short), length 7"'


@pytest.mark.parametrize(
    ("frame", "summary"),
    [
        (ARP, "Ether / ARP who has 192.168.127.1 says 0.0.0.0 / Padding"),
        (PING, "Ether / IP / ICMP 192.168.127.2 > 192.168.127.1 echo-request 0"),
    ],
)
async def test_scapy_is_a_field_behind_it(caplog: pytest.LogCaptureFixture, frame: bytes, summary: str) -> None:
    tracer = Tracer(True, vm_trace.load_scapy)
    await tracer.run()
    tracer.sent(memoryview(frame))
    (line,) = lines(caplog)
    assert line.startswith('info msg="wrote packet (vm -> host ')
    assert line.endswith(f'" scapy="{summary}"')


def test_scapy_binds_its_layers_when_nobody_else_has_loaded_them() -> None:
    out = python(
        f"from sulla_trio.daemons import vm_trace\nprint(vm_trace.load_scapy()(bytes.fromhex({PING.hex()!r})))"
    )
    assert out == "Ether / IP / ICMP 192.168.127.2 > 192.168.127.1 echo-request 0\n"


async def test_scapy_is_loaded_when_tracing_is_first_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    loaded: list[str] = []

    def load() -> vm_trace.Summarize:
        loaded.append("scapy")
        return lambda frame: "summary"

    tracer = Tracer(False, load)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tracer.run)
        await trio.testing.wait_all_tasks_blocked()
        assert loaded == []
        tracer.toggle()
    assert (tracer.enabled, loaded) == (True, ["scapy"])
    tracer.toggle()
    assert not tracer.enabled
    assert [line.partition("msg=")[2] for line in lines(caplog)] == [
        '"SIGUSR1 received: per-packet tracing is now true"',
        '"SIGUSR1 received: per-packet tracing is now false"',
    ]


async def test_a_dissector_that_fails_costs_its_field_only(caplog: pytest.LogCaptureFixture) -> None:
    def summarize(frame: bytes) -> str:
        raise ValueError("deep inside")

    tracer = Tracer(True, lambda: summarize)
    await tracer.run()
    tracer.received(memoryview(ARP))
    (line,) = lines(caplog)
    assert line.startswith('info msg="read packet (host -> vm ')
    assert line.endswith(" scapy=ValueError")


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


def test_without_scapy_there_is_none_and_no_failure() -> None:
    out = python(
        "import sys; sys.modules['scapy'] = None\nfrom sulla_trio.daemons import vm_trace\nprint(vm_trace.load_scapy())"
    )
    assert out == "None\n"


def test_nobody_loads_scapy_by_importing_the_daemon() -> None:
    out = python(
        "import sys, sulla_trio.daemons.vm_switch\nprint(any(name.startswith('scapy') for name in sys.modules))"
    )
    assert out == "False\n"
