"""`sulla`: options and CMD, the client's subcommands against a real API, and how little `sulla run` imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click.testing
import pytest
import trio

from sulla_trio.api.serve import serve_apis
from sulla_trio.cli.sulla import cli
from sulla_trio.config import PortForward
from sulla_trio.daemons import run as run_module
from tests.support.fake_network import FakeNetwork


def invoke(*arguments: str, **environment: str) -> click.testing.Result:
    return click.testing.CliRunner().invoke(cli, arguments, env={"SULLA_API": None, **environment}, prog_name="sulla")


@pytest.fixture
def configs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    seen: list[Any] = []

    def record(config: Any) -> int:
        seen.append(config)
        return 42

    monkeypatch.setattr(run_module, "run", record)
    return seen


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["true"], ("true",)),
        (["--", "true"], ("true",)),
        (["ls", "-l", "--mtu", "x", "-p"], ("ls", "-l", "--mtu", "x", "-p")),
        (["--", "sh", "-c", "a; b", "--", "-h"], ("sh", "-c", "a; b", "--", "-h")),
        (["sh", "--", "--help"], ("sh", "--", "--help")),
        (["--", "--odd-name"], ("--odd-name",)),
    ],
)
def test_what_follows_cmd_is_cmds(configs: list[Any], arguments: list[str], command: tuple[str, ...]) -> None:
    result = invoke("run", *arguments)
    assert (result.exit_code, result.output) == (42, "")
    assert configs[0].command == command


def test_run_options(configs: list[Any]) -> None:
    result = invoke(
        "run", "-p", "127.0.0.1:8080=192.168.127.2:80", "--publish=udp:127.0.0.1:53=192.168.127.2:53", "--root",
        "--mtu", "65000", "--subnet", "10.0.0.0/24", "--debug", "--no-host-loopback", "--host-loopback-ports", "80",
        "--deny-out", "10.0.0.0/8", "--deny-out", "1.0.0.0/8", "--strict",
        "--udp-filter", "endpoint-independent", "--listen", "unix:///a", "--", "true",
    )  # fmt: skip
    assert result.exit_code == 42, result.output
    config = configs[0]
    assert config.forwards == (
        PortForward("127.0.0.1:8080", "192.168.127.2:80"),
        PortForward("127.0.0.1:53", "192.168.127.2:53", "udp"),
    )
    assert (config.root, config.mtu, config.subnet, config.debug) == (True, 65000, "10.0.0.0/24", True)
    assert config.listen == ("unix:///a",)
    assert config.host_switch_flags == (
        "--no-host-loopback", "--strict", "--host-loopback-ports", "80", "--udp-filter", "endpoint-independent",
        "--deny-out", "10.0.0.0/8", "--deny-out", "1.0.0.0/8",
    )  # fmt: skip


def test_run_listens_under_its_own_pid(configs: list[Any]) -> None:
    invoke("run", "true")
    invoke("run", "--listen", "none", "true")
    assert configs[0].listen[0].endswith(f"/sulla/host-switch-{os.getpid()}.sock")
    assert configs[1].listen == ()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["-p", "8080:80", "true"], 'input ["8080:80"] not in expected format'),
        (["-p", "127.0.0.1:0=192.168.127.2:80", "true"], "invalid port number provided: 0"),
        (["--subnet", "fd00::/64", "true"], "fd00::/64 is IPv6"),
        (["--mtu", "1", "true"], "mtu 1 is out of range"),
        (["--mtu", "x", "true"], "'x' is not a valid integer"),
        (["--deny-out", "x", "true"], "--deny-out x"),
        (["--host-loopback-ports", "x", "true"], "--host-loopback-ports x"),
        (["--nonsense", "true"], "--nonsense"),
        ([], "CMD"),
    ],
)
def test_run_refuses(configs: list[Any], arguments: list[str], text: str) -> None:
    result = invoke("run", *arguments)
    assert (result.exit_code, configs) == (2, [])
    assert text in result.output
    assert "Traceback" not in result.output


@pytest.fixture
def api(tmp_path: Path) -> Iterator[tuple[FakeNetwork, str]]:
    """A host API in a thread, for the client's subcommands start trio themselves."""
    network, url = FakeNetwork(), f"unix://{tmp_path}/host-switch.sock"
    ready, stop = threading.Event(), []

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(serve_apis, network, (url,)))
            stop.append((trio.lowlevel.current_trio_token(), nursery.cancel_scope))
            ready.set()

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    assert ready.wait(30)
    yield network, url
    token, scope = stop[0]
    trio.from_thread.run_sync(scope.cancel, trio_token=token)
    thread.join(30)
    assert not thread.is_alive()


