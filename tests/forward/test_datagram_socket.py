"""The guest's TTL on a host socket, errors with their sender, and what of them a guest is told."""

from __future__ import annotations

import errno
import os
import socket
import struct

import pytest
from trio.testing import MockClock

from sulla_trio.config import parse_ip
from sulla_trio.forward import datagram_socket
from sulla_trio.forward.datagram_socket import HostError, HostSocket, decode, refusal_of, tell_denied, tell_guest
from sulla_trio.services.policy import may_dial
from sulla_trio.wire import icmp
from tests.support.lone_driver import lone_driver
from tests.support.stack_guest import REMOTE, icmp_of, ip_of

ROUTER = parse_ip("203.0.113.1")
LOCALHOST = parse_ip("127.0.0.1")
TARGET = (REMOTE, 33434)


def extended(number: int, origin: int, kind: int, code: int, info: int = 0, sender: bytes = ROUTER) -> bytes:
    """struct sock_extended_err and the sockaddr_in behind it, as linux/errqueue.h has them."""
    return (
        struct.pack("=IBBBBII", number, origin, kind, code, 0, info, 0) + struct.pack("=HH", 2, 0) + sender + bytes(8)
    )


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (extended(113, 2, 11, 0), HostError(TARGET, ROUTER, 11, 0, 0, 60, b"q")),
        (extended(111, 2, 3, 3), HostError(TARGET, ROUTER, 3, 3, 0, 60, b"q")),
        (extended(90, 2, 3, 4, 1400), HostError(TARGET, ROUTER, 3, 4, 1400, 60, b"q")),
        (extended(111, 2, 3, 3, 77), HostError(TARGET, ROUTER, 3, 3, 0, 60, b"q")),
        (extended(90, 1, 0, 0, 1280), None),  # the host's own, which `send` has raised
        (extended(111, 2, 4, 0), None),  # source quench
        (extended(71, 2, 12, 0), None),  # a parameter problem is ours
        (extended(0, 4, 0, 0), None),  # a transmit timestamp
        (extended(111, 2, 3, 3)[:15], None),
        (b"", None),
    ],
)
def test_decode(body: bytes, error: HostError | None) -> None:
    assert decode(body, TARGET, 60, b"q") == error


def udp_socket() -> HostSocket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return HostSocket(sock)


def closed_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def test_the_ttl_left_behind_one_more_hop() -> None:
    ours, theirs = udp_socket(), udp_socket()
    there = theirs.sock.getsockname()
    for ttl, left in ((64, 63), (64, 63), (9, 8), (1, 1), (255, 254)):
        ours.send(b"data", there, ttl, dont_fragment=True)
        assert theirs.receive() == (b"data", LOCALHOST, left)
    ours.close()
    theirs.close()


async def test_df_as_the_guest_has_it() -> None:
    ours, theirs = udp_socket(), udp_socket()
    for dont_fragment, mode in ((True, datagram_socket.PMTUDISC_PROBE), (False, datagram_socket.PMTUDISC_DONT)):
        ours.send(b"", theirs.sock.getsockname(), 64, dont_fragment=dont_fragment)
        assert ours.sock.getsockopt(socket.IPPROTO_IP, datagram_socket.IP_MTU_DISCOVER) == mode
    ours.close()
    theirs.close()


async def test_an_error_comes_with_its_sender_and_costs_no_datagram() -> None:
    ours, theirs = udp_socket(), udp_socket()
    port = closed_port()
    ours.send(b"to nobody", ("127.0.0.1", port), 64, dont_fragment=True)
    ours.send(b"to somebody", theirs.sock.getsockname(), 64, dont_fragment=True)  # the kernel reports the first here
    assert theirs.receive()[0] == b"to somebody"
    (error,) = ours.errors()
    assert error == HostError(
        (LOCALHOST, port), LOCALHOST, icmp.UNREACHABLE, icmp.UNREACHABLE_PORT, 0, 64, b"to nobody"
    )
    assert ours.errors() == []
    with pytest.raises(BlockingIOError):
        ours.receive()
    ours.close()
    theirs.close()


