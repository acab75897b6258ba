"""AF_HYPERV endpoints: the Windows host's side of a Hyper-V socket.

Source: specs/daemons.md section 1.6; https://docs.python.org/3/library/socket.html (AF_HYPERV, Python 3.12). An address is
a pair of GUID texts, VM and service; the service stands for a vsock port. Whether readiness works on such sockets is found
out once per run, between two of them on this host; where it does not, endpoints run over threads.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import trio

from sulla_trio.errors import ConfigError
from sulla_trio.link.endpoint_listener import EndpointListener
from sulla_trio.link.endpoint_socket import Endpoint, connect_socket, tune
from sulla_trio.link.endpoint_threads import ThreadedEndpoint, ThreadedListener
from sulla_trio.link.endpoint_url import EndpointUrl, service_of_port

CONNECT_TIMEOUT: Final = 2000
"""Milliseconds, as AF_VSOCK's on Linux; without it a dial to a VM that is going away may block for half a minute."""
SELF_TEST_TIMEOUT: Final = 2.0
"""Seconds: on one host it takes a millisecond."""
LOOPBACK: Final = "e0e16197-dd56-4a10-9195-5ee7a155a838"
"""HV_GUID_LOOPBACK, the VmId of this very partition."""
_SELF_TEST_PORTS: Final = 0x40000000
"""The process number is added: two daemons may start at once."""


@dataclass(slots=True)
class HyperV:
    """Hyper-V sockets of this system."""

    new_socket: Callable[[], socket.socket]
    """A fresh stream socket, its connect timeout set."""
    readiness: bool | None = None
    """Whether waiting for such a socket works; None: not tried yet."""
    lock: trio.Lock = field(default_factory=trio.Lock)

    async def needs_threads(self) -> bool:
        async with self.lock:
            if self.readiness is None:
                self.readiness = await readiness_works(self.new_socket)
            return not self.readiness


_SYSTEM: Final = trio.lowlevel.RunVar[HyperV]("hyperv")


def system_hyperv(constants: object = socket) -> HyperV:
    """Hyper-V sockets by the constants of `constants`.

    Raises:
        ConfigError: they are not there.
    """
    try:
        family: int = getattr(constants, "AF_HYPERV")  # noqa: B009
        raw: int = getattr(constants, "HV_PROTOCOL_RAW")  # noqa: B009
        timeout: int = getattr(constants, "HVSOCKET_CONNECT_TIMEOUT")  # noqa: B009
    except AttributeError:
        raise ConfigError("AF_HYPERV needs Python 3.12 or newer on Windows") from None

    def new_socket() -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM, raw)  # without the protocol: WinError 10041
        with contextlib.suppress(OSError):  # older Windows: the system's own timeout
            sock.setsockopt(raw, timeout, CONNECT_TIMEOUT)
        tune(sock)
        return sock

    return HyperV(new_socket)


def current_hyperv() -> HyperV:
    """The one of this trio run. Raises ConfigError as `system_hyperv`."""
    try:
        return _SYSTEM.get()
    except LookupError:
        hyperv = system_hyperv()
        _SYSTEM.set(hyperv)
        return hyperv


async def connect_hyperv(url: EndpointUrl, hyperv: HyperV | None = None) -> Endpoint:
    """Dial the vsock port of the VM that `url` names. Failure and cancellation close the socket.

    Raises:
        ConfigError: this system has no AF_HYPERV.
        OSError: the connection failed.
    """
    hyperv = _for(url, hyperv)
    address = (url.host, service_of_port(url.port))
    threads = await hyperv.needs_threads()
    sock = hyperv.new_socket()
    if not threads:
        sock.setblocking(False)
        await connect_socket(sock, address)
        return Endpoint(sock, url.text)
    try:
        # A cancelled dial is not waited for: closing the socket ends it, or at the latest its timeout does.
        await trio.to_thread.run_sync(sock.connect, address, abandon_on_cancel=True)
        return ThreadedEndpoint(sock, url.text)
    except BaseException:
        sock.close()
        raise


async def listen_hyperv(url: EndpointUrl, hyperv: HyperV | None = None) -> EndpointListener:
    """Listen for the VM that `url` names, at its vsock port.

    Raises:
        ConfigError: this system has no AF_HYPERV.
        OSError: bind or listen failed.
    """
    hyperv = _for(url, hyperv)
    threads = await hyperv.needs_threads()
    sock = hyperv.new_socket()
    try:
        sock.bind((url.host, service_of_port(url.port)))
        sock.listen(socket.SOMAXCONN)
        return ThreadedListener(sock, url) if threads else EndpointListener(sock, url)
    except BaseException:
        sock.close()
        raise


def _for(url: EndpointUrl, hyperv: HyperV | None) -> HyperV:
    try:
        return hyperv or current_hyperv()
    except ConfigError as error:
        raise ConfigError(f"{url.text}: {error}") from None


async def readiness_works(new_socket: Callable[[], socket.socket]) -> bool:
    """Whether a connect, an accept and a receive of such sockets can be waited for. Takes SELF_TEST_TIMEOUT at the most.

    No is also the answer where there is no loopback to try it on: threads always work.
    """
    address = (LOOPBACK, service_of_port(_SELF_TEST_PORTS | (os.getpid() & (_SELF_TEST_PORTS - 1))))
    with (
        trio.move_on_after(SELF_TEST_TIMEOUT),
        contextlib.ExitStack() as stack,
        contextlib.suppress(OSError, ValueError),
    ):
        listener, dialler = (stack.enter_context(new_socket()) for _ in range(2))
        for sock in (listener, dialler):
            sock.setblocking(False)
        listener.bind(address)
        listener.listen(1)
        await connect_socket(dialler, address)
        await trio.lowlevel.wait_readable(listener)
        accepted = stack.enter_context(listener.accept()[0])
        await trio.lowlevel.wait_writable(dialler)
        dialler.send(b"x")
        accepted.setblocking(False)
        await trio.lowlevel.wait_readable(accepted)
        return accepted.recv(1) == b"x"
    return False
