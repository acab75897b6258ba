"""The guest's side of the handshake: answer every probe with the signature, and dial the host that says READY.

Source: specs/daemons.md sections 1.2, 1.5 and 11. Unlike the Go daemon it serves connections concurrently, each with a deadline,
so that no silent one keeps the host out; and a host that says READY and then does not take the data connection is no end:
the guest listens again.
"""

from __future__ import annotations

import logging
from typing import Final

import trio

from sulla_trio.errors import ConfigError
from sulla_trio.link import endpoint as endpoints
from sulla_trio.link.endpoint import Endpoint, EndpointUrl
from sulla_trio.link.handshake_words import hear, say
from sulla_trio.wire.handshake import READY, Dialect, Expected

log = logging.getLogger(__name__)

ANSWER_TIMEOUT: Final = 5.0
"""Seconds for a connection to take the signature and say READY: a host says it at once, a probe hangs up at once."""
DIAL_TIMEOUT: Final = 10.0
"""Seconds for the data connection: as long as the host waits for it."""
MAX_CONNECTIONS: Final = 64
"""Handshake connections served at once. A host opens one at a time; beyond this bound a new one is closed unanswered."""


class GuestHandshake:
    """One guest that waits for its host. `attach` may be called again after a lost link, never twice at once."""

    def __init__(self, handshake: EndpointUrl, data: EndpointUrl, dialect: Dialect) -> None:
        self._handshake = handshake
        self._data = data
        self._dialect = dialect
        self._connections = 0
        self._full = False

    async def attach(self) -> Endpoint:
        """Listen until a host says READY, then dial it; the data connection, which is the caller's.

        Between READY and the return nothing listens. Cancellation closes whatever is open.

        Raises:
            ConfigError: the handshake endpoint cannot be listened on.
        """
        log.info("starting handshake process with host-switch")
        while True:
            await self._wait_ready()
            try:
                with trio.fail_after(DIAL_TIMEOUT):
                    link = await endpoints.connect(self._data)
            except (OSError, trio.TooSlowError) as error:
                reason = "timed out" if isinstance(error, trio.TooSlowError) else (error.strerror or str(error)).lower()
                # The Go daemon dies of it. A host-switch that went away between the two is a normal state.
                log.warning("failed connect() to %s: %s; waiting for the next handshake", self._data.text, reason)
                continue
            log.info("successful handshake, data connection to %s", self._data.text)
            return link

    async def _wait_ready(self) -> None:
        """Until READY has come on any connection.

        Raises:
            ConfigError: the handshake endpoint cannot be listened on.
        """
        try:
            listener = await endpoints.listen_endpoints(self._handshake)
        except OSError as error:
            text = (error.strerror or str(error)).lower()
            raise ConfigError(
                f"failed to handshake with host-switch: failed to listen on handshake port {self._handshake.text}: {text}"
            ) from None
        log.info("listening for the handshake on %s", self._handshake.text)
        async with trio.open_nursery() as nursery:

            async def serve(connection: Endpoint) -> None:
                if await self._serve(connection):
                    nursery.cancel_scope.cancel()

            await trio.serve_listeners(serve, [listener])

    async def _serve(self, connection: Endpoint) -> bool:
        """One connection; whether it said READY. Never raises but Cancelled."""
        if self._connections >= MAX_CONNECTIONS:
            if not self._full:
                self._full = True
                log.warning("more than %d handshake connections at once; new ones are closed", MAX_CONNECTIONS)
            return False
        self._connections += 1
        try:
            return await self._answer(connection)
        finally:
            self._connections -= 1

    async def _answer(self, connection: Endpoint) -> bool:
        word, reason = Expected(READY), ""
        try:
            with trio.move_on_after(ANSWER_TIMEOUT) as scope:
                try:
                    await say(connection, self._dialect.signature)
                except OSError:
                    pass  # a host that said READY may have hung up already: what it said is still to be read
                if not await hear(connection, word):
                    reason = "EOF"
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
        if word.matches:
            return True
        if reason == "EOF" and word.missing == len(READY):
            log.debug("listenForHandshake reading signature phrase failed: EOF (a probe)")
            return False
        if scope.cancelled_caught:
            reason = f"timed out after {ANSWER_TIMEOUT:.0f} s"
        log.info("listenForHandshake reading signature phrase failed: %s", reason or f"not READY: {word.format()}")
        return False
