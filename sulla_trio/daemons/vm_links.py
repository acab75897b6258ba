"""Which link vm-switch serves: the first, and over the control descriptor those that replace it.

A new link takes the place of the one before at once, whether that still lives or not; tap, address and lease stay. What
the other side gets to know is in `sulla_trio.link.control`. Source: DESIGN section 6, "Re-attach".
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from typing import Final

import trio

from sulla_trio.daemons.vm_pump import Pump, explain
from sulla_trio.errors import BadPacket
from sulla_trio.link import control
from sulla_trio.link.endpoint import Endpoint

log = logging.getLogger(__name__)

LINK_LOST: Final = "link lost: "


class Links:
    """The link of the moment, which it owns, for `pump`.

    Without a `channel` the first link's end is the end, which `end` is told. `attached` is called when a link has taken
    another one's place.
    """

    def __init__(
        self,
        pump: Pump,
        first: Endpoint,
        channel: socket.socket | None,
        *,
        attached: Callable[[], None],
        end: Callable[[str], None],
    ) -> None:
        self._pump = pump
        self._link = first
        self._channel = channel
        self._attached = attached
        self._end = end
        self._next: Endpoint | None = None
        self._scope = trio.CancelScope()
        """Whatever lasts until there is a next link."""
        pump.attach(first)

    async def carry(self) -> None:
        """Serve one link after another, until cancelled or at the end."""
        self._tell(control.UP)
        while True:
            reason = ""
            with trio.CancelScope() as self._scope:
                reason = await self._pump.carry()
            self._link.close()
            if self._next is None and self._channel is None:
                self._end(LINK_LOST + reason)
                return
            if self._next is None:
                log.warning("%s%s; the tap stays, waiting for another link", LINK_LOST, reason)
                self._tell(control.LOST, reason)
                with trio.CancelScope() as self._scope:
                    await self._pump.discard()
            if self._next is not None:
                self._link, self._next = self._next, None
                self._pump.attach(self._link)
                log.info("another link is attached")
                self._attached()

    async def listen(self) -> None:
        """Take links from the control descriptor until it ends, which is the end."""
        channel = self._channel
        while channel is not None:
            try:
                message = control.receive(channel)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(channel)
                continue
            except BadPacket as error:
                log.warning("message on the control descriptor ignored: %s", error.reason)
            except OSError as error:
                self._end(f"reading from the control descriptor failed: {explain(error)}")
                return
            else:
                if message is None:
                    self._end("network-setup has gone: end of file on the control descriptor")
                    return
                self._obey(message)
            await trio.lowlevel.checkpoint()

    def _obey(self, message: control.Message) -> None:
        if message.fd is None:
            log.warning("message on the control descriptor ignored: %s is not for vm-switch", message.word)
            return
        try:
            link = Endpoint(socket.socket(fileno=message.fd), "the control descriptor's link")
        except OSError as error:
            os.close(message.fd)
            log.warning("message on the control descriptor ignored: its link cannot be used: %s", explain(error))
            return
        if self._next is not None:
            self._next.close()
        self._next = link
        self._scope.cancel()

    def _tell(self, word: str, text: str = "") -> None:
        if self._channel is not None:
            try:
                control.send(self._channel, word, text)
            except OSError as error:  # if it has gone, `listen` sees it
                log.debug("nobody reads the control descriptor: %s", explain(error))

    def close(self) -> None:
        """Close what it owns."""
        self._link.close()
        if self._next is not None:
            self._next.close()
