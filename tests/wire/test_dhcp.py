"""DHCP messages, both ways, and against scapy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dhcp import BOOTP, DHCP

from sulla_trio.config import format_ip
from sulla_trio.errors import BadPacket
from sulla_trio.wire import dhcp

MAC = bytes.fromhex("5a94efe40cee")
ANY = bytes(4)
IP_1, IP_2 = bytes((192, 168, 127, 1)), bytes((192, 168, 127, 2))
COOKIE = bytes.fromhex("63825363")
FIXED = bytes.fromhex("01010600 deadbeef 0003 8000") + bytes(16) + MAC + bytes(10 + 64 + 128) + COOKIE
DISCOVER = dhcp.Dhcp(
    1, 1, 6, 0xDEADBEEF, 3, 0x8000, ANY, ANY, ANY, ANY, MAC, {dhcp.MESSAGE_TYPE: b"\1", dhcp.PARAMETER_LIST: b"\1\3"}
)
IPS = st.binary(min_size=4, max_size=4)
OPTIONS = st.dictionaries(
    st.integers(1, 254).filter(lambda code: code != dhcp.OVERLOAD),
    st.binary(max_size=20) | st.binary(min_size=250, max_size=600),
    max_size=6,
)
MESSAGES = st.binary(max_size=16).flatmap(
    lambda chaddr: st.builds(
        dhcp.Dhcp,
        st.integers(0, 255),
        st.integers(0, 255),
        st.just(len(chaddr)),
        st.integers(0, 0xFFFFFFFF),
        st.integers(0, 0xFFFF),
        st.integers(0, 0xFFFF),
        IPS,
        IPS,
        IPS,
        IPS,
        st.just(chaddr),
        OPTIONS,
    )
)


def with_options(text: str, *, sname: bytes = b"", file: bytes = b"") -> bytes:
    return FIXED[:44] + sname.ljust(64, b"\0") + file.ljust(128, b"\0") + COOKIE + bytes.fromhex(text)


def test_both_ways() -> None:
    wire = with_options("350101 37020103 ff").ljust(300, b"\0")
    assert dhcp.parse(memoryview(wire)) == DISCOVER
    assert dhcp.emit(DISCOVER) == wire
    assert dhcp.format(DISCOVER) == "BOOTP/DHCP, Request from 5a:94:ef:e4:0c:ee, Discover, xid 0xdeadbeef"


@pytest.mark.parametrize(
    ("wire", "options"),
    [
        (with_options("ff"), {}),
        (with_options("000000 350101 00 ff"), {53: b"\1"}),
        (with_options("350101 ff 0c0161"), {53: b"\1"}),  # nothing counts behind the end
        (with_options("7700 ff"), {119: b""}),
        (with_options("0c0161 350101 0c0162 ff"), {12: b"ab", 53: b"\1"}),  # RFC 3396
        (with_options("340101 0c0161 ff", file=b"\x0c\1b\xff"), {12: b"ab"}),
        (with_options("340102 0c0161 ff", sname=b"\x0c\1c\xff"), {12: b"ac"}),
        (with_options("340103 0c0161 ff", sname=b"\x0c\1c\xff", file=b"\x0c\1b\xff"), {12: b"abc"}),
        (with_options("340100 0c0161 ff", file=b"\x0c\1b\xff"), {12: b"a"}),
        (with_options("340101 ff", file=b"\x34\1\3\xff"), {}),  # an overload in an overload is not obeyed
    ],
)
def test_options(wire: bytes, options: dict[int, bytes]) -> None:
    message = dhcp.parse(wire)
    assert message.options == options
    assert list(message.options) == list(options)


@pytest.mark.parametrize(
    ("wire", "reason"),
    [
        (b"", "dhcp_short"),
        (FIXED[:239], "dhcp_short"),
        (FIXED[:236] + b"\0\0\0\0\xff", "dhcp_cookie"),
        (FIXED[:2] + b"\x11" + FIXED[3:] + b"\xff", "dhcp_hlen"),
        (FIXED, "dhcp_end"),
        (with_options("350101"), "dhcp_end"),
        (with_options("35"), "dhcp_option"),
        (with_options("3502 01"), "dhcp_option"),
        (with_options("340101 ff"), "dhcp_end"),  # the overloaded field is all pad
        (with_options("340101 ff", file=bytes((12, 255))), "dhcp_option"),
    ],
)
def test_bad_messages(wire: bytes, reason: str) -> None:
    with pytest.raises(BadPacket, match=f"^{reason}$"):
        dhcp.parse(wire)


@pytest.mark.parametrize(
    ("value", "expected"), [({}, None), ({53: b""}, None), ({53: b"\1\1"}, None), ({53: b"\5"}, 5)]
)
def test_message_type(value: dict[int, bytes], expected: int | None) -> None:
    assert DISCOVER._replace(options=value).message_type == expected


@pytest.mark.parametrize(
    ("length", "pieces"), [(0, [0]), (255, [255]), (256, [255, 1]), (510, [255, 255]), (600, [255, 255, 90])]
)
def test_long_values_are_split(length: int, pieces: list[int]) -> None:
    wire = dhcp.emit(DISCOVER._replace(options={119: bytes(length)}))
    expected = b"".join(bytes((119, piece)) + bytes(piece) for piece in pieces) + b"\xff"
    assert wire[240 : 240 + len(expected)] == expected
    assert len(wire) == max(300, 240 + len(expected))


@given(MESSAGES)
def test_round_trip(message: dhcp.Dhcp) -> None:
    wire = dhcp.emit(message)
    assert len(wire) >= dhcp.MIN_LENGTH
    assert dhcp.parse(wire) == message
    assert list(dhcp.parse(wire).options) == list(message.options)
    assert "\n" not in dhcp.format(message)


@given(st.integers(0, 0xFFFFFFFF), IPS, IPS, st.integers(1, 0xFFFFFFFF))
def test_scapy_agrees(xid: int, yours: bytes, server: bytes, lease: int) -> None:
    options = {
        dhcp.SUBNET_MASK: bytes((255, 255, 255, 0)),
        dhcp.ROUTER: server,
        dhcp.LEASE_TIME: lease.to_bytes(4, "big"),
        dhcp.MESSAGE_TYPE: bytes((dhcp.ACK,)),
        dhcp.SERVER_ID: server,
    }
    message = dhcp.Dhcp(dhcp.BOOTREPLY, 1, 6, xid, 0, 0x8000, ANY, yours, ANY, ANY, MAC, options)
    theirs = BOOTP(op=2, xid=xid, flags="B", yiaddr=format_ip(yours), chaddr=MAC.ljust(16, b"\0")) / DHCP(
        options=[
            ("subnet_mask", "255.255.255.0"),
            ("router", format_ip(server)),
            ("lease_time", lease),
            ("message-type", "ack"),
            ("server_id", format_ip(server)),
            "end",
        ]
    )
    assert dhcp.emit(message) == bytes(theirs).ljust(300, b"\0")
    assert dhcp.parse(bytes(theirs)) == message


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("", ()),
        (
            "03656e67 056170706c65 03636f6d 00 096d61726b6574696e67 c004",
            ("eng.apple.com", "marketing.apple.com"),
        ),  # RFC 3397 section 2
        ("016100 c000 c000", ("a", "a", "a")),
        ("016100 0162c000 0163c003", ("a", "b.a", "c.b.a")),
        ("026131015f00", ("a1._",)),
    ],
)
def test_parse_search(value: str, names: tuple[str, ...]) -> None:
    assert dhcp.parse_search(bytes.fromhex(value)) == names


@pytest.mark.parametrize(
    "value",
    [
        "00",
        "01",
        "0161",
        "016101",
        "c000",
        "0161c000",
        "c002c000",
        "c0",
        "016100c005",
        "4161" + "61" * 64 + "00",
        "010a00",
        "012000",
        "01e900",
        "022e6100",
    ]
    + ["3f" + "61" * 63] * 1
    + [("3f" + "61" * 63) * 4 + "00"],
)
def test_bad_search_lists(value: str) -> None:
    with pytest.raises(BadPacket, match=r"^dhcp_search$"):
        dhcp.parse_search(bytes.fromhex(value))


def test_search_lists_are_bounded() -> None:
    assert len(dhcp.parse_search(b"\1a\0" + b"\xc0\0" * 1000)) == dhcp.MAX_SEARCH_NAMES
    assert len(dhcp.emit_search(("a",) * 1000)) == 3 * dhcp.MAX_SEARCH_NAMES


@pytest.mark.parametrize(
    "name", ["", ".", "a..b", ".a", "x" * 64, ".".join(["x" * 63] * 4), "a b", "a\nb", "é", "\ud800"]
)
def test_names_dns_cannot_carry_are_left_out(name: str) -> None:
    assert dhcp.emit_search(("a", name, "b.")) == b"\1a\0\1b\0"


def test_a_compressed_search_list() -> None:
    names = ("eng.example.com", "example.com", "sales.example.com", "eng.example.com", "org")
    value = dhcp.emit_search(names, compress=True)
    assert value == b"\3eng\7example\3com\0\xc0\4\5sales\xc0\4\xc0\0\3org\0"
    assert dhcp.parse_search(value) == names


def test_the_first_name_without_room_ends_the_list() -> None:
    names = ("a", "example.com", "b")
    assert [dhcp.emit_search(names, room=room) for room in (0, 2, 3, 15, 16, 19)] == [
        b"", b"", b"\1a\0", b"\1a\0", b"\1a\0\7example\3com\0", b"\1a\0\7example\3com\0\1b\0"
    ]  # fmt: skip


labels = st.from_regex(r"[A-Za-z0-9_-]{1,20}", fullmatch=True) | st.sampled_from(["corp", "example", "com"])
search_lists = st.lists(st.lists(labels, min_size=1, max_size=5).map(".".join), max_size=70)


@given(search_lists, st.booleans(), st.integers(0, 2000))
def test_search_round_trip(names: list[str], compress: bool, room: int) -> None:
    whole = dhcp.emit_search(tuple(names), compress=compress)
    assert dhcp.parse_search(whole) == tuple(names[: dhcp.MAX_SEARCH_NAMES])
    cut = dhcp.emit_search(tuple(names), compress=compress, room=room)
    assert len(cut) <= room
    assert whole.startswith(cut)
    kept = dhcp.parse_search(cut)
    assert kept == tuple(names[: len(kept)])


def test_format_names_the_addresses() -> None:
    message = DISCOVER._replace(op=2, yiaddr=IP_2, giaddr=IP_1, options={53: b"\2", 50: IP_2})
    assert dhcp.format(message) == (
        "BOOTP/DHCP, Reply from 5a:94:ef:e4:0c:ee, Offer, xid 0xdeadbeef, "
        "your 192.168.127.2, relay 192.168.127.1, wants 192.168.127.2"
    )
    odd = DISCOVER._replace(op=9, chaddr=b"\1\2", hlen=2, options={})
    assert dhcp.format(odd) == "BOOTP/DHCP, op 9 from 01:02, ?, xid 0xdeadbeef"
