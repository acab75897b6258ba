"""The Go daemons' sides of the handshake, as their bytes and their order go (specs/daemons.md sections 1.2 to 1.5)."""

from __future__ import annotations

from pathlib import Path

import trio

from sulla_trio.wire.handshake import DIALECTS, READY


class GoGuest:
    """The Go network-setup: serves handshake connections one at a time and without a deadline, dials once READY has come.

    `phrase` may be another's; `silent` accepts and says nothing; `dials` False is a VM that is on its way down.
    """

    def __init__(
        self,
        directory: Path,
        name: str = "vm",
        *,
        phrase: bytes = DIALECTS["rd1"].signature,
        silent: bool = False,
        dials: bool = True,
    ) -> None:
        self.handshake_path = str(directory / f"{name}.handshake")
        self.data_path = str(directory / "data")
        self._phrase = phrase
        self._silent = silent
        self.dials = dials
        self.accepted = 0
        self.heard: list[bytes] = []
        """What each handshake connection said until its end, or the five bytes that were waited for."""
        self.link: trio.SocketStream | None = None
        self.linked = trio.Event()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until READY has been obeyed (``dials``) or for ever."""
        listener = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
        with listener:
            Path(self.handshake_path).unlink(missing_ok=True)
            await listener.bind(self.handshake_path)
            listener.listen(16)
            task_status.started()
            while not self.linked.is_set():
                connection, _ = await listener.accept()
                self.accepted += 1
                async with trio.SocketStream(connection) as stream:
                    if await self._serve(stream) and self.dials:
                        self.link = await trio.open_unix_socket(self.data_path)
                        self.linked.set()

    async def _serve(self, stream: trio.SocketStream) -> bool:
        if self._silent:
            await trio.sleep_forever()
        word = b""
        try:
            await stream.send_all(self._phrase)
            while len(word) < len(READY):
                received = await stream.receive_some(len(READY) - len(word))
                if not received:
                    break
                word += received
        except trio.BrokenResourceError:
            pass
        self.heard.append(word)
        return word == READY
