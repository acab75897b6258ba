"""Hyper-V sockets over unix ones: an address is a pair of GUIDs, and a file is named for the service."""

from __future__ import annotations

import socket
import uuid
from pathlib import Path

from sulla_trio.link.hyperv import HyperV


class FakeHyperVSockets:
    """`made` are all the sockets; the files are in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.made: list[socket.socket] = []

    def hyperv(self, readiness: bool | None) -> HyperV:
        return HyperV(self.new_socket, readiness)

    def new_socket(self) -> socket.socket:
        sock = _Socket(self.directory)
        self.made.append(sock)
        return sock


class _Socket(socket.socket):
    def __init__(self, directory: Path) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        self._directory = directory

    def accept(self) -> tuple[socket.socket, object]:
        sock, address = socket.socket.accept(self)
        return sock, address

    def bind(self, address: object) -> None:
        super().bind(self._path(address))

    def connect(self, address: object) -> None:
        super().connect(self._path(address))

    def _path(self, address: object) -> str:
        assert isinstance(address, tuple)
        vm, service = address
        assert str(uuid.UUID(vm)) == vm
        assert str(uuid.UUID(service)) == service
        # One partition: whatever it is called, what is told apart is the port.
        return str(self._directory / service[:8])
