"""The control descriptor between network-setup and vm-switch: new links in, what became of them out.

A SOCK_SEQPACKET socket pair; one message, one text of ASCII. To vm-switch goes ``link`` with exactly one descriptor
(SCM_RIGHTS), a connected stream socket that replaces the one it has. From it come ``up``, when the tap is there and frames
are carried, and ``lost REASON``, when a link has ended. End of file is the other side's end. The descriptor's number is in
the environment variable `CONTROL_VARIABLE`; under a Go parent there is none. Source: DESIGN section 6, "Re-attach"; unix(7).
"""

from __future__ import annotations

import array
import os
import select
import socket
from typing import Final, NamedTuple

from sulla_trio.errors import BadPacket, ConfigError

CONTROL_VARIABLE: Final = "SULLA_CTL_FD"
LINK: Final = "link"
UP: Final = "up"
LOST: Final = "lost"
MAX_MESSAGE: Final = 512
"""Bytes: one word and a reason that fits on a line of a log."""
_MAX_DESCRIPTORS: Final = 8
"""Room for more than the one that is allowed, so that two are seen as two; the kernel closes what does not fit."""
_RIGHTS: Final = (socket.SOL_SOCKET, socket.SCM_RIGHTS)
_ENDED: Final = select.POLLHUP | select.POLLRDHUP


class Message(NamedTuple):
    """One message. `text` is the reason of ``lost``; `fd` the descriptor of ``link``, close-on-exec and the receiver's
    to close."""

    word: str
    text: str
    fd: int | None


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """(ours, theirs): two connected ends, non-blocking and close-on-exec; a child gets its own by ``pass_fds``.

    Raises:
        OSError: no descriptors left.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


def inherited(number: int) -> socket.socket:
    """The socket behind descriptor `number`, taken over: non-blocking, close-on-exec.

    Raises:
        ConfigError: it is not an open SOCK_SEQPACKET socket of AF_UNIX.
    """
    try:
        sock = socket.socket(fileno=number)
    except (OSError, OverflowError, ValueError):
        raise ConfigError(f"{CONTROL_VARIABLE}={number} is not an inherited socket") from None
    if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
        sock.detach()
        raise ConfigError(f"{CONTROL_VARIABLE}={number} is not a unix socket of type SOCK_SEQPACKET")
    sock.set_inheritable(False)
    sock.setblocking(False)
    return sock


def send_link(sock: socket.socket, fd: int) -> None:
    """Hand the connected stream socket `fd` over. The caller keeps its own duplicate, and closes it.

    Raises:
        BlockingIOError: the other side does not read.
        OSError: it is gone.
    """
    socket.send_fds(sock, [LINK.encode()], [fd], socket.MSG_DONTWAIT)


def send(sock: socket.socket, word: str, text: str = "") -> None:
    """Send `word` with `text`, which is cut and made printable ASCII where it is not. Raises as `send_link`."""
    line = f"{word} {text}" if text else word
    printable = "".join(c if " " <= c <= "~" else "?" for c in line)
    sock.send(printable.encode()[:MAX_MESSAGE], socket.MSG_DONTWAIT)


def receive(sock: socket.socket) -> Message | None:
    """The next message; None when the other side is gone.

    Raises:
        BlockingIOError: there is none now.
        BadPacket: not one of the messages above. Its descriptors are closed, and the next call reads the next message.
    """
    space = socket.CMSG_SPACE(_MAX_DESCRIPTORS * array.array("i").itemsize)
    try:
        data, ancillary, flags, _ = sock.recvmsg(MAX_MESSAGE, space, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
    except ConnectionResetError:  # it ended without having read all of ours
        return None
    descriptors = _descriptors(ancillary)
    try:
        if not data and not descriptors and _has_ended(sock):
            return None
        message = _parse(data, flags, descriptors)
    except BadPacket:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    return message


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, value in ancillary:
        if (level, kind) == _RIGHTS:
            found.frombytes(value[: len(value) - len(value) % found.itemsize])
    return found.tolist()


def _has_ended(sock: socket.socket) -> bool:
    """Whether an empty read was the end, and not an empty message."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return any(events & _ENDED for _, events in poll.poll(0))


def _parse(data: bytes, flags: int, descriptors: list[int]) -> Message:
    if flags & socket.MSG_TRUNC:
        raise BadPacket("control_too_long")
    if not all(0x20 <= byte < 0x7F for byte in data):
        raise BadPacket("control_not_ascii")
    word, space, text = data.decode("ascii").partition(" ")
    if word not in (LINK, UP, LOST) or bool(space) != (word == LOST) or bool(text) != (word == LOST):
        raise BadPacket("control_unknown_message")
    # MSG_CTRUNC: there were more of them, or we have no descriptor left to put one in.
    if flags & socket.MSG_CTRUNC or len(descriptors) != (word == LINK):
        raise BadPacket("control_descriptor_count")
    if word != LINK:
        return Message(word, text, None)
    if not _is_connected_stream(descriptors[0]):
        raise BadPacket("control_not_a_connected_stream")
    return Message(word, text, descriptors[0])


def _is_connected_stream(descriptor: int) -> bool:
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError:
        return False
    try:
        sock.getpeername()
        return sock.type == socket.SOCK_STREAM
    except OSError:
        return False
    finally:
        sock.detach()
