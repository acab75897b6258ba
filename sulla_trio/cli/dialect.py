"""The flags by which both sides of the handshake agree on phrase and ports. Source: specs/daemons.md sections 0 and 3.6."""

from __future__ import annotations

from typing import Any, Final

from sulla_trio.cli.goflags import FlagSet
from sulla_trio.errors import ConfigError
from sulla_trio.link.endpoint_url import MAX_VSOCK_PORT
from sulla_trio.wire.handshake import DEFAULT_DIALECT, DIALECTS, MAX_SIGNATURE, Dialect

HANDSHAKE_PORT: Final = "vsock-handshake-port"


def add_flags(declared: FlagSet, data_port: str) -> None:
    """Declare them; `data_port` is what this daemon calls its end of the data connection."""
    declared.add_int(HANDSHAKE_PORT, "vsock port of the handshake; 0 for the dialect's")
    declared.add_int(data_port, "vsock port of the data connection; 0 for the dialect's")
    names = ", ".join(f"{one.name} ({one.handshake_port}, {one.data_port})" for one in DIALECTS.values())
    declared.add_string("dialect", f"generation of the peers: {names}", default=DEFAULT_DIALECT, ours=True)
    declared.add_string("signature", "phrase of the handshake instead of the dialect's: a `TEXT`", ours=True)


def dialect(values: dict[str, Any], data_port: str) -> Dialect:
    """What the parsed flags mean.

    Raises:
        ConfigError: a value cannot be used.
    """
    chosen = DIALECTS.get(values["dialect"])
    if chosen is None:
        raise ConfigError(f"--dialect {values['dialect']}: want one of {', '.join(DIALECTS)}")
    signature = values["signature"].encode("utf-8", "surrogateescape")
    if len(signature) > MAX_SIGNATURE:
        raise ConfigError(f"--signature of {len(signature)} bytes: at most {MAX_SIGNATURE}")
    if signature:
        chosen = chosen._replace(signature=signature)
    for name, field in ((HANDSHAKE_PORT, "handshake_port"), (data_port, "data_port")):
        port = values[name]
        if not 0 <= port <= MAX_VSOCK_PORT:
            raise ConfigError(f"-{name} {port}: want a vsock port, 1 to {MAX_VSOCK_PORT}")
        if port:
            chosen = chosen._replace(**{field: port})
    return chosen
