"""Who may use the host API over TCP: whoever knows the token, and no web page.

A unix socket needs none of this: its file mode is the access. A TCP port is open to every local user and, by DNS rebinding
or plain cross-site requests, to every page in a browser; so the token, and checks of Host and Origin besides.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from typing import Final, NamedTuple
from urllib.parse import urlsplit

LOCAL_HOSTS: Final = frozenset({"127.0.0.1", "localhost", "::1"})


class Refusal(NamedTuple):
    """Status and text of the answer to a request that may not be served."""

    status: int
    text: str


@dataclass(frozen=True, slots=True)
class Access:
    """The rule of one TCP listener."""

    token: str = field(repr=False)
    hosts: frozenset[str] = LOCAL_HOSTS
    """Names that Host and Origin may have, without port."""

    def check(self, host: str | None, origin: str | None, authorization: str | None) -> Refusal | None:
        """None if a request with these headers may be served."""
        if _host_name(f"//{host or ''}") not in self.hosts:
            return Refusal(403, f"host {host or ''!r} is not served here; use one of {', '.join(sorted(self.hosts))}")
        if origin is not None and _host_name(origin) not in self.hosts:
            return Refusal(403, f"origin {origin!r} may not use this API")
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), self.token.encode()):
            return Refusal(401, "a bearer token is needed: it is in the api file of the runtime directory")
        return None


def _host_name(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
