"""The state file's text: what is written is read back, and everything else is refused by name and without an exception."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sulla_trio.errors import ConfigError
from sulla_trio.services import state
from sulla_trio.services.leases import StoredLease
from sulla_trio.services.state import State, StoredForward

FORWARD = {"local": "127.0.0.1:8080", "remote": "192.168.127.2:80", "protocol": "tcp", "source": "api"}
LEASE = {"ip": "192.168.127.3", "mac": "02:00:00:00:00:01", "expires": 1_700_000_000}
VALUE = State(
    [StoredForward("127.0.0.1:8080", "192.168.127.2:80", "tcp", "api")],
    [StoredLease(bytes((192, 168, 127, 3)), b"\2\0\0\0\0\1", 1_700_000_000.0)],
)


def text(forwards: Any = (FORWARD,), leases: Any = (LEASE,), version: Any = 1, **more: Any) -> bytes:
    return json.dumps({"version": version, "forwards": forwards, "leases": leases, **more}).encode()


def test_the_file() -> None:
    assert json.loads(state.emit(VALUE)) == {"version": 1, "forwards": [FORWARD], "leases": [LEASE]}
    assert state.emit(VALUE).endswith(b"}\n")
    assert state.parse(text()) == VALUE
    assert state.parse(state.emit(VALUE)) == VALUE
    assert state.parse(state.emit(State())) == State([], [])


def test_a_range_of_ports_is_kept() -> None:
    forward = StoredForward("127.0.0.1:8000-8099", "192.168.127.2:8000-8099", "tcp", "api")
    assert state.parse(state.emit(State([forward]))).forwards == [forward]


def test_times_are_whole_seconds_within_bounds() -> None:
    ips = [bytes((10, 0, 0, last)) for last in range(1, 4)]
    times = [-5.0, 7.25, 1e300]
    leases = [StoredLease(ip, b"\2\0\0\0\0" + ip[3:], at) for ip, at in zip(ips, times, strict=True)]
    assert [lease.expires for lease in state.parse(state.emit(State((), leases))).leases] == [0.0, 8.0, state.MAX_UNIX]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "truncated"),
        (b"null", "Expected `object`, got `null`"),
        (b"\xff\xfe", "malformed"),
        (b"\0" * 4096, "malformed"),
        (text()[:-10], "truncated"),
        (text() + b"x", "malformed"),
        (b"[" * 200_000, "Expected `object`"),
        (b'{"version":1,"forwards":' + b"[" * 200_000, "recursion"),
        (b'{"version":1,"forwards":[],"leases":[{"ip":"' + b"\xff" + b'"}]}', ""),
        (b'{"version":' + b"9" * 10_000 + b"}", "out of range"),
        (text(version=2, forwards={}, sets=[]), "version 2 is newer than this host-switch's, which is 1"),
        (text(version=0), ">= 1"),
        (text(version=True), "Expected `int`, got `bool` - at `$.version`"),
        (text(version="1"), "Expected `int`, got `str` - at `$.version`"),
        (text(owners=[]), "unknown field `owners`"),
        (text(**{"x" * 10_000: 1}), "unknown field `xxx"),
        (text(forwards=None), "Expected `array`, got `null` - at `$.forwards`"),
        (text(forwards=[FORWARD, 7]), "`$.forwards[1]`"),
        (text(forwards=[FORWARD, FORWARD]), "the same again - at `$.forwards[1]`"),
        (text(leases=[LEASE, {**LEASE, "ip": "192.168.127.4"}]), "the same again - at `$.leases[1]`"),
        (text(leases=[LEASE, {**LEASE, "mac": "02:00:00:00:00:02"}]), "the same again - at `$.leases[1]`"),
        (b" " * (state.MAX_BYTES + 1), "longer than"),
    ],
    ids=lambda value: value[:24] if isinstance(value, bytes) else None,
)
def test_refused(data: bytes, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        state.parse(data)
    assert words in str(caught.value)
    assert len(str(caught.value)) <= 250


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("local", 80),
        ("local", None),
        ("local", "a" * 301),
        ("local", "127.0.0.1:80\nlevel=error"),
        ("remote", ""),
        ("remote", "192.168.127.2"),
        ("remote", "guest:80"),
        ("remote", "999.1.1.1:80"),
        ("remote", "192.168.127.2:65536"),
        ("remote", "192.168.127.2:-1"),
        ("remote", "192.168.127.2:000080"),
        ("remote", "192.168.127.2:80\n"),
        ("remote", "192.168.127.2:٨٠"),
        ("remote", "[::1]:80"),
        ("remote", "192.168.127.2:1-65536"),
        ("remote", "192.168.127.2:1-2-3"),
        ("remote", "192.168.127.2:-2"),
        ("protocol", "unix"),
        ("protocol", "TCP"),
        ("protocol", ""),
        ("source", "static"),
        ("source", ["api"]),
        ("owner", "x"),
    ],
)
def test_a_bad_forward_is_refused_by_its_place(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=r"\$\.forwards\[1\]"):
        state.parse(text(forwards=[FORWARD, {**FORWARD, "local": ":1", field: value}]))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ip", "192.168.127.300"),
        ("ip", "::1"),
        ("ip", 3232268035),
        ("mac", "02:00:00:00:00"),
        ("mac", "01:00:5e:00:00:01"),
        ("mac", "ff:ff:ff:ff:ff:ff"),
        ("mac", "00:00:00:00:00:00"),
        ("expires", -1),
        ("expires", 1.5),
        ("expires", "soon"),
        ("expires", 1 << 41),
        ("expires", True),
        ("name", "x"),
    ],
)
def test_a_bad_lease_is_refused_by_its_place(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=r"\$\.leases\[0\]"):
        state.parse(text(leases=[{**LEASE, field: value}]))


addresses = st.text(max_size=20) | st.sampled_from(
    ["", ":80", "localhost:80", "1.2.3.4:080000", "1.2.3.4:65536", "\ud800"]
)
forwards = st.builds(StoredForward, addresses, addresses, st.sampled_from(["tcp", "udp", "sctp"]), st.just("guest"))


@given(st.lists(forwards, unique_by=lambda one: (one.protocol, one.local)))
def test_no_forward_makes_the_file_unreadable(given: list[StoredForward]) -> None:
    kept = state.parse(state.emit(State(given))).forwards
    assert [one for one in given if one in kept] == kept


valid = st.builds(
    StoredForward,
    st.from_regex(r"\A(127\.0\.0\.[0-9]|\[::1\]|localhost|):[1-9][0-9]{0,3}\Z"),
    st.tuples(st.ip_addresses(v=4), st.integers(0, 65_535)).map(lambda pair: f"{pair[0]}:{pair[1]}"),
    st.sampled_from(state.PROTOCOLS),
    st.sampled_from(state.SOURCES),
)
leases = st.builds(
    StoredLease,
    st.binary(min_size=4, max_size=4),
    st.binary(min_size=5, max_size=5).map(lambda rest: b"\2" + rest),
    st.integers(0, 1 << 40).map(float),
)


@given(
    st.lists(valid, unique_by=lambda one: (one.protocol, one.local)),
    st.lists(leases, unique_by=(lambda one: one.ip, lambda one: one.mac)),
)
def test_round_trip(forwards: list[StoredForward], leases: list[StoredLease]) -> None:
    assert state.parse(state.emit(State(forwards, leases))) == (forwards, leases)


@given(st.binary(max_size=200) | st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["version", "forwards", "leases", "local", "ip"]), inner),
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_whatever_the_bytes_only_config_error(data: bytes) -> None:
    try:
        state.parse(data)
    except ConfigError:
        pass
