"""The DNS codec: dnslib is the oracle for what we write, hypothesis for what we survive."""

from __future__ import annotations

import struct

import dnslib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sulla_trio.errors import BadPacket
from sulla_trio.services import dns_message as dns


def query(name: str = "Example.COM", qtype: str = "A", *, size: int | None = None, **header: int) -> bytes:
    record = dnslib.DNSRecord.question(name, qtype)
    record.header.id = 0x1234
    for key, value in header.items():
        setattr(record.header, key, value)
    if size is not None:
        record.add_ar(dnslib.EDNS0(udp_len=size, flags="do"))
    return bytes(record.pack())


def test_parse_agrees_with_dnslib() -> None:
    parsed = dns.parse(query("a.Example.COM", "AAAA", size=4096))
    assert parsed.id == 0x1234
    assert parsed.question == dns.Question((b"a", b"Example", b"COM"), dns.TYPE_AAAA, dns.CLASS_IN)
    assert parsed.question.key == (b"a", b"example", b"com")
    assert (parsed.edns_size, parsed.edns_version, parsed.dnssec_ok) == (4096, 0, True)
    assert dns.parse(query()).edns_size is None


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"", "dns_short"),
        (query()[:11], "dns_short"),
        (query()[:-1], "dns_short"),
        (query()[:14], "dns_short"),
        (struct.pack("!6H", 1, 0, 0, 0, 0, 0), "dns_counts"),
        (struct.pack("!6H", 1, 0, 2, 0, 0, 0), "dns_counts"),
        (struct.pack("!6H", 1, 0, 1, 2, 0, 0), "dns_counts"),
        (struct.pack("!6H", 1, 0, 1, 0, 0, 3), "dns_counts"),
        (struct.pack("!6H", 1, 0, 1, 0, 0, 0) + b"\xc0\x0c\0\1\0\1", "dns_name"),  # a pointer to itself
        (struct.pack("!6H", 1, 0, 1, 0, 0, 0) + b"\x40" + bytes(70), "dns_name"),
        (struct.pack("!6H", 1, 0, 1, 0, 0, 0) + (b"\x3f" + b"a" * 63) * 4 + b"\0\0\1\0\1", "dns_name"),
        (query(size=512)[:-1], "dns_record"),
    ],
)
def test_parse_refuses(message: bytes, reason: str) -> None:
    with pytest.raises(BadPacket) as caught:
        dns.parse(message)
    assert caught.value.reason == reason


def test_two_opts_are_refused() -> None:
    message = bytearray(query(size=512))
    opt = message[-11:]
    message[11] = 2
    with pytest.raises(BadPacket, match="dns_opt"):
        dns.parse(bytes(message + opt))


def test_reply_with_an_address_is_what_dnslib_reads() -> None:
    sent = query(size=1400, rd=1, cd=1)
    answer = dnslib.DNSRecord.parse(dns.reply(sent, dns.NOERROR, [bytes([10, 0, 0, 1])]))
    header = answer.header
    assert (header.id, header.qr, header.rd, header.ra, header.cd, header.aa, header.rcode) == (
        0x1234,
        1,
        1,
        1,
        1,
        0,
        0,
    )
    assert str(answer.q.qname) == "Example.COM."
    assert [(str(rr.rname), rr.rtype, rr.ttl, str(rr.rdata)) for rr in answer.rr] == [
        ("Example.COM.", 1, 0, "10.0.0.1")
    ]
    assert [(rr.rtype, rr.edns_len, rr.edns_do) for rr in answer.ar] == [(41, 1232, 1)]


@pytest.mark.parametrize("rcode", [dns.FORMERR, dns.SERVFAIL, dns.NXDOMAIN, dns.NOTIMP])
@pytest.mark.parametrize("size", [None, 1232])
def test_errors_keep_the_question_and_have_an_opt_if_asked(rcode: int, size: int | None) -> None:
    answer = dnslib.DNSRecord.parse(dns.reply(query(size=size), rcode))
    assert (answer.header.rcode, len(answer.rr), len(answer.ar)) == (rcode, 0, 0 if size is None else 1)
    assert str(answer.q.qname) == "Example.COM."


def test_a_query_that_does_not_parse_gets_a_header() -> None:
    assert dns.reply(b"\x12\x34\x01\x00" + bytes(8), dns.FORMERR) == b"\x12\x34\x81\x81" + bytes(8)


def test_badvers_is_in_the_opt() -> None:
    answer = dnslib.DNSRecord.parse(dns.reply(query(size=512), dns.BADVERS))
    assert (answer.header.rcode, answer.ar[0].edns_rcode) == (0, 1)


@pytest.mark.parametrize(("size", "limit"), [(None, 512), (100, 512), (512, 512), (1232, 1232), (65535, 65507)])
def test_fit_udp_cuts_above_the_queriers_limit(size: int | None, limit: int) -> None:
    sent = query(size=size)
    whole = dns.reply(sent, dns.NOERROR).ljust(limit, b"\0")
    assert dns.fit_udp(whole, sent) is whole
    cut = dnslib.DNSRecord.parse(dns.fit_udp(whole + b"\0", sent))
    assert (cut.header.tc, cut.header.id, str(cut.q.qname)) == (1, 0x1234, "Example.COM.")
    assert (len(cut.rr), len(cut.ar)) == (0, 0 if size is None else 1)


def test_matches() -> None:
    sent = query("name.example", "TYPE65")
    good = dns.reply(sent, dns.NOERROR)
    assert dns.matches(sent, good)
    assert dns.matches(sent, good.replace(b"name", b"NaMe"))
    assert dns.matches(sent, sent[:2] + b"\x81\x82" + bytes(8))  # SERVFAIL by header alone
    for bad in (
        sent,  # not a response
        b"",
        good[:11],
        dns.rewrite_id(good, 1),
        good.replace(b"name", b"mane"),
        good[:-4] + b"\0\x61\0\1",  # type 97 is 65 in lower case
        sent[:2] + b"\x81\x80" + bytes(8),  # NOERROR without a question
        sent[:2] + b"\xa9\x80" + good[4:],  # another opcode
    ):
        assert not dns.matches(sent, bad), bad


def test_texts() -> None:
    assert dns.question_text(query("www.Example.com", "HTTPS")) == "www.Example.com. HTTPS"
    assert dns.question_text(query("x", "TYPE999")) == "x. TYPE999"
    assert dns.question_text(b"?") == "?"
    assert dns.rcode_text(dns.servfail(query())) == "SERVFAIL"
    assert dns.rcode_text(b"") == "?"
    weird = struct.pack("!6H", 1, 0, 1, 0, 0, 0) + b'\4a."\xff\0\0\1\0\1'
    assert dns.question_text(weird) == 'a\\.\\"\\255. A'
    assert dns.Question((), 1, 1).name == "."
    assert dns.question_of(b"") is None


@given(st.binary(max_size=80), st.integers(0, 65535))
def test_rewrite_id_changes_the_id_only(tail: bytes, identifier: int) -> None:
    message = dns.rewrite_id(b"\0\0" + tail, identifier)
    assert (int.from_bytes(message[:2], "big"), message[2:]) == (identifier, tail)


@given(st.binary(min_size=12, max_size=300), st.integers(0, 30))
def test_replies_to_anything_parse(message: bytes, rcode: int) -> None:
    answer = dns.reply(message, rcode)
    assert answer[:2] == message[:2]
    assert answer[2] & 0x80
    assert dns.fit_udp(answer, message)[:2] == message[:2]
    if dns.question_of(message) is not None:
        assert dns.matches(message, answer)
