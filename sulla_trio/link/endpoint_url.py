"""Endpoint URLs: text that names a byte stream, or a place to wait for some. Pure; DESIGN section 6 has the forms.

``fd://N``                        an inherited connected socket
``unix:///path``                  a unix socket
``tcp://host:port``               TCP; an IPv6 address in brackets
``vsock://CID:PORT``              AF_VSOCK; ``ANY`` for the CID when listening
``hyperv://GUID:PORT``            AF_HYPERV, the vsock port of the VM of that id
``vsock+unix:///path:PORT``       hybrid vsock (Firecracker, Cloud Hypervisor): the VMM's unix socket, the guest's port

A missing port is the caller's default where it has one. A hybrid path cannot end in a colon and digits: that is the port.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final, NamedTuple

from sulla_trio.errors import ConfigError

MAX_VSOCK_PORT: Final = 0xFFFFFFFE
"""0xFFFFFFFF is VMADDR_PORT_ANY."""
MAX_HYPERV_PORT: Final = 0x7FFFFFFF
"""Half of the template's Data1 is reserved (specs/daemons.md section 1.6)."""
MAX_TCP_PORT: Final = 0xFFFF
MAX_CID: Final = 0xFFFFFFFE
"""0xFFFFFFFF is VMADDR_CID_ANY, written ``ANY``."""
MAX_DESCRIPTOR: Final = 0x7FFFFFFF

FORMS: Final = {
    "fd": "fd://N",
    "unix": "unix:///path",
    "tcp": "tcp://host:port",
    "vsock": "vsock://CID:PORT",
    "hyperv": "hyperv://GUID:PORT",
    "vsock+unix": "vsock+unix:///path:PORT",
}

_SERVICE_TEMPLATE: Final = "-facb-11e6-bd58-64006a7986d3"
_GUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9._-]+")


class EndpointUrl(NamedTuple):
    """A parsed endpoint URL."""

    scheme: str
    host: str
    """A path for unix and vsock+unix, a CID or ``ANY`` for vsock, a GUID in lower case for hyperv; empty for fd."""
    port: int
    """The descriptor's number for fd; 0 for unix."""
    text: str

    def with_port(self, port: int) -> EndpointUrl:
        """The same place's other port. ``unix`` and ``fd`` have none: unchanged.

        Raises:
            ConfigError: there is no such port.
        """
        if self.scheme in ("unix", "fd"):
            return self
        host = f"[{self.host}]" if ":" in self.host and self.scheme == "tcp" else self.host
        return parse_endpoint(f"{self.scheme}://{host}:{port}")


def parse_endpoint(url: str, default_port: int | None = None) -> EndpointUrl:
    """Parse an endpoint URL; `default_port` stands for a port that is left out.

    Raises:
        ConfigError: unknown scheme or a missing or bad part; the text names the URL and the accepted form.
    """
    scheme, separator, rest = url.partition("://")
    try:
        # A line break or a NUL in a path would reach logs and system calls.
        if separator and url.isprintable():
            match scheme:
                case "fd":
                    return EndpointUrl("fd", "", _number(rest, MAX_DESCRIPTOR), url)
                case "unix":
                    return EndpointUrl("unix", _path(rest), 0, url)
                case "tcp":
                    host, port = _split_port(rest, MAX_TCP_PORT, default_port)
                    return EndpointUrl("tcp", _tcp_host(host), port, _complete(url, rest, host, port))
                case "vsock":
                    host, port = _split_port(rest, MAX_VSOCK_PORT, default_port)
                    cid = host if host == "ANY" else str(_number(host, MAX_CID))
                    return EndpointUrl("vsock", cid, port, _complete(url, rest, host, port))
                case "hyperv":
                    host, port = _split_port(rest, MAX_HYPERV_PORT, default_port)
                    return EndpointUrl("hyperv", guid(host), port, _complete(url, rest, host, port))
                case "vsock+unix":
                    host, port = _split_port(rest, MAX_VSOCK_PORT, default_port)
                    return EndpointUrl("vsock+unix", _path(host), port, _complete(url, rest, host, port))
    except ValueError:
        pass
    forms = [FORMS[scheme]] if separator and scheme in FORMS else list(FORMS.values())
    wanted = f"{', '.join(forms[:-1])} or {forms[-1]}" if forms[1:] else forms[0]
    raise ConfigError(f"invalid endpoint {url if url.isprintable() else repr(url)}: want {wanted}")


def guid(text: str) -> str:
    """`text` as a GUID in lower case. Raises ValueError."""
    if not _GUID.fullmatch(text):
        raise ValueError(text)
    return text.lower()


def service_of_port(port: int) -> str:
    """The Hyper-V service GUID of a vsock port (specs/daemons.md section 1.6). Raises ValueError: no such port."""
    if not 0 <= port <= MAX_HYPERV_PORT:
        raise ValueError(port)
    return f"{port:08x}{_SERVICE_TEMPLATE}"


def port_of_service(service: str) -> int | None:
    """The vsock port of a Hyper-V service GUID; None: it is not one of the template."""
    service = service.lower()
    if not _GUID.fullmatch(service) or not service.endswith(_SERVICE_TEMPLATE):
        return None
    port = int(service[:8], 16)
    return port if port <= MAX_HYPERV_PORT else None


def _number(text: str, limit: int) -> int:
    # int() alone would take "+1", " 1", "1_0" and other scripts' digits.
    if not (text.isascii() and text.isdecimal()) or int(text) > limit:
        raise ValueError(text)
    return int(text)


def _split_port(rest: str, limit: int, default_port: int | None) -> tuple[str, int]:
    host, colon, port = rest.rpartition(":")
    if colon and (port.isdecimal() or not port):
        return host, _number(port, limit)
    if default_port is None or default_port > limit:
        raise ValueError(rest)
    return rest, default_port


def _complete(url: str, rest: str, host: str, port: int) -> str:
    """`url` with its port written out, so that a log line says where."""
    return f"{url}:{port}" if rest == host else url


def _path(text: str) -> str:
    if not text.startswith("/") or text.endswith("/"):
        raise ValueError(text)
    return text


def _tcp_host(text: str) -> str:
    if text.startswith("[") and text.endswith("]"):
        return str(ipaddress.IPv6Address(text[1:-1]))
    if not _HOST_NAME.fullmatch(text):
        raise ValueError(text)
    return text.lower()
