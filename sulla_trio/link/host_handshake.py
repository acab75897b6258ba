"""The host's side of the handshake: probe every VM that might be ours, tell the one that answers READY, take its connection.

Source: specs/daemons.md sections 1.2 to 1.4 and 11. A handshake counts only when the data connection has come: a VM that is
shutting down answers too, and then goes (the phantom handshake). Every probe is closed whatever happens, because the Go guest
serves one at a time and waits for ever.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, NamedTuple

import trio

from sulla_trio.errors import ConfigError
from sulla_trio.link import endpoint as endpoints
from sulla_trio.link.discovery import Candidates
from sulla_trio.link.endpoint import Endpoint, EndpointListener, EndpointUrl
from sulla_trio.link.handshake_words import hear, say
from sulla_trio.wire.handshake import READY, Dialect, Expected

log = logging.getLogger(__name__)

PROBE_INTERVAL: Final = 1.0
"""Seconds from one look at the candidates to the next."""
PROBE_TIMEOUT: Final = 5.0
"""Seconds to connect and hear the signature. The next probe of that VM begins after this one has ended."""
ACCEPT_TIMEOUT: Final = 10.0
"""Seconds from READY to the data connection (the Go host's)."""
REFUSED_INTERVAL: Final = 10.0
"""Seconds before a VM that said another phrase is asked again: it may have been started anew since."""
REMINDER_INTERVAL: Final = 60.0
"""Seconds between two lines about there being no VM."""


class Vm(NamedTuple):
    """A VM that has answered with the signature."""

    url: EndpointUrl
    """Its handshake endpoint."""
    peer: str
    """Who that is (`Endpoint.peer`): only the same one may open the data connection."""


class HostHandshake:
    """Finds the VM, again and again over the life of a host-switch. `attach` never runs twice at once.

    `data` is where the data connection is waited for; None: where `data_endpoint` says for the VM that was found.
    `emit` records an event.
    """

    def __init__(
        self,
        candidates: Candidates,
        dialect: Dialect,
        data: EndpointUrl | None = None,
        emit: Callable[..., None] = lambda type, **fields: None,
    ) -> None:
        self._candidates = candidates
        self._dialect = dialect
        self._data = data
        self._emit = emit
        self._probing: set[str] = set()
        self._not_before: dict[str, float] = {}
        self._told: dict[str, str] = {}
        """What was last logged about each candidate: a state is told when it changes, not every second."""

    async def attach(self) -> Endpoint:
        """Until a VM's data connection is there, however long that takes; it is the caller's.

        Nothing that goes wrong ends it: a data endpoint that cannot be had is told and tried again. Cancellation closes
        everything.
        """
        attempt = 0
        while True:
            attempt += 1
            vm = await self._find()
            try:
                link = await self._take_link(vm)
            except (OSError, ConfigError, trio.TooSlowError) as error:
                timed_out = isinstance(error, trio.TooSlowError)
                reason = "timed out waiting for peer data connection" if timed_out else _reason(error)
                log.warning("handshake attempt %d unvalidated (%s); retrying", attempt, reason)
                self._emit("link.handshake", vm=vm.url.text, state="unvalidated", reason=reason)
                await trio.sleep(PROBE_INTERVAL)
                continue
            log.info("validated handshake on attempt %d", attempt)
            self._emit("link.handshake", vm=vm.url.text, state="validated")
            return link

    # Probes

    async def _find(self) -> Vm:
        """The first VM that answers with the signature."""
        found: list[Vm] = []
        async with trio.open_nursery() as nursery:

            async def probe(url: EndpointUrl) -> None:
                self._probing.add(url.text)
                try:
                    vm = await self._probe(url)
                finally:
                    self._probing.discard(url.text)
                if vm is not None:
                    found.append(vm)
                    nursery.cancel_scope.cancel()

            reminder = trio.current_time() + REMINDER_INTERVAL
            while not found:
                now = trio.current_time()
                for url in self._find_candidates():
                    if url.text not in self._probing and now >= self._not_before.get(url.text, 0.0):
                        nursery.start_soon(probe, url)
                if now >= reminder:
                    reminder = now + REMINDER_INTERVAL
                    log.warning("no VM has answered the handshake in %.0f s; still looking", REMINDER_INTERVAL)
                await trio.sleep(PROBE_INTERVAL)
        return found[0]

    def _find_candidates(self) -> list[EndpointUrl]:
        try:
            return self._candidates.find()
        except ConfigError as error:
            self._tell("", logging.INFO, str(error))
            return []

    async def _probe(self, url: EndpointUrl) -> Vm | None:
        """One connection, closed in any case; the VM, if it says the signature. Never raises but Cancelled."""
        signature, reason = Expected(self._dialect.signature), ""
        try:
            with trio.move_on_after(PROBE_TIMEOUT) as scope:
                async with await endpoints.connect(url) as connection:
                    peer = connection.peer
                    if not await hear(connection, signature):
                        reason = "EOF"
        except OSError as error:
            reason = _reason(error)
        if signature.matches:
            return Vm(url, peer)
        if not signature.missing:
            self._not_before[url.text] = trio.current_time() + REFUSED_INTERVAL
            text = f"handshake failed to match the signature phrase with a peer running in: {url.text}"
            if self._tell(url.text, logging.INFO, f"{text} ({signature.format()})"):
                self._emit("link.handshake", vm=url.text, state="refused", reason=f"it says {signature.format()}")
        else:
            reason = f"timed out after {PROBE_TIMEOUT:.0f} s" if scope.cancelled_caught else reason
            self._tell(url.text, logging.DEBUG, f"handshake attempt to read the signature of {url.text}: {reason}")
        return None

    def _tell(self, about: str, level: int, text: str) -> bool:
        """Log `text` unless it is what was said last `about` it."""
        if self._told.get(about) == text:
            return False
        self._told[about] = text
        log.log(level, "%s", text)
        return True

    # The data connection

    async def _take_link(self, vm: Vm) -> Endpoint:
        """Listen, say READY, accept: in this order, because the guest dials once.

        Raises:
            OSError, ConfigError: the data endpoint cannot be had, or the VM is gone.
            TooSlowError: it does not come.
        """
        url = self._data or data_endpoint(vm.url, self._dialect.data_port)
        async with await endpoints.listen_endpoints(url) as listener:
            log.info("successful handshake, waiting for a connection from %s on %s", vm.url.text, url.text)
            with trio.fail_after(PROBE_TIMEOUT):
                await self._say_ready(vm)
            with trio.fail_after(ACCEPT_TIMEOUT):
                return await self._accept(listener, vm)

    async def _say_ready(self, vm: Vm) -> None:
        async with await endpoints.connect(vm.url) as connection:
            await say(connection, READY)
            # Closed with the signature unread, a TCP connection would be reset, and READY could be lost with it.
            await hear(connection, Expected(self._dialect.signature))

    async def _accept(self, listener: EndpointListener, vm: Vm) -> Endpoint:
        """The first connection of `vm` itself; any other one is closed, and the waiting goes on."""
        while True:
            connection = await listener.accept()
            if connection.peer == vm.peer:
                return connection
            connection.close()
            text = f"data connection from {connection.peer} closed: the VM that answered is {vm.peer}"
            if self._tell(f"data {connection.peer}", logging.WARNING, text):
                self._emit("link.handshake", vm=vm.url.text, state="stranger", reason=text)


def data_endpoint(vm: EndpointUrl, port: int) -> EndpointUrl:
    """Where the data connection of `vm` comes to when nothing else is said.

    Raises:
        ConfigError: for a unix or tcp endpoint nothing follows from the VM's own.
    """
    match vm.scheme:
        case "vsock":
            return endpoints.parse_endpoint(f"vsock://ANY:{port}")
        case "hyperv" | "vsock+unix":
            return vm.with_port(port)
    raise ConfigError(f"--vm {vm.text} needs --data URL as well: where the data connection comes to")


def _reason(error: Exception) -> str:
    return error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error)
