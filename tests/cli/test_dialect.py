"""The flags of phrase and ports: what they are called, what they mean together."""

from __future__ import annotations

from sulla_trio.cli import dialect
from sulla_trio.cli.goflags import FlagSet
from sulla_trio.wire.handshake import DIALECTS, Dialect


def chosen(*arguments: str) -> Dialect:
    declared = FlagSet("x")
    dialect.add_flags(declared, "vsock-dial-port")
    return dialect.dialect(declared.parse(arguments), "vsock-dial-port")


def test_the_dialect_is_the_default_of_every_other_flag() -> None:
    assert [chosen("--dialect", name) for name in DIALECTS] == list(DIALECTS.values())


def test_each_flag_replaces_one_part() -> None:
    assert chosen("-vsock-dial-port", "0x10") == DIALECTS["rd1"]._replace(data_port=16)
    assert chosen("-vsock-handshake-port=9") == DIALECTS["rd1"]._replace(handshake_port=9)
    assert chosen("--signature", "a phrase", "--dialect", "rd2") == DIALECTS["rd2"]._replace(signature=b"a phrase")