def test_verbs(api: tuple[FakeNetwork, str]) -> None:
    network, url = api
    result = invoke("expose", "--api", url, "127.0.0.1:1", "192.168.127.2:1")
    assert (result.exit_code, result.output) == (0, "")
    assert invoke("expose", "127.0.0.1:1", "192.168.127.2:1", "--udp", SULLA_API=url).exit_code == 0
    forwards = json.loads(invoke("ls", "--json", "--api", url).output)
    assert [forward["protocol"] for forward in forwards] == ["tcp", "udp"]
    assert "127.0.0.1:1" in invoke("ls", "--api", url).output
    result = invoke("expose", "--api", url, "127.0.0.1:1", "192.168.127.2:1")
    assert (result.exit_code, result.output) == (1, "sulla: proxy already running for tcp on 127.0.0.1:1\n")
    assert invoke("unexpose", "--api", url, "127.0.0.1:1", "--udp").exit_code == 0
    result = invoke("unexpose", "--api", url, "127.0.0.1:9")
    assert (result.exit_code, result.output) == (1, "sulla: proxy not found\n")
    assert [entry.protocol for entry in network.forwards.all()] == ["tcp"]


@pytest.mark.parametrize(
    ("name", "shown", "keys"),
    [
        ("leases", "5a:94:ef:e4:0c:ee", {"192.168.127.1", "192.168.127.2"}),
        ("stats", "BytesSent", {"BytesSent", "BytesReceived", "TCP"}),
        ("status", "host-switch.sock", {"api", "guests", "forwards", "flows", "bytes_sent", "bytes_received"}),
    ],
)
def test_tables(api: tuple[FakeNetwork, str], name: str, shown: str, keys: set[str]) -> None:
    _, url = api
    result = invoke(name, "--api", url)
    assert result.exit_code == 0, result.output
    assert shown in result.output
    assert json.loads(invoke(name, "--json", "--api", url).output).keys() == keys


def test_flows(api: tuple[FakeNetwork, str]) -> None:
    network, url = api
    assert invoke("flows", "--api", url).output == "no flows\n"
    network.flows.closed(network.flows.opened("tcp", "192.168.127.2:1", "1.1.1.1:80", 99.0), "eof", 100.0)
    assert "closed (eof)" in invoke("flows", "--api", url).output
    assert json.loads(invoke("flows", "--api", url, "--json").output)[0]["reason"] == "eof"


def test_events_until_the_reader_leaves(api: tuple[FakeNetwork, str]) -> None:
    network, url = api
    network.events.emit("daemon.ready")
    network.events.emit("flow.opened", flow=1)
    command = [sys.executable, "-m", "sulla_trio.cli.sulla", "events", "--api", url, "--since", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines = [json.loads(process.stdout.readline()) for _ in range(2)]
        process.send_signal(2)
        assert process.wait(30) == 130
        assert process.stderr.read() == ""
    assert [line["type"] for line in lines] == ["daemon.ready", "flow.opened"]


def test_nobody_there(tmp_path: Path) -> None:
    result = invoke("ls", "--api", f"unix://{tmp_path}/none")
    assert result.exit_code == 1
    assert (
        result.output
        == f"sulla: cannot reach unix://{tmp_path}/none: there is no such socket; is host-switch running?\n"
    )
    result = invoke("ls", "--api", "nonsense")
    assert (result.exit_code, result.output.count("\n")) == (1, 1)
    result = invoke("ls", XDG_RUNTIME_DIR=str(tmp_path))
    assert result.exit_code == 1
    assert "no host-switch is running" in result.output


def test_run_imports_little() -> None:
    code = (
        "import sys; from sulla_trio.daemons import run as r; from sulla_trio.cli.sulla import cli\n"
        "r.run = lambda config: print(*sorted({name.partition('.')[0] for name in sys.modules})) or 0\n"
        "cli(['run', '--deny-out', '10.0.0.0/8', '--', 'true'], prog_name='sulla')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not set(done.stdout.split()) & {"quart", "hypercorn", "rich", "trio_websocket", "h11", "werkzeug"}
