"""Local zones and the decision about each query; resolv.conf."""

from __future__ import annotations

import re
import struct

import dnslib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sulla_trio.config import network_config, parse_ip
from sulla_trio.services import dns
from sulla_trio.services.dns import Answer, Forward, Ignore, Record, Zone, Zones, parse_resolv_conf

V6 = bytes.fromhex("fd000000000000000000000000000001")
ONE, TWO = parse_ip("10.0.0.1"), parse_ip("10.0.0.2")


def query(name: str, qtype: str = "A", qclass: str = "IN") -> bytes:
    return bytes(dnslib.DNSRecord.question(name, qtype, qclass).pack())


def outcome(zones: Zones, name: str, qtype: str = "A") -> str:
    """``10.0.0.1``, ``NODATA``, ``NXDOMAIN``... or ``forward``."""
    decision = zones.decide(query(name, qtype))
    if isinstance(decision, Forward):
        return "forward"
    assert isinstance(decision, Answer)
    answer = dnslib.DNSRecord.parse(decision.message)
    if answer.rr:
        return " ".join(str(rr.rdata) for rr in answer.rr)
    rcode = str(dnslib.RCODE.get(answer.header.rcode))
    return "NODATA" if rcode == "NOERROR" else rcode


@pytest.mark.parametrize("zone", ["rancher-desktop", "docker", "sulla-desktop", "containers"])
def test_the_built_in_zones(zone: str) -> None:
    zones = Zones.built_in(network_config())
    assert outcome(zones, f"gateway.{zone}.internal") == "192.168.127.1"
    assert outcome(zones, f"host.{zone}.internal") == "192.168.127.254"
    assert outcome(zones, f"HOST.{zone.upper()}.Internal") == "192.168.127.254"
    assert outcome(zones, f"nothing.{zone}.internal") == "NXDOMAIN"


PLAIN = Zones([Zone("zone.test.", (Record("a", ONE), Record("six", V6), Record("x.deep", TWO), Record("a", TWO)))])
DEFAULT = Zones([Zone("zone.test.", (Record("a", ONE),), TWO)])


@pytest.mark.parametrize(
    ("zones", "name", "a", "aaaa", "mx"),
    [
        (PLAIN, "a.zone.test", "10.0.0.1", "NODATA", "NODATA"),
        (PLAIN, "six.zone.test", "NODATA", "fd00::1", "NODATA"),
        (PLAIN, "x.deep.zone.test", "10.0.0.2", "NODATA", "NODATA"),
        (PLAIN, "deep.zone.test", "NODATA", "NODATA", "forward"),
        (PLAIN, "zone.test", "NODATA", "NODATA", "forward"),
        (PLAIN, "b.zone.test", "NXDOMAIN", "NXDOMAIN", "forward"),
        (PLAIN, "a.a.zone.test", "NXDOMAIN", "NXDOMAIN", "forward"),
        (PLAIN, "azone.test", "forward", "NODATA", "forward"),
        (PLAIN, "test", "forward", "NODATA", "forward"),
        (DEFAULT, "a.zone.test", "10.0.0.1", "NODATA", "NODATA"),
        (DEFAULT, "b.zone.test", "10.0.0.2", "NODATA", "forward"),
        (DEFAULT, "zone.test", "10.0.0.2", "NODATA", "forward"),
    ],
)
def test_the_table(zones: Zones, name: str, a: str, aaaa: str, mx: str) -> None:
    assert (outcome(zones, name), outcome(zones, name, "AAAA"), outcome(zones, name, "MX")) == (a, aaaa, mx)


def test_aaaa_outside_the_zones_is_forwarded_once_there_is_ipv6() -> None:
    assert outcome(Zones(ipv6=True), "example.com", "AAAA") == "forward"


def test_the_first_zone_that_holds_the_name_decides() -> None:
    zones = Zones([Zone("test.", (), ONE), Zone("zone.test.", (Record("a", TWO),))])
    assert outcome(zones, "a.zone.test") == "10.0.0.1"


@pytest.mark.parametrize("name", ["", "."])
def test_a_zone_for_every_name(name: str) -> None:
    zones = Zones([Zone(name, (), ONE)])
    assert [outcome(zones, host) for host in ("example.com", "x")] == ["10.0.0.1", "10.0.0.1"]
    assert outcome(zones, ".", "NS") == "forward"
    assert outcome(zones, "example.com", "MX") == "forward"


