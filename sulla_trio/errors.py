"""The closed family of errors, by who broke what.

`BadPacket`        the network sent bytes that do not parse: counted under `reason`, never logged per packet
`LocalError`       our own code broke a contract of a machine above the trio line: a bug
`ConfigError`      a person or a program gave a value we cannot use: one line that names the value and the way out
`ForwardError`     a forward cannot be added or removed; `code` is for programs, the text for people
"""

from __future__ import annotations


class SullaError(Exception):
    """Root of every error this package raises on purpose."""


class BadPacket(SullaError):
    """Bytes from the network that do not parse.

    `reason` is a counter name, ``<layer>_<what>`` (``tcp_checksum``, ``ipv4_short``). It is the only exception a parser
    of `sulla_trio.wire` may raise.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class LocalError(SullaError):
    """A verb was called in a state that does not allow it (a bug in the caller, never the peer's doing)."""


class ConfigError(SullaError):
    """A value from a command line, file or environment that cannot be used; the message names it and the way out."""


class ForwardError(SullaError):
    """A port forward could not be added or removed.

    `code` is one of ``running``, ``unknown``, ``protocol``, ``local``, ``remote``, ``bind``, ``in_use``, ``privileged``,
    ``denied``, ``closed``.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
