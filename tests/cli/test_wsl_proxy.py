"""Command line of wsl-proxy."""

from __future__ import annotations

import pytest

from sulla_trio.cli import wsl_proxy
from sulla_trio.errors import ConfigError


def proxy(*arguments: str):
    return wsl_proxy.config(wsl_proxy.flags("wsl-proxy").parse(arguments))


def test_defaults_are_the_go_daemons() -> None:
    config = proxy()
    assert (config.socket_file, config.upstream) == ("/run/wsl-proxy.sock", "192.168.143.1")
    assert (config.events, config.strict) == ("", False)
    values = wsl_proxy.flags("wsl-proxy").parse(["-debug=true", "--logfile=x y.log", "ignored"])
    assert (values["debug"], values["logfile"], values["udpBuffer"]) == (True, "x y.log", 8_388_608)
    assert wsl_proxy.flags("wsl-proxy").parse([])["logfile"] == "/var/log/wsl-proxy.log"


def test_each_flag() -> None:
    config = proxy(
        "-socketFile", "/tmp/s", "--upstreamAddress=::1", "-udpBuffer", "0x10", "--events", "unix:///e", "-strict"
    )  # fmt: skip
    assert (config.socket_file, config.upstream, config.events, config.strict) == ("/tmp/s", "::1", "unix:///e", True)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("-upstreamAddress", "host.internal"), "-upstreamAddress host.internal: want an IP address"),
        (("-upstreamAddress", ""), "-upstreamAddress : want an IP address"),
        (("-socketFile", ""), "-socketFile '': want the path of a socket"),
        (("--events", "tcp://127.0.0.1:1"), "--events tcp://127.0.0.1:1: want unix:///path"),
    ],
)
def test_bad_values(arguments: tuple[str, ...], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        proxy(*arguments)


def test_usage_as_go_prints_it() -> None:
    usage = wsl_proxy.flags("wsl-proxy").usage()
    assert usage.startswith("Usage of wsl-proxy:\n  -debug\n    \tlog at DEBUG\n  --events URL\n")
    assert (
        '  -socketFile string\n    \tlisten for port mappings on this unix socket (default "/run/wsl-proxy.sock")\n'
        in usage
    )
    assert "  -udpBuffer int\n" in usage
    assert "(default 8388608)\n" in usage
