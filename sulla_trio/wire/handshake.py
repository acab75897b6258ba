"""The handshake that finds the right VM: a fixed phrase one way, one word back. Source: specs/daemons.md sections 0 and 1.2.

guest -> host   the signature, at once and whole: 53, 60 or 69 bytes of ASCII by dialect, no terminator
host -> guest   ``READY`` on the connection that is meant, nothing on a probe

Neither side says a length: each knows what it waits for and reads exactly that much.
"""

from __future__ import annotations

from typing import Final, NamedTuple

READY: Final = b"READY"


class Dialect(NamedTuple):
    """One generation of the peers: the guest's phrase and the two ports."""

    name: str
    signature: bytes
    handshake_port: int
    """Where the guest listens and the host dials."""
    data_port: int
    """Where the host listens and the guest dials."""


_REPOSITORY: Final = "github.com/rancher-sandbox/"
DIALECTS: Final = {
    dialect.name: dialect
    for dialect in (
        Dialect("rd1", f"{_REPOSITORY}rancher-desktop/src/go/networking".encode(), 6669, 6656),
        Dialect("old", f"{_REPOSITORY}rancher-desktop-networking".encode(), 6669, 6656),
        Dialect("rd2", f"{_REPOSITORY}rancher-desktop-opensuse/src/go/networking".encode(), 6670, 6657),
    )
}
DEFAULT_DIALECT: Final = "rd1"
MAX_SIGNATURE: Final = 1024
"""Bytes: more than any path of a module; what a peer can make a host wait for is bounded by its own ``--signature``."""


class Expected:
    """Collects a fixed text from a stream that may come in any pieces. What follows it is never asked for."""

    __slots__ = ("_received", "_text")

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._received = bytearray()

    @property
    def missing(self) -> int:
        """How many bytes to ask for next; 0: all are there."""
        return len(self._text) - len(self._received)

    def receive(self, data: bytes) -> None:
        """Take the next bytes, at most `missing`."""
        self._received += data[: self.missing]

    @property
    def matches(self) -> bool:
        """Whether all are there and they are the text."""
        return self._received == self._text

    def format(self) -> str:
        """What came, for a log line: printable, at most 80 characters."""
        text = bytes(self._received[:80]).decode("ascii", "backslashreplace")
        return text if text.isprintable() else repr(bytes(self._received[:20]))