def test_expressions_are_unanchored_and_come_after_names() -> None:
    zones = Zones([Zone("t.", (Record("", TWO, re.compile("ab+")), Record("xabx", ONE)))])
    assert [outcome(zones, f"{name}.t") for name in ("xabx", "yabby", "a.abb", "b")] == [
        "10.0.0.1", "10.0.0.2", "10.0.0.2", "NXDOMAIN",
    ]  # fmt: skip


def test_a_dot_inside_a_label_is_not_a_separator() -> None:
    message = struct.pack("!6H", 1, 0, 1, 0, 0, 0) + b"\6a.zone\4test\0\0\1\0\1"
    assert isinstance(PLAIN.decide(message), Forward)


def test_add_merges_as_gvproxy_does() -> None:
    zones = Zones([Zone("a.", (Record("x", ONE),), ONE), Zone("b.")])
    zones.add(Zone("a.", (Record("y", TWO),)))
    zones.add(Zone("c."))
    assert zones.all() == (Zone("a.", (Record("y", TWO), Record("x", ONE)), None), Zone("b."), Zone("c."))
    assert outcome(zones, "y.a") == "10.0.0.2"


def test_another_class_is_forwarded() -> None:
    assert isinstance(PLAIN.decide(query("a.zone.test", "TXT", "CH")), Forward)


def test_what_is_forwarded_is_the_guests_own_message() -> None:
    message = query("example.com", "TYPE65")
    assert PLAIN.decide(message) == Forward(message)


def test_what_is_no_query() -> None:
    assert PLAIN.decide(b"short") == Ignore("dns_short")
    assert PLAIN.decide(b"\0\0\x80" + bytes(20)) == Ignore("dns_response")


@pytest.mark.parametrize(
    ("message", "rcode"),
    [
        (b"\0\1\x28\0" + bytes(8), "NOTIMP"),
        (b"\0\1\0\0" + bytes(8), "FORMERR"),
        (b"\0\1\0\0\0\2" + bytes(6), "FORMERR"),
        (b"\0\1\0\0\0\1" + bytes(6) + b"\xc0\x0c\0\1\0\1", "FORMERR"),
    ],
)
def test_bad_queries_are_told_so(message: bytes, rcode: str) -> None:
    decision = PLAIN.decide(message)
    assert isinstance(decision, Answer)
    assert (dns.rcode_text(decision.message), decision.message[:2]) == (rcode, b"\0\1")


def test_an_unknown_edns_version_is_badvers() -> None:
    record = dnslib.DNSRecord.question("a.zone.test")
    record.add_ar(dnslib.EDNS0(version=1, udp_len=1232))
    decision = PLAIN.decide(record.pack())
    assert isinstance(decision, Answer)
    assert dnslib.DNSRecord.parse(decision.message).ar[0].edns_rcode == 1


@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda tail: b"\0\1\1\0\0\1\0\0\0\0\0\1" + tail))
def test_no_message_raises(message: bytes) -> None:
    decision = PLAIN.decide(message)
    if isinstance(decision, Answer):
        assert decision.message[:2] == message[:2]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ([], [])),
        ("nameserver 1.1.1.1\nnameserver\t::1\n", (["1.1.1.1", "::1"], [])),
        ("nameserver fe80::1%eth0", (["fe80::1%eth0"], [])),
        ("# nameserver 1.1.1.1\n;nameserver 2.2.2.2\n#\n", ([], [])),
        ("nameserver nonsense\nnameserver\nnameserver 9.9.9.9 # ours", (["9.9.9.9"], [])),
        ("search a.test  b.test\nsearch c.test\td.test", ([], ["c.test", "d.test"])),
        ("search a.test\ndomain b.test c.test", ([], ["b.test"])),
        ("".join(f"nameserver 10.0.0.{n}\n" for n in range(5)), (["10.0.0.0", "10.0.0.1", "10.0.0.2"], [])),
        ("options ndots:5\n  nameserver 1.1.1.1\r\n", (["1.1.1.1"], [])),
    ],
)
def test_resolv_conf(text: str, expected: tuple[list[str], list[str]]) -> None:
    assert parse_resolv_conf(text) == expected


@given(st.text())
def test_resolv_conf_never_raises(text: str) -> None:
    parse_resolv_conf(text)
