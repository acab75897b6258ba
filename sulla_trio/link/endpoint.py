"""Endpoints by their URLs: connect to one, listen at one. `endpoint_url` has the forms, `endpoint_socket` the four calls.

Whatever the transport, what comes out is an `Endpoint`, or a listener of them.
"""

from __future__ import annotations

import os
import socket
from typing import Final

import trio

from sulla_trio.errors import ConfigError
from sulla_trio.link import hybrid_vsock, hyperv
from sulla_trio.link.endpoint_listener import EndpointListener, ListenerFile, remove_stale_socket
from sulla_trio.link.endpoint_socket import (
    AF_UNIX,
    AF_VSOCK,
    MAX_BUFFERS,
    Address,
    Buffer,
    Endpoint,
    connect_socket,
    new_socket,
)
from sulla_trio.link.endpoint_url import EndpointUrl, parse_endpoint

__all__ = [
    "MAX_BUFFERS",
    "Buffer",
    "Endpoint",
    "EndpointListener",
    "EndpointUrl",
    "connect",
    "inherited_socket",
    "listen",
    "listen_endpoints",
    "parse_endpoint",
    "take_socket",
]

_VMADDR_CID_ANY: Final = 0xFFFFFFFF


async def connect(url: EndpointUrl) -> Endpoint:
    """Connect to (or take over) the stream that `url` names. Failure and cancellation close what was begun.

    How long an attempt may take is the kernel's affair (AF_VSOCK 2 s, TCP minutes): a cancel scope bounds it.

    Raises:
        ConfigError: `url` names nothing that can be connected to.
        OSError: the connection failed.
    """
    match url.scheme:
        case "fd":
            await trio.lowlevel.checkpoint()
            return Endpoint(inherited_socket(url), url.text)
        case "unix" | "vsock+unix":
            sock = new_socket(AF_UNIX, url)
            await connect_socket(sock, url.host)
            if url.scheme == "vsock+unix":
                await hybrid_vsock.request_port(sock, url.port)
        case "tcp":
            family, address = await _resolve(url)
            sock = new_socket(family, url)
            await connect_socket(sock, address)
        case "vsock":
            if url.host == "ANY":
                raise ConfigError(f"cannot connect to {url.text}: ANY is for listening; name the CID")
            sock = new_socket(AF_VSOCK, url)
            await connect_socket(sock, (int(url.host), url.port))
        case _:
            return await hyperv.connect_hyperv(url)
    return Endpoint(sock, url.text)


def inherited_socket(url: EndpointUrl) -> socket.socket:
    """The connected socket behind ``fd://N``, taken over (close-on-exec).

    Raises:
        ConfigError: N is not an open stream socket.
    """
    try:
        sock = socket.socket(fileno=url.port)
    except OSError as error:
        raise ConfigError(f"{url.text} is not an inherited socket: {error.strerror}") from None
    if sock.type != socket.SOCK_STREAM:
        sock.detach()
        raise ConfigError(f"{url.text} is not a stream socket")
    sock.set_inheritable(False)
    return sock


async def listen_endpoints(url: EndpointUrl) -> EndpointListener:
    """A listener for connections at `url`; its file, where it has one, goes when it is closed.

    An existing socket file of a dead listener is replaced, one that answers is an error.

    Raises:
        ConfigError: `url` cannot be listened on.
        OSError: bind or listen failed.
    """
    match url.scheme:
        case "unix":
            return EndpointListener(await _listen_unix(url, url.host), url, file=url.host)
        case "vsock+unix":
            file = f"{url.host}_{url.port}"
            return EndpointListener(await _listen_unix(url, file), url, file=file)
        case "tcp":
            sock = await _listen_tcp(url)
            return EndpointListener(sock, url.with_port(sock.getsockname()[1]))
        case "vsock":
            sock = new_socket(AF_VSOCK, url)
            cid = _VMADDR_CID_ANY if url.host == "ANY" else int(url.host)
            await _bind_and_listen(sock, (cid, url.port))
            return EndpointListener(sock, url)
        case "hyperv":
            return await hyperv.listen_hyperv(url)
    raise ConfigError(f"cannot listen on {url.text}: it is one connection; name a place to listen at")


async def listen(url: EndpointUrl) -> trio.SocketListener:
    """A plain listener, for whom an ordinary stream serves (the host API). A unix socket's file stays when it is closed.

    Raises:
        ConfigError: `url` is neither unix nor tcp, or it cannot be listened on.
        OSError: bind or listen failed.
    """
    match url.scheme:
        case "unix":
            sock = await _listen_unix(url, url.host)
        case "tcp":
            sock = await _listen_tcp(url)
        case _:
            raise ConfigError(f"cannot listen on {url.text}: want unix:///path or tcp://host:port")
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


def take_socket(stream: trio.SocketStream) -> socket.socket:
    """The stdlib socket of an accepted stream, non-blocking; `stream` is spent afterwards."""
    sock = socket.socket(fileno=stream.socket.detach())
    sock.setblocking(False)
    return sock


async def _resolve(url: EndpointUrl) -> tuple[int, Address]:
    """The family and the address of a ``tcp`` URL: IPv4, or IPv6 if that is what is written."""
    family = socket.AF_INET6 if ":" in url.host else socket.AF_INET
    found = await trio.socket.getaddrinfo(url.host, url.port, family, socket.SOCK_STREAM)
    return family, found[0][4]


async def _listen_tcp(url: EndpointUrl) -> socket.socket:
    family, address = await _resolve(url)
    sock = new_socket(family, url)
    if os.name == "posix":  # on Windows the option would let another program steal the port
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    await _bind_and_listen(sock, address)
    return sock


async def _listen_unix(url: EndpointUrl, path: str) -> socket.socket:
    await remove_stale_socket(path)
    sock = new_socket(AF_UNIX, url)
    await _bind_and_listen(sock, path, file=path)
    return sock


async def _bind_and_listen(sock: socket.socket, address: Address, file: str = "") -> None:
    made = None
    try:
        sock.bind(address)
        if file:
            made = ListenerFile(file)
            os.chmod(file, 0o600)  # before listen: until then nobody can connect
        sock.listen(socket.SOMAXCONN)
    except BaseException:
        if made is not None:
            made.remove()
        sock.close()
        raise
    await trio.lowlevel.cancel_shielded_checkpoint()
