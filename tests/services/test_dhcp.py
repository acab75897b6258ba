"""The DHCP server by request; scapy reads what it sends, and our own client gets a lease from it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dhcp import BOOTP, DHCP

from sulla_trio.config import GATEWAY_MAC, GUEST_MAC, NetworkConfig, format_ip, network_config, parse_ip
from sulla_trio.errors import BadPacket
from sulla_trio.services import dhcp as dhcp_server
from sulla_trio.services.dhcp import ANY, BROADCAST, DhcpServer, Reply
from sulla_trio.services.events import EventLog
from sulla_trio.services.leases import LeaseTable
from sulla_trio.wire import dhcp

NETWORK = network_config()
GATEWAY = NETWORK.gateway_ip
MAC = bytes.fromhex("020000000001")


class Lab:
    def __init__(self, network: NetworkConfig = NETWORK) -> None:
        self.events = EventLog(lambda: 0.0)
        self.leases = LeaseTable(network)
        self.server = DhcpServer(network, self.leases, self.events)

    def send(
        self, kind: int, mac: bytes = MAC, *, ciaddr: bytes = ANY, source: bytes = ANY, now: float = 0.0,
        op: int = 1, htype: int = 1, **options: bytes,
    ) -> Reply | None:  # fmt: skip
        values = {getattr(dhcp, name.upper()): value for name, value in options.items()}
        values[dhcp.MESSAGE_TYPE] = bytes((kind,))
        message = dhcp.Dhcp(op, htype, len(mac), 0xABCD, 3, 0, ciaddr, ANY, ANY, ANY, mac, values)
        return self.server.handle(message, source, now)

    def lease(self, mac: bytes = MAC, now: float = 0.0) -> bytes:
        offer = self.send(dhcp.DISCOVER, mac, now=now)
        assert offer is not None
        ip = offer.message.yiaddr
        ack = self.send(dhcp.REQUEST, mac, now=now, requested_ip=ip, server_id=GATEWAY)
        assert kind_of(ack) == dhcp.ACK
        return ip

    def types(self) -> list[str]:
        return [event["type"] for event in self.events.since(0)]


def kind_of(reply: Reply | None) -> int | None:
    return None if reply is None else reply.message.message_type


def test_an_offer_as_gvproxy_sends_it() -> None:
    reply = Lab().send(dhcp.DISCOVER, GUEST_MAC, client_id=b"\1" + GUEST_MAC, relay_agent=b"relay")
    assert reply is not None
    message = reply.message
    assert (message.op, message.xid, message.secs, message.siaddr) == (2, 0xABCD, 0, ANY)
    assert format_ip(message.yiaddr) == "192.168.127.2"
    assert (reply.destination_ip, reply.destination_port) == (BROADCAST, 68)
    assert list(message.options) == [1, 3, 6, 26, 51, 53, 54, 58, 59, 61, 119, 82]
    assert message.options[dhcp.INTERFACE_MTU] == b"\x05\xdc"
    assert message.options[dhcp.DOMAIN_SEARCH] == b""


def test_scapy_reads_the_offer() -> None:
    reply = Lab(replace(NETWORK, search_domains=("corp.example",))).send(dhcp.DISCOVER)
    assert reply is not None
    packet = BOOTP(dhcp.emit(reply.message))
    options = {option[0]: option[1] for option in packet[DHCP].options if isinstance(option, tuple)}
    assert (packet.yiaddr, options["subnet_mask"], options["router"]) == (
        "192.168.127.3", "255.255.255.0", "192.168.127.1",
    )  # fmt: skip
    assert (options["lease_time"], options["renewal_time"], options["rebinding_time"]) == (3600, 1800, 3150)
    assert (options["server_id"], options["message-type"]) == ("192.168.127.1", 2)


def test_discover_request_ack_renew() -> None:
    lab = Lab()
    ip = lab.lease()
    renewed = lab.send(dhcp.REQUEST, ciaddr=ip, source=ip, now=1800.0)
    assert renewed is not None
    assert (kind_of(renewed), renewed.destination_ip, renewed.message.ciaddr) == (dhcp.ACK, ip, ip)
    assert lab.types() == ["lease.acquired", "lease.renewed"]
    assert lab.leases.lookup(MAC, 5000.0) is not None


def test_a_request_for_another_servers_offer_is_left_alone() -> None:
    lab = Lab()
    lab.send(dhcp.DISCOVER)
    assert lab.send(dhcp.REQUEST, requested_ip=parse_ip("10.0.0.9"), server_id=parse_ip("10.0.0.1")) is None
    assert lab.leases.lookup(MAC, 0.0) is None


@pytest.mark.parametrize("wanted", ["10.9.9.9", "192.168.127.1", "192.168.127.254", "192.168.127.255", "192.168.127.2"])
def test_an_address_it_cannot_have_is_refused_aloud(wanted: str) -> None:
    lab = Lab()
    nak = lab.send(dhcp.REQUEST, requested_ip=parse_ip(wanted))
    assert nak is not None
    assert (kind_of(nak), nak.destination_ip, nak.message.yiaddr) == (dhcp.NAK, BROADCAST, ANY)
    assert set(nak.message.options) == {dhcp.MESSAGE_TYPE, dhcp.SERVER_ID}
    assert lab.types() == ["lease.refused"]


def test_somebody_elses_address_is_refused() -> None:
    lab = Lab()
    ip = lab.lease()
    other = bytes.fromhex("020000000002")
    assert kind_of(lab.send(dhcp.REQUEST, other, requested_ip=ip)) == dhcp.NAK


def test_a_client_of_before_our_restart_keeps_its_address() -> None:
    lab, ip = Lab(), parse_ip("192.168.127.77")
    assert kind_of(lab.send(dhcp.REQUEST, ciaddr=ip, source=ip)) == dhcp.ACK
    assert lab.leases.all(0.0)["192.168.127.77"] == "02:00:00:00:00:01"


def test_release_and_decline_are_silent_and_do_what_they_say() -> None:
    lab = Lab()
    ip = lab.lease()
    assert lab.send(dhcp.RELEASE, ciaddr=ip) is None
    assert lab.leases.lookup(MAC, 0.0) is None
    assert lab.lease() == ip
    assert lab.send(dhcp.DECLINE, requested_ip=ip) is None
    assert lab.lease() != ip
    assert lab.types()[1::2] == ["lease.released", "lease.declined"]


def test_inform_has_everything_but_a_lease() -> None:
    ip = parse_ip("192.168.127.50")
    reply = Lab().send(dhcp.INFORM, ciaddr=ip, source=ip)
    assert reply is not None
    assert (kind_of(reply), reply.message.yiaddr, reply.destination_ip) == (dhcp.ACK, ANY, ip)
    assert list(reply.message.options) == [1, 3, 6, 26, 53, 54, 119]


def test_exhausted_is_silence_and_one_event() -> None:
    lab = Lab(network_config("192.168.127.0/24"))
    for number in range(251):
        lab.lease(b"\x02\0\0\0\1" + bytes((number,)))
    assert [lab.send(dhcp.DISCOVER, now=1.0), lab.send(dhcp.DISCOVER, now=2.0)] == [None, None]
    assert lab.types().count("lease.exhausted") == 1
    assert kind_of(lab.send(dhcp.DISCOVER, now=4000.0)) == dhcp.OFFER


def test_a_guest_of_another_subnet_is_told_of_once_and_served() -> None:
    lab = Lab()
    for text in ("10.1.0.0/16", "10.1.2.77/16", "192.168.127.0/24", "10.2.0.0/16", "192.168.0.0/16"):
        value = b"sulla-vm-switch subnet=" + text.encode()
        for kind in (dhcp.DISCOVER, dhcp.REQUEST):
            reply = lab.send(kind, vendor_class=value, requested_ip=parse_ip("192.168.127.3"))
            assert reply is not None
            assert format_ip(reply.message.yiaddr) == "192.168.127.3"
    told = [event for event in lab.events.since(0) if event["type"] == "lease.subnet_mismatch"]
    assert [event["guest_subnet"] for event in told] == ["10.1.0.0/16", "10.2.0.0/16", "192.168.0.0/16"]
    assert {(event["mac"], event["subnet"], event["flag"]) for event in told} == {
        ("02:00:00:00:00:01", "192.168.127.0/24", "-subnet")
    }


@pytest.mark.parametrize(
    "value",
    [
        b"", b"udhcp 1.35.0", b"sulla-vm-switch", b"sulla-vm-switch subnet=", b"sulla-vm-switch subnet=10.0.0.0",
        b"sulla-vm-switch subnet=10.0.0.0/33", b"sulla-vm-switch subnet=256.0.0.0/8", b"sulla-vm-switch subnet=fd00::/64",
        b"sulla-vm-switch subnet=10.0.0.0/8\n", b"sulla-vm-switch subnet=10.0.0.0/8 x", b"Sulla-vm-switch subnet=10.0.0.0/8",
        b"sulla-vm-switch subnet=\xd9\xa1.0.0.0/8", b"sulla-vm-switch subnet=10.0.0.0/8" + bytes(300),
    ],
)  # fmt: skip
def test_another_vendor_class_says_nothing(value: bytes) -> None:
    lab = Lab()
    assert kind_of(lab.send(dhcp.DISCOVER, vendor_class=value)) == dhcp.OFFER
    assert lab.types() == []


def test_a_flood_of_other_subnets_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dhcp_server, "MAX_TOLD", 4)
    lab = Lab()
    for number in (0, 1, 2, 3, 4, 4, 0):
        lab.send(dhcp.DISCOVER, vendor_class=b"sulla-vm-switch subnet=10.%d.0.0/16" % number)
    assert lab.types().count("lease.subnet_mismatch") == 6  # the first was forgotten, and told again
    assert len(lab.server._told_mismatch) == 4


@pytest.mark.parametrize(
    "changes",
    [{"op": 2}, {"htype": 6}, {"mac": b"\1\2\3"}, {"mac": bytes(6)}, {"mac": b"\xff" * 6}, {"mac": GATEWAY_MAC}],
)
def test_who_is_not_answered(changes: dict[str, object]) -> None:
    assert Lab().send(dhcp.DISCOVER, **changes) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [0, dhcp.OFFER, dhcp.ACK, dhcp.NAK, 9, 255])
def test_other_messages_give_no_lease(kind: int) -> None:
    lab = Lab()
    assert lab.send(kind) is None
    assert lab.leases.lookup(MAC, 0.0) is None


@pytest.mark.parametrize(("size", "limit"), [(b"", 576), (b"\x02\x00", 576), (b"\x04\x00", 1024), (b"\xff\xff", 1500)])
def test_a_long_search_list_is_cut_to_what_the_client_takes(size: bytes, limit: int) -> None:
    names = tuple(f"department-{number}.very-long-name-of-a-company.example" for number in range(40))
    reply = Lab(replace(NETWORK, search_domains=names)).send(dhcp.DISCOVER, max_message_size=size)
    assert reply is not None
    assert len(dhcp.emit(reply.message)) + 28 <= limit
    kept = dhcp.parse_search(reply.message.options[dhcp.DOMAIN_SEARCH])
    assert kept == names[: len(kept)]
    assert len(kept) >= 3


def test_sixty_search_domains_fit_what_an_ethernet_client_takes() -> None:
    names = tuple(f"department-{number}.company.example" for number in range(60))
    reply = Lab(replace(NETWORK, search_domains=names)).send(dhcp.DISCOVER, max_message_size=(1500).to_bytes(2, "big"))
    assert reply is not None
    message = dhcp.emit(reply.message)
    assert len(message) + 28 <= 1500
    # RFC 3396: one value in several options, each at most 255 bytes, to be joined before it is read.
    value, at, lengths = b"", 240, []
    while message[at] != dhcp.END:
        code, length = message[at], message[at + 1]
        if code == dhcp.DOMAIN_SEARCH:
            lengths.append(length)
            value += message[at + 2 : at + 2 + length]
        at += 2 + length
    assert len(lengths) > 1
    assert set(lengths[:-1]) == {255}
    assert dhcp.parse_search(value) == names


def test_a_search_list_is_compressed_only_when_it_must_be() -> None:
    few = tuple(f"d{number}.example" for number in range(10))
    plain = Lab(replace(NETWORK, search_domains=few)).send(dhcp.DISCOVER)
    many = tuple(f"d{number}.example" for number in range(40))
    tight = Lab(replace(NETWORK, search_domains=many)).send(dhcp.DISCOVER)
    assert plain is not None
    assert tight is not None
    assert plain.message.options[dhcp.DOMAIN_SEARCH] == dhcp.emit_search(few)
    assert tight.message.options[dhcp.DOMAIN_SEARCH] == dhcp.emit_search(many, compress=True)


def test_the_search_list_of_the_moment() -> None:
    lab = Lab()
    names: list[str] = []
    lab.server = DhcpServer(NETWORK, lab.leases, lab.events, search_domains=lambda: tuple(names))
    for name in ("before.example", "vpn.example"):
        names[:] = [name]
        reply = lab.send(dhcp.DISCOVER)
        assert reply is not None
        assert dhcp.parse_search(reply.message.options[dhcp.DOMAIN_SEARCH]) == (name,)


@pytest.mark.parametrize("kind", [dhcp.RELEASE, dhcp.DECLINE])
def test_what_another_server_gave_is_not_ours_to_take_back(kind: int) -> None:
    lab = Lab()
    ip = lab.lease()
    other = parse_ip("192.168.127.9")
    assert lab.send(kind, ciaddr=ip, requested_ip=ip, server_id=other) is None
    assert lab.leases.lookup(MAC, 0.0) is not None
    assert lab.send(kind, ciaddr=ip, requested_ip=ip, server_id=GATEWAY) is None
    assert lab.leases.lookup(MAC, 0.0) is None


@given(st.binary(max_size=120), st.sampled_from([1, 3, 4, 7, 8]))
def test_no_request_raises(options: bytes, kind: int) -> None:
    fixed = bytes((1, 1, 6, 0)) + bytes(24) + MAC + bytes(10 + 192) + bytes((99, 130, 83, 99, 53, 1, kind))
    try:
        request = dhcp.parse(fixed + options + b"\xff")
    except BadPacket:
        return
    reply = Lab().server.handle(request, ANY, 0.0)
    if reply is not None:
        assert dhcp.parse(dhcp.emit(reply.message)).xid == request.xid
