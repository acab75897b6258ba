"""HELLO, WELCOME and SWITCHED: both ways, later versions, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sulla_trio.errors import BadPacket
from sulla_trio.wire import control, ethernet
from sulla_trio.wire.control import Hello, Switched, Welcome

NONCE = bytes(range(16))
BOOT = bytes.fromhex("0f" * 16)
NONCE_HEX = NONCE.hex()
TABLE = [
    (
        f"534c4c41 01 01 {NONCE_HEX} 0000002b {'0f' * 16}",
        Hello(1, NONCE, 0x2B, BOOT),
        f"link HELLO version 1 nonce 0001.., capabilities 0x2b, boot {'0f' * 16}",
    ),
    (
        f"534c4c41 01 02 {NONCE_HEX} 0000000b 00000007 c0a87f00 18 05dc",
        Welcome(1, NONCE, 0x0B, 7, bytes((192, 168, 127, 0)), 24, 1500),
        "link WELCOME version 1 nonce 0001.., capabilities 0x0b, link 7, 192.168.127.0/24, mtu 1500",
    ),
    (f"534c4c41 01 03 {NONCE_HEX}", Switched(1, NONCE), "link SWITCHED version 1 nonce 0001.."),
    (f"534c4c41 ff 03 {NONCE_HEX}", Switched(255, NONCE), "link SWITCHED version 255 nonce 0001.."),
]


@pytest.mark.parametrize(("wire", "value", "line"), TABLE)
def test_both_ways(wire: str, value: control.Message, line: str) -> None:
    data = bytes.fromhex(wire)
    assert control.parse(data) == value
    assert control.parse(memoryview(data + b"of a later version")) == value
    assert control.emit(value) == data
    assert control.format(value) == line
    frame = ethernet.emit(bytes(6), bytes(6), ethernet.ETHERTYPE_CONTROL) + data
    assert control.is_control(frame)
    assert control.is_control(memoryview(frame))
    assert ethernet.format(frame) == line


@pytest.mark.parametrize(
    ("wire", "reason"),
    [
        ("", "control_short"),
        (TABLE[2][0][:-2], "control_short"),
        (TABLE[0][0][:-2], "control_short"),
        (TABLE[1][0][:-2], "control_short"),
        (f"534c4c42 01 03 {NONCE_HEX}", "control_magic"),
        (f"534c4c41 00 03 {NONCE_HEX}", "control_version"),
        (f"534c4c41 01 00 {NONCE_HEX}", "control_kind"),
        (f"534c4c41 01 04 {NONCE_HEX}", "control_kind"),
        (f"534c4c41 01 02 {NONCE_HEX} 0000000b 00000007 c0a87f01 18 05dc", "control_subnet"),
        (f"534c4c41 01 02 {NONCE_HEX} 0000000b 00000007 c0a87f00 00 05dc", "control_subnet"),
        (f"534c4c41 01 02 {NONCE_HEX} 0000000b 00000007 c0a87f00 1f 05dc", "control_subnet"),
        (f"534c4c41 01 02 {NONCE_HEX} 0000000b 00000007 c0a87f00 18 023f", "control_mtu"),
        (f"534c4c41 01 02 {NONCE_HEX} 0000000b 00000007 c0a87f00 18 fff1", "control_mtu"),
    ],
)
def test_bad_packets(wire: str, reason: str) -> None:
    with pytest.raises(BadPacket, match=f"^{reason}$"):
        control.parse(bytes.fromhex(wire))


def test_what_is_no_control_frame() -> None:
    assert not control.is_control(bytes(12) + b"\x08\x00")
    assert not control.is_control(b"\x88\xb5")


NONCES = st.binary(min_size=16, max_size=16)
MESSAGES = st.one_of(
    st.builds(Hello, st.integers(1, 255), NONCES, st.integers(0, 2**32 - 1), NONCES),
    st.builds(
        lambda version, nonce, capabilities, link, prefix, bits, mtu: Welcome(
            version, nonce, capabilities, link, (bits >> (32 - prefix) << (32 - prefix)).to_bytes(4, "big"), prefix, mtu
        ),
        st.integers(1, 255),
        NONCES,
        st.integers(0, 2**32 - 1),
        st.integers(0, 2**32 - 1),
        st.integers(1, 30),
        st.integers(0, 2**32 - 1),
        st.integers(576, 65_520),
    ),
    st.builds(Switched, st.integers(1, 255), NONCES),
)


@settings(deadline=None)
@given(MESSAGES, st.binary(max_size=40))
def test_round_trip(message: control.Message, later: bytes) -> None:
    assert control.parse(control.emit(message) + later) == message


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_message_or_bad(data: bytes) -> None:
    for payload in (data, control.MAGIC + data):
        try:
            message = control.parse(payload)
        except BadPacket:
            continue
        assert payload.startswith(control.emit(message))
        assert control.format(message).isprintable()
