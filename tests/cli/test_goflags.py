"""Go's flag grammar: the table of specs/daemons.md section 3.1."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sulla_trio.cli.goflags import FlagError, FlagSet, HelpRequested, go_quote, run_flags

DEFAULTS = {"debug": False, "subnet": "net", "vsock-fd": 3, "port-forward": (), "socketFile": ""}


def flags() -> FlagSet:
    made = FlagSet("prog")
    made.add_bool("debug", "enable debug")
    made.add_string("subnet", "the network", default="net")
    made.add_int("vsock-fd", "descriptor", default=3)
    made.add_repeated("port-forward", "a `HOST=GUEST` pair")
    made.add_string("socketFile", "two\nlines", ours=True)
    return made


@pytest.mark.parametrize(
    ("arguments", "changed"),
    [
        ([], {}),
        (["-debug"], {"debug": True}),
        (["--debug"], {"debug": True}),
        (["-debug=false"], {}),
        (["-debug=T", "-debug=0"], {}),
        (["-debug", "false", "-subnet", "x"], {"debug": True}),  # "false" is positional and ends it
        (["-subnet", "a"], {"subnet": "a"}),
        (["--subnet=a"], {"subnet": "a"}),
        (["-subnet="], {"subnet": ""}),
        (["-subnet", ""], {"subnet": ""}),
        (["-subnet", "-debug"], {"subnet": "-debug"}),
        (["-subnet", "--"], {"subnet": "--"}),
        (["-subnet=a=b"], {"subnet": "a=b"}),
        (["-subnet", "a", "-subnet", "b"], {"subnet": "b"}),
        (["-port-forward", "a", "--port-forward=b"], {"port-forward": ("a", "b")}),
        (["--", "-debug"], {}),
        (["x", "-debug"], {}),
        (["-", "-debug"], {}),
        (["", "-debug"], {}),
        (["-vsock-fd", "0x1F"], {"vsock-fd": 31}),
        (["-vsock-fd", "017"], {"vsock-fd": 15}),
        (["-vsock-fd", "0o17"], {"vsock-fd": 15}),
        (["-vsock-fd", "0b11"], {"vsock-fd": 3}),
        (["-vsock-fd", "1_000"], {"vsock-fd": 1000}),
        (["-vsock-fd", "-1"], {"vsock-fd": -1}),
        (["-vsock-fd", "+1"], {"vsock-fd": 1}),
        (["-vsock-fd", "0"], {"vsock-fd": 0}),
        (["-vsock-fd", str(2**63 - 1)], {"vsock-fd": 2**63 - 1}),
        (["-vsock-fd", str(-(2**63))], {"vsock-fd": -(2**63)}),
        (["-socketFile", "s"], {"socketFile": "s"}),
    ],
)
def test_values(arguments: list[str], changed: dict[str, Any]) -> None:
    assert flags().parse(arguments) == DEFAULTS | changed


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["-x"], "flag provided but not defined: -x"),
        (["--x=1"], "flag provided but not defined: -x"),
        (["-deb"], "flag provided but not defined: -deb"),
        (["-Debug"], "flag provided but not defined: -Debug"),
        (["-socketfile", "s"], "flag provided but not defined: -socketfile"),
        (["---x"], "bad flag syntax: ---x"),
        (["-=x"], "bad flag syntax: -=x"),
        (["--=x"], "bad flag syntax: --=x"),
        (["-subnet"], "flag needs an argument: -subnet"),
        (["-debug=maybe"], 'invalid boolean value "maybe" for -debug: parse error'),
        (["-debug="], 'invalid boolean value "" for -debug: parse error'),
        (["-vsock-fd", "x"], 'invalid value "x" for flag -vsock-fd: parse error'),
        (["-vsock-fd="], 'invalid value "" for flag -vsock-fd: parse error'),
        (["-vsock-fd", " 3"], 'invalid value " 3" for flag -vsock-fd: parse error'),
        (["-vsock-fd", "08"], 'invalid value "08" for flag -vsock-fd: parse error'),
        (["-vsock-fd", "1__0"], 'invalid value "1__0" for flag -vsock-fd: parse error'),
        (["-vsock-fd", "٣"], 'invalid value "٣" for flag -vsock-fd: parse error'),
        (["-vsock-fd", "3.0"], 'invalid value "3.0" for flag -vsock-fd: parse error'),
        (["-vsock-fd", str(2**63)], f'invalid value "{2**63}" for flag -vsock-fd: value out of range'),
        (["-vsock-fd", 'a"\n'], 'invalid value "a\\"\\n" for flag -vsock-fd: parse error'),
    ],
)
def test_errors(arguments: list[str], text: str) -> None:
    with pytest.raises(FlagError) as caught:
        flags().parse(arguments)
    assert str(caught.value) == text


def test_a_number_of_a_million_digits_is_out_of_range() -> None:
    with pytest.raises(FlagError, match="value out of range"):
        flags().parse(["-vsock-fd", "9" * 1_000_000])


@pytest.mark.parametrize("argument", ["-h", "--h", "-help", "--help", "-help=x"])
def test_help(argument: str) -> None:
    with pytest.raises(HelpRequested):
        flags().parse(["-debug", argument, "-nonsense"])


USAGE = (
    "Usage of prog:\n"
    "  -debug\n    \tenable debug\n"
    "  -port-forward HOST=GUEST\n    \ta HOST=GUEST pair\n"
    "  --socketFile string\n    \ttwo\n    \tlines\n"
    '  -subnet string\n    \tthe network (default "net")\n'
    "  -vsock-fd int\n    \tdescriptor (default 3)\n"
)


def test_usage_and_statuses() -> None:
    written: list[str] = []
    assert run_flags(flags(), ["-h"], written.append) == (None, 0)
    assert run_flags(flags(), ["-x"], written.append) == (None, 2)
    assert run_flags(flags(), [], written.append) == (DEFAULTS, 0)
    assert written == [USAGE, f"flag provided but not defined: -x\n{USAGE}"]


@given(st.lists(st.text(max_size=8) | st.sampled_from(["-debug", "--subnet", "-vsock-fd=1", "-port-forward", "--"])))
def test_any_command_line_parses_or_is_refused(arguments: list[str]) -> None:
    try:
        assert flags().parse(arguments).keys() == DEFAULTS.keys()
    except (FlagError, HelpRequested):
        pass  # and nothing else


def test_an_alias_is_the_same_flag_and_not_listed() -> None:
    made = flags()
    made.add_alias("network", "subnet")
    made.add_alias("d", "debug")
    assert made.parse(["-subnet", "a", "--network=b", "-d"]) == DEFAULTS | {"subnet": "b", "debug": True}
    assert made.usage() == USAGE
    with pytest.raises(FlagError, match=r"^flag needs an argument: -network$"):
        made.parse(["-network"])


def test_quote() -> None:
    assert go_quote('a"\\\t\x00\x7fé\u2028\U000e0001') == '"a\\"\\\\\\t\\x00\\x7fé\\u2028\\U000e0001"'
    assert go_quote("\udc80") == '"\\x80"'
