"""Dialling through hybrid vsock: the VMM's unix socket, one line each way, and then the guest's stream.

Source: wire/hybrid_vsock.py has the lines.
"""

from __future__ import annotations

import errno
import socket
from typing import Final

import trio

from sulla_trio.errors import BadPacket
from sulla_trio.link.endpoint_socket import close_socket
from sulla_trio.wire import hybrid_vsock

REPLY_TIMEOUT: Final = 5.0
"""Seconds for the VMM to answer: it asks the guest's kernel, which may be busy booting (as long as a handshake's probe)."""


async def request_port(sock: socket.socket, port: int) -> None:
    """Ask the VMM at the other end of `sock` for the guest's `port`; afterwards `sock` is the guest's stream.

    Takes not a byte of it: the reply is read one at a time, 14 at the most. Failure and cancellation close `sock`.

    Raises:
        OSError: ECONNREFUSED where nobody listens in the guest (the VMM closes), ETIMEDOUT, EPROTO (no such reply), others.
    """
    received = bytearray()
    try:
        with trio.fail_after(REPLY_TIMEOUT):
            await _send_all(sock, hybrid_vsock.emit_connect(port))
            while not hybrid_vsock.is_whole(received):
                byte = await _receive_byte(sock)
                if not byte:
                    raise ConnectionRefusedError(errno.ECONNREFUSED, f"nobody listens on the guest's vsock port {port}")
                received += byte
            hybrid_vsock.parse_reply(bytes(received))
    except trio.TooSlowError:
        close_socket(sock)
        raise TimeoutError(errno.ETIMEDOUT, "the VMM does not answer CONNECT") from None
    except BadPacket:
        close_socket(sock)
        raise OSError(errno.EPROTO, f"the VMM answers CONNECT with {bytes(received)!r}") from None
    except BaseException:
        close_socket(sock)
        raise


async def _send_all(sock: socket.socket, line: bytes) -> None:
    while line:
        try:
            line = line[sock.send(line) :]
        except BlockingIOError:
            await trio.lowlevel.wait_writable(sock)


async def _receive_byte(sock: socket.socket) -> bytes:
    while True:
        try:
            return sock.recv(1)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(sock)