async def test_its_own_refusals_are_raised() -> None:
    ours = udp_socket()
    with pytest.raises(OSError, match="too long") as raised:
        ours.send(bytes(65_508), ("127.0.0.1", 9), 64, dont_fragment=True)
    assert raised.value.errno == errno.EMSGSIZE
    ours.close()


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENETUNREACH, icmp.UNREACHABLE_NET),
        (errno.EHOSTUNREACH, icmp.UNREACHABLE_HOST),
        (errno.EPERM, icmp.UNREACHABLE_ADMIN),
        (errno.ENOBUFS, None),
        (errno.EAGAIN, None),
    ],
)
def test_refusals(number: int, code: int | None) -> None:
    error = refusal_of(OSError(number, os.strerror(number)), TARGET)
    assert (error and (error.sender, error.type, error.code)) == (
        None if code is None else (None, icmp.UNREACHABLE, code)
    )


def test_too_big_for_the_hosts_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    too_big = OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
    monkeypatch.setattr(datagram_socket, "path_mtu", {REMOTE: 1280}.get)
    error = refusal_of(too_big, TARGET)
    assert error is not None
    assert error[1:5] == (None, icmp.UNREACHABLE, icmp.UNREACHABLE_FRAG_NEEDED, 1280)
    assert refusal_of(too_big, (LOCALHOST, 9)) is None  # there is no way


def test_the_path_mtu() -> None:
    assert datagram_socket.path_mtu(LOCALHOST) == 65_535  # RFC 791: no datagram is longer, whatever the interface takes
    assert datagram_socket.path_mtu(b"\xff" * 4) is None  # a broadcast: no permission


@pytest.mark.parametrize(
    ("sender", "seen"),
    [
        (ROUTER, ROUTER),
        (LOCALHOST, parse_ip("192.168.127.254")),  # the target of the packet: the guest knows it by another address
        (parse_ip("127.0.0.9"), None),
        (parse_ip("192.168.127.2"), None),  # a router of the outside with the guest's address
        (parse_ip("0.0.0.0"), None),
        (parse_ip("224.0.0.1"), None),
        (None, None),
    ],
)
async def test_whose_error_the_guest_sees(sender: bytes | None, seen: bytes | None, autojump_clock: MockClock) -> None:
    async with lone_driver() as driver:
        guest = driver.guest
        sent = guest.udp(guest.network.host_ip, b"data", 33434)
        error = HostError((LOCALHOST, 33434), sender, icmp.TIME_EXCEEDED, 0, 0, 60, b"")
        tell_guest(driver, error, sent[14:42], guest.mac, guest.port)
        (frame,) = await driver.frames()
        header, (message, quoted) = ip_of(frame), icmp_of(frame)
        assert header.source == (seen or guest.network.gateway_ip)
        assert (header.destination, header.ttl) == (guest.ip, 59)
        assert (message.type, message.code, quoted) == (icmp.TIME_EXCEEDED, 0, sent[14:42])


@pytest.mark.parametrize(
    ("address", "told"), [("169.254.1.1", True), ("192.168.127.255", False), ("224.0.0.251", False)]
)
async def test_denied_is_told_at_once_but_never_to_groups(address: str, told: bool, autojump_clock: MockClock) -> None:
    async with lone_driver() as driver:
        guest = driver.guest
        sent = guest.udp(parse_ip(address), b"data")
        verdict = may_dial(guest.network, parse_ip(address), 53)
        tell_denied(driver, verdict, sent[14:42], guest.mac, guest.port)
        codes = [(icmp_of(frame)[0].type, icmp_of(frame)[0].code) for frame in await driver.frames()]
        assert codes == [(icmp.UNREACHABLE, icmp.UNREACHABLE_ADMIN)] * told
