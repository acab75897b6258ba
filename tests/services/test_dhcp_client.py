"""The DHCP client's states on a virtual clock, against our own server and against nonsense."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sulla_trio.config import GUEST_MAC, format_ip, network_config
from sulla_trio.services.dhcp import ANY, DhcpServer
from sulla_trio.services.dhcp_client import ClientState, DhcpClient, LeaseAcquired, LeaseLost, read_lease
from sulla_trio.services.events import EventLog
from sulla_trio.services.leases import LeaseTable
from sulla_trio.wire import dhcp

NETWORK = network_config()


class Pair:
    """A client and the server, with the clock in between."""

    def __init__(self, vendor_class: bytes = b"") -> None:
        self.now = 100.0
        self.client = DhcpClient(GUEST_MAC, random.Random(1), self.now, vendor_class=vendor_class)
        self.restart_server()
        self.sent: list[dhcp.Dhcp] = []
        self.up = True

    def restart_server(self, subnet: str = "192.168.127.0/24") -> None:
        """A server that knows nobody, on `subnet`."""
        network = network_config(subnet)
        self.server = DhcpServer(network, LeaseTable(network), EventLog(lambda: 0.0))

    def exchange(self) -> None:
        while payloads := self.client.messages_to_send(self.now):
            for payload in payloads:
                request = dhcp.parse(payload)
                self.sent.append(request)
                reply = self.server.handle(request, request.ciaddr, self.now) if self.up else None
                if reply is not None:
                    self.client.receive(dhcp.emit(reply.message), self.now)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        self.exchange()
        while (due := self.client.poll_at()) is not None and due <= end:
            self.now = max(due, self.now)
            self.client.handle_timer(self.now)
            self.exchange()
        self.now = end

    def kinds(self) -> list[int | None]:
        return [message.message_type for message in self.sent]

    def answer(self, kind: int, ip: bytes = NETWORK.guest_ip, **options: bytes) -> None:
        values = {getattr(dhcp, name.upper()): value for name, value in options.items()}
        values = {dhcp.MESSAGE_TYPE: bytes((kind,)), dhcp.SUBNET_MASK: b"\xff\xff\xff\0"} | values
        values.setdefault(dhcp.SERVER_ID, NETWORK.gateway_ip)
        xid = self.sent[-1].xid
        message = dhcp.Dhcp(2, 1, 6, xid, 0, 0, ANY, ip, ANY, ANY, GUEST_MAC, values)
        self.client.receive(dhcp.emit(message), self.now)


def test_a_lease_in_one_exchange() -> None:
    pair = Pair()
    pair.exchange()
    lease = pair.client.next_event()
    assert isinstance(lease, LeaseAcquired)
    assert (format_ip(lease.ip), lease.prefix, lease.mtu, lease.lease_seconds) == ("192.168.127.2", 24, 1500, 3600)
    assert lease.router == lease.server == NETWORK.gateway_ip
    assert (lease.dns, lease.search) == ((NETWORK.gateway_ip,), ())
    assert pair.client.state is ClientState.BOUND
    assert pair.kinds() == [dhcp.DISCOVER, dhcp.REQUEST]
    assert pair.client.next_event() is None


def test_renewal_at_half_the_lease() -> None:
    pair = Pair()
    pair.run(1799)
    assert len(pair.sent) == 2
    pair.run(2)
    assert pair.kinds()[2:] == [dhcp.REQUEST]
    assert pair.sent[2].ciaddr == NETWORK.guest_ip
    assert pair.client.state is ClientState.BOUND


def test_the_vendor_class_is_sent_always() -> None:
    pair = Pair(b"sulla-vm-switch subnet=10.0.0.0/8")
    pair.run(1801)
    assert [message.options[dhcp.VENDOR_CLASS] for message in pair.sent] == [b"sulla-vm-switch subnet=10.0.0.0/8"] * 3
    plain = Pair()
    plain.exchange()
    assert not any(dhcp.VENDOR_CLASS in message.options for message in plain.sent)


def test_reconfirming_asks_at_once_and_keeps_the_lease() -> None:
    pair = Pair()
    pair.exchange()
    pair.client.next_event()
    pair.restart_server()
    pair.now += 60
    pair.client.reconfirm(pair.now)
    assert pair.client.state is ClientState.REBINDING
    pair.exchange()
    assert pair.kinds()[2:] == [dhcp.REQUEST]
    assert pair.sent[2].ciaddr == NETWORK.guest_ip
    assert pair.sent[2].xid != pair.sent[1].xid
    assert pair.client.state is ClientState.BOUND
    assert isinstance(pair.client.next_event(), LeaseAcquired)
    assert pair.client.poll_at() == pair.now + 1800


def test_a_reconfirmation_without_an_answer_is_soon_asked_again_and_never_loses_the_lease_early() -> None:
    pair = Pair()
    pair.exchange()
    pair.client.next_event()
    pair.up = False
    pair.client.reconfirm(pair.now)
    pair.run(4)
    assert pair.kinds()[2:] == [dhcp.REQUEST] * 4  # after 0, 0.5, 1.5, 3.5 s
    pair.run(3590)
    assert pair.client.next_event() is None
    assert len(pair.sent) < 260
    pair.run(10)
    assert pair.client.next_event() == LeaseLost("expired")


def test_a_reconfirmation_that_is_refused_is_a_new_lease() -> None:
    pair = Pair()
    pair.exchange()
    pair.client.next_event()
    pair.restart_server("10.1.2.0/24")
    pair.client.reconfirm(pair.now)
    pair.run(2)
    assert pair.client.next_event() == LeaseLost("refused by the server")
    lease = pair.client.next_event()
    assert isinstance(lease, LeaseAcquired)
    assert format_ip(lease.ip) == "10.1.2.2"


def test_reconfirming_without_a_lease_begins_at_once() -> None:
    pair = Pair()
    pair.up = False
    pair.run(100)
    pair.up = True
    asked = len(pair.sent)
    pair.client.reconfirm(pair.now)
    pair.exchange()
    assert pair.kinds()[asked:] == [dhcp.DISCOVER, dhcp.REQUEST]
    assert pair.client.state is ClientState.BOUND


def test_a_dead_server_is_renewing_rebinding_lost_and_searched_again() -> None:
    pair = Pair()
    pair.exchange()
    pair.client.next_event()
    pair.up = False
    pair.run(1801)
    assert pair.client.state is ClientState.RENEWING
    pair.run(1350)
    assert pair.client.state is ClientState.REBINDING
    pair.run(450)
    assert pair.client.next_event() == LeaseLost("expired")
    assert pair.client.state is ClientState.SELECTING
    assert len(pair.sent) < 40
    pair.up = True
    pair.run(20)
    assert pair.client.state is ClientState.BOUND


def test_discovery_backs_off_and_goes_on_for_ever() -> None:
    pair = Pair()
    pair.up = False
    pair.run(7 * 86400.0)
    assert 600_000 / 18 < len(pair.sent) < 605_000 / 14
    pair.up = True
    pair.run(20)
    assert pair.client.state is ClientState.BOUND


def test_a_clock_that_jumped_past_the_lease_loses_it() -> None:
    pair = Pair()
    pair.exchange()
    pair.client.next_event()
    pair.now += 1e6
    pair.client.handle_timer(pair.now)
    assert pair.client.next_event() == LeaseLost("expired")


def test_requests_without_an_answer_end_in_discovery() -> None:
    pair = Pair()
    pair.up = False
    pair.exchange()
    pair.answer(dhcp.OFFER)
    pair.run(60)
    assert pair.kinds()[1:5] == [dhcp.REQUEST] * 4
    assert pair.kinds()[5] == dhcp.DISCOVER


def test_a_server_that_always_refuses_is_asked_ever_more_slowly() -> None:
    pair = Pair()
    pair.up = False
    for _ in range(2000):
        pair.exchange()
        kind = {dhcp.DISCOVER: dhcp.OFFER, dhcp.REQUEST: dhcp.NAK}[pair.kinds()[-1] or 0]
        if pair.client.state is ClientState.INIT:
            due = pair.client.poll_at()
            assert due is not None
            if due > 400:
                break
            pair.now = due
            pair.client.handle_timer(due)
        else:
            pair.answer(kind)
    assert len(pair.sent) < 60
    assert pair.client.next_event() is None


def test_a_refused_renewal_loses_the_lease() -> None:
    pair = Pair()
    pair.exchange()
    pair.client.next_event()
    pair.up = False
    pair.run(1801)
    pair.answer(dhcp.NAK)
    assert isinstance(pair.client.next_event(), LeaseLost)
    pair.up = True
    pair.run(5)
    assert pair.client.state is ClientState.BOUND


@pytest.mark.parametrize(
    "options",
    [
        {"renewal_time": bytes(4), "rebinding_time": bytes(4)},
        {"renewal_time": b"\xff\xff\xff\xff"},
        {"lease_time": bytes(4)},
        {"lease_time": b"\0\0\0\1", "renewal_time": b"\0\0\0\1"},
    ],
)
def test_lying_times_make_no_busy_loop(options: dict[str, bytes]) -> None:
    pair = Pair()
    pair.up = False
    pair.exchange()
    pair.answer(dhcp.OFFER)
    pair.exchange()
    pair.answer(dhcp.ACK, **options)
    assert pair.client.state is ClientState.BOUND
    due = pair.client.poll_at()
    assert due is not None
    assert due >= pair.now + 30


def test_a_lease_for_ever_has_no_timer() -> None:
    pair = Pair()
    pair.up = False
    pair.exchange()
    pair.answer(dhcp.OFFER)
    pair.exchange()
    pair.answer(dhcp.ACK, lease_time=b"\xff\xff\xff\xff")
    assert (pair.client.state, pair.client.poll_at()) == (ClientState.BOUND, None)


@pytest.mark.parametrize(
    ("ip", "options"),
    [
        (bytes(4), {}),
        (b"\x7f\0\0\1", {}),
        (b"\xe0\0\0\1", {}),
        (NETWORK.guest_ip, {"subnet_mask": b"\xff\0\xff\0"}),
        (NETWORK.guest_ip, {"subnet_mask": bytes(4)}),
        (NETWORK.guest_ip, {"server_id": b"\1\2\3\4"}),
    ],
)
def test_an_ack_that_cannot_be_is_ignored(ip: bytes, options: dict[str, bytes]) -> None:
    pair = Pair()
    pair.up = False
    pair.exchange()
    pair.answer(dhcp.OFFER)
    pair.exchange()
    pair.answer(dhcp.ACK, ip, **options)
    assert pair.client.state is ClientState.REQUESTING


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        ({dhcp.INTERFACE_MTU: b"\0\x10"}, "mtu", None),
        ({dhcp.INTERFACE_MTU: b"\1"}, "mtu", None),
        ({dhcp.ROUTER: bytes(4)}, "router", None),
        ({dhcp.ROUTER: b"\1"}, "router", None),
        ({dhcp.DNS_SERVER: bytes(range(9))}, "dns", (bytes(range(4)), bytes(range(4, 8)))),
        ({dhcp.DOMAIN_SEARCH: b"\xc0\0"}, "search", ()),
        ({dhcp.DOMAIN_SEARCH: b"\1a\0\1b\xc0\0"}, "search", ("a", "b.a")),
        ({dhcp.LEASE_TIME: b"\1"}, "lease_seconds", 3600),
    ],
)
def test_options_that_are_nonsense_are_left_out(options: dict[int, bytes], field: str, value: object) -> None:
    base = {dhcp.SUBNET_MASK: b"\xff\xff\xff\0", dhcp.SERVER_ID: NETWORK.gateway_ip}
    message = dhcp.Dhcp(2, 1, 6, 1, 0, 0, ANY, NETWORK.guest_ip, ANY, ANY, GUEST_MAC, base | options)
    lease = read_lease(message)
    assert lease is not None
    assert getattr(lease, field) == value


@given(st.lists(st.binary(max_size=60), max_size=4))
def test_nothing_received_raises(tails: list[bytes]) -> None:
    pair = Pair()
    pair.up = False
    for kind, tail in enumerate(tails, 2):
        pair.exchange()
        head = dhcp.emit(dhcp.Dhcp(2, 1, 6, pair.sent[-1].xid, 0, 0, ANY, b"\n\0\0\1", ANY, ANY, GUEST_MAC, {}))[:240]
        pair.client.receive(head + bytes((53, 1, kind)) + tail + b"\xff", pair.now)
        pair.client.receive(tail, pair.now)
        due = pair.client.poll_at()
        assert due is None or due > pair.now
