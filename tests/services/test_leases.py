"""The lease table: who gets what, for how long, and what is never given."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sulla_trio.config import GUEST_MAC, NetworkConfig, format_ip, network_config, parse_ip
from sulla_trio.services.leases import DECLINED_SECONDS, OFFER_SECONDS, Lease, LeaseTable, StoredLease

NETWORK = network_config()


def mac(number: int) -> bytes:
    return b"\x02" + number.to_bytes(5, "big")


def small(prefix: int = 29) -> NetworkConfig:
    """10.0.0.0/29: .1 gateway, .2 guest, .6 alias; .3, .4 and .5 are the pool."""
    subnet = IPv4Network(f"10.0.0.0/{prefix}")
    ips = (parse_ip("10.0.0.1"), parse_ip("10.0.0.2"), parse_ip("10.0.0.6"))
    return NetworkConfig(subnet, *ips)


def take(table: LeaseTable, number: int, now: float = 0.0) -> str:
    lease = table.offer(mac(number), now)
    assert lease is not None
    table.bind(lease, now)
    return format_ip(lease.ip)


def test_lowest_first_and_stable() -> None:
    table = LeaseTable(NETWORK)
    assert [take(table, number) for number in (1, 2, 1, 3)] == [f"192.168.127.{last}" for last in (3, 4, 3, 5)]


def test_the_guest_has_its_static_lease_for_ever() -> None:
    table = LeaseTable(NETWORK)
    lease = table.offer(GUEST_MAC, 0.0)
    assert lease is not None
    assert (format_ip(lease.ip), lease.live(1e12)) == ("192.168.127.2", True)
    assert not table.release(GUEST_MAC, lease.ip, 0.0)
    assert not table.decline(GUEST_MAC, lease.ip, 0.0)
    assert table.lookup(GUEST_MAC, 1e12) is lease


def test_the_pool_is_the_whole_prefix_less_what_is_never_given() -> None:
    table = LeaseTable(NETWORK)
    given = [take(table, number) for number in range(251)]
    assert given == [f"192.168.127.{last}" for last in range(3, 254)]
    assert table.offer(mac(999), 0.0) is None
    wide = LeaseTable(network_config("10.1.2.77/16"))
    assert take(wide, 1) == "10.1.0.1"


def test_all_is_what_gvproxy_shows() -> None:
    table = LeaseTable(NETWORK)
    take(table, 1)
    table.offer(mac(2), 0.0)
    assert table.all(0.0) == {
        "192.168.127.1": "5a:94:ef:e4:0c:dd",
        "192.168.127.2": "5a:94:ef:e4:0c:ee",
        "192.168.127.3": "02:00:00:00:00:01",
    }
    assert "192.168.127.3" not in table.all(3600.0)
    assert "192.168.127.3" in table.all()


def test_an_expired_address_goes_to_another_only_when_no_fresh_one_is_left() -> None:
    table = LeaseTable(small())
    assert [take(table, 1, 0.0), take(table, 2, 1.0)] == ["10.0.0.3", "10.0.0.4"]
    assert take(table, 3, 5000.0) == "10.0.0.5"
    assert take(table, 4, 5000.0) == "10.0.0.3"  # the longest expired
    assert take(table, 1, 5000.0) == "10.0.0.4"
    assert table.offer(mac(2), 5000.0) is None


def test_an_expired_lease_is_given_back_to_its_mac() -> None:
    table = LeaseTable(small())
    take(table, 1)
    assert table.lookup(mac(1), 4000.0) is None
    assert take(table, 2, 4000.0) == "10.0.0.4"
    assert take(table, 1, 4000.0) == "10.0.0.3"


def test_an_offer_ends_and_a_full_pool_recovers() -> None:
    table = LeaseTable(small())
    for number in (1, 2, 3):
        table.offer(mac(number), 0.0)
    assert table.offer(mac(4), 1.0) is None
    assert table.offer(mac(4), OFFER_SECONDS) is not None


def test_a_full_pool_recovers_by_release_and_by_a_withdrawn_offer() -> None:
    table = LeaseTable(small())
    take(table, 1)
    take(table, 2)
    table.offer(mac(3), 0.0)
    assert table.offer(mac(4), 0.0) is None
    table.withdraw(mac(3))
    assert take(table, 4) == "10.0.0.5"
    assert table.release(mac(1), parse_ip("10.0.0.3"), 0.0)
    assert take(table, 5) == "10.0.0.3"


def test_a_bound_lease_is_not_withdrawn_or_released_by_another() -> None:
    table = LeaseTable(small())
    take(table, 1)
    table.withdraw(mac(1))
    assert not table.release(mac(2), parse_ip("10.0.0.3"), 0.0)
    assert table.lookup(mac(1), 0.0) is not None


def test_a_requested_address_is_had_if_free() -> None:
    table = LeaseTable(NETWORK)
    wanted = table.offer(mac(1), 0.0, parse_ip("192.168.127.99"))
    other = table.offer(mac(2), 0.0, parse_ip("192.168.127.99"))
    assert wanted is not None
    assert other is not None
    assert (format_ip(wanted.ip), format_ip(other.ip)) == ("192.168.127.99", "192.168.127.3")


@pytest.mark.parametrize("last", [0, 1, 2, 254, 255])
def test_reserved_addresses_are_not_had_by_asking(last: int) -> None:
    lease = LeaseTable(NETWORK).offer(mac(1), 0.0, bytes([192, 168, 127, last]))
    assert lease is not None
    assert format_ip(lease.ip) == "192.168.127.3"


def test_a_declined_address_rests() -> None:
    table = LeaseTable(small())
    take(table, 1)
    assert table.decline(mac(1), parse_ip("10.0.0.3"), 0.0)
    assert take(table, 1) == "10.0.0.4"
    assert take(table, 2) == "10.0.0.5"
    assert table.offer(mac(3), DECLINED_SECONDS - 1) is None
    assert take(table, 3, DECLINED_SECONDS) == "10.0.0.3"


def test_the_table_is_bounded_whatever_the_prefix() -> None:
    table = LeaseTable(network_config("10.0.0.0/8"), max_leases=4)
    offers = [table.offer(mac(number), 0.0) for number in range(6)]
    assert [offer is not None for offer in offers] == [True] * 4 + [False] * 2
    assert table.offer(mac(5), OFFER_SECONDS, parse_ip("10.77.0.1")) is not None


def test_the_configured_static_leases() -> None:
    table = LeaseTable(replace(NETWORK, static_leases=((mac(1), parse_ip("192.168.127.3")),)))
    assert [take(table, number) for number in (2, 1)] == ["192.168.127.4", "192.168.127.3"]
    assert take(table, 3) == "192.168.127.5"
    moved = LeaseTable(replace(NETWORK, static_leases=((GUEST_MAC, parse_ip("192.168.127.9")),)))
    assert "192.168.127.2" not in moved.all(0.0)
    assert take(moved, 1) == "192.168.127.2"


def test_a_removed_lease_is_forgotten_and_its_address_given_again() -> None:
    table = LeaseTable(small())
    assert [take(table, number) for number in (1, 2)] == ["10.0.0.3", "10.0.0.4"]
    assert table.remove(parse_ip("10.0.0.3")) == mac(1)
    assert table.remove(parse_ip("10.0.0.3")) is None
    assert table.remove(parse_ip("10.0.0.2")) is None  # static
    assert table.lookup(mac(1), 0.0) is None
    assert [take(table, number) for number in (3, 1)] == ["10.0.0.3", "10.0.0.5"]
    assert table.remove(parse_ip("10.0.0.4")) == mac(2)
    assert take(table, 4) == "10.0.0.4"


def test_a_restart_keeps_who_has_what() -> None:
    before = LeaseTable(small())
    assert [take(before, number, 100.0) for number in (1, 2)] == ["10.0.0.3", "10.0.0.4"]
    stored = before.snapshot(unix=1000.0)
    assert stored == [
        StoredLease(parse_ip("10.0.0.3"), mac(1), 4700.0),
        StoredLease(parse_ip("10.0.0.4"), mac(2), 4700.0),
    ]
    after = LeaseTable(small())
    assert after.restore(stored, unix=4000.0, now=5.0) == 2
    assert take(after, 3, 5.0) == "10.0.0.5"
    held = after.lookup(mac(2), 5.0)
    assert held is not None
    assert (format_ip(held.ip), held.bound, held.expires) == ("10.0.0.4", True, 700.0)
    assert after.snapshot(unix=4000.0)[:2] == stored


def test_an_expired_lease_and_a_released_one_are_remembered_for_their_macs() -> None:
    before = LeaseTable(small())
    take(before, 1, 0.0)
    take(before, 2, 0.0)
    assert before.release(mac(2), parse_ip("10.0.0.4"), 1.0)
    after = LeaseTable(small())
    assert after.restore(before.snapshot(unix=0.0), unix=9000.0, now=0.0) == 2
    assert list(after.all(0.0)) == ["10.0.0.1", "10.0.0.2"]
    assert [take(after, number) for number in (2, 1)] == ["10.0.0.4", "10.0.0.3"]


def test_an_offer_that_nobody_took_is_not_kept() -> None:
    table = LeaseTable(small())
    table.offer(mac(1), 0.0)
    assert table.snapshot(unix=0.0) == []
    take(table, 1)
    table.offer(mac(1), 4000.0)  # expired, offered again, not taken this time
    assert len(table.snapshot(unix=0.0)) == 1


@pytest.mark.parametrize(
    "ip", ["10.0.0.0", "10.0.0.1", "10.0.0.2", "10.0.0.6", "10.0.0.7", "10.0.0.9", "192.168.127.3"]
)
def test_a_restored_lease_cannot_take_what_is_never_given(ip: str) -> None:
    table = LeaseTable(small())
    assert table.restore([StoredLease(parse_ip(ip), mac(1), 1e9)], unix=0.0, now=0.0) == 0
    assert take(table, 1) == "10.0.0.3"


def test_a_restored_lease_takes_from_nobody_and_lasts_no_longer_than_a_new_one() -> None:
    table = LeaseTable(small())
    take(table, 1)
    three, four, five = (parse_ip(f"10.0.0.{last}") for last in (3, 4, 5))
    leases = [
        StoredLease(three, mac(2), 1e9),  # its address is somebody's
        StoredLease(four, mac(1), 1e9),  # its MAC has one
        StoredLease(four, GUEST_MAC, 1e9),  # static
        StoredLease(five, mac(3), 1e9),
        StoredLease(five, mac(4), 1e9),
    ]
    assert table.restore(leases, unix=0.0, now=50.0) == 1
    held = table.lookup(mac(3), 50.0)
    assert held is not None
    assert (held.ip, held.expires) == (five, 3650.0)


def test_restoring_is_bounded() -> None:
    table = LeaseTable(network_config("10.0.0.0/8"), max_leases=4)
    leases = [StoredLease(bytes((10, 1, 0, last)), mac(last), 1e9) for last in range(1, 9)]
    assert table.restore(leases, unix=0.0, now=0.0) == 4


class Leases(RuleBasedStateMachine):
    """Whatever clients do, no address has two live holders and nothing reserved is given."""

    def __init__(self) -> None:
        super().__init__()
        self.table = LeaseTable(small())
        self.now = 0.0

    macs = st.integers(0, 6).map(mac)
    ips = st.integers(0, 9).map(lambda last: bytes([10, 0, 0, last]))

    @rule(mac=macs, ip=st.none() | ips, bind=st.booleans())
    def offer(self, mac: bytes, ip: bytes | None, bind: bool) -> None:
        held = self.table.lookup(mac, self.now)
        lease = self.table.offer(mac, self.now, ip)
        assert held is None or lease is held
        if lease is not None:
            assert lease.live(self.now)
            assert 3 <= lease.ip[3] <= 5
            if bind:
                self.table.bind(lease, self.now)

    @rule(mac=macs, ip=ips)
    def release(self, mac: bytes, ip: bytes) -> None:
        self.table.release(mac, ip, self.now)

    @rule(mac=macs, ip=ips)
    def decline(self, mac: bytes, ip: bytes) -> None:
        self.table.decline(mac, ip, self.now)

    @rule(mac=macs)
    def withdraw(self, mac: bytes) -> None:
        self.table.withdraw(mac)

    @rule(seconds=st.sampled_from([1.0, 61.0, 3601.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(seconds=st.sampled_from([0.0, 61.0, 3601.0]), forward=st.sampled_from([-1e6, 0.0, 1e6]))
    def restart(self, seconds: float, forward: float) -> None:
        stored = self.table.snapshot(unix=1e9 - self.now)
        held = {one.mac: self.table.lookup(one.mac, self.now) for one in stored}
        self.table = LeaseTable(small())
        assert self.table.restore(stored, unix=1e9 + seconds - forward, now=forward) == len(stored)
        self.now = forward
        for client, before in held.items():
            after = self.table.lookup(client, self.now)
            if seconds == 0.0:
                assert (after is None) == (before is None)
            assert after is None or (before is not None and after.ip == before.ip)

    @invariant()
    def one_holder_each(self) -> None:
        leases = [self.table.lookup(mac(number), self.now) for number in range(7)]
        ips = [lease.ip for lease in leases if isinstance(lease, Lease)]
        assert len(ips) == len(set(ips)) <= 3


TestLeases = Leases.TestCase
TestLeases.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_static_leases_can_be_others() -> None:
    network = replace(NETWORK, guest_mac=mac(9))
    table = LeaseTable(network, static={mac(1): parse_ip("192.168.127.77")})
    assert take(table, 1) == "192.168.127.77"
    assert take(table, 2) == "192.168.127.2"
