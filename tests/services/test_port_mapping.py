"""PortMapping messages: what the Go decoder takes and refuses, the bounds, and what each binding means."""

from __future__ import annotations

import json

import pytest

from sulla_trio.errors import ConfigError
from sulla_trio.services.gojson_scan import GoJsonError
from sulla_trio.services.port_mapping import (
    ANY4,
    ANY6,
    LOCALHOST4,
    LOCALHOST6,
    MAX_BINDINGS,
    MAX_MESSAGE,
    Binding,
    Listening,
    MappingReader,
    PortMapping,
    listenings,
)


def read(message: bytes) -> PortMapping:
    reader = MappingReader()
    return reader.feed(message) or reader.finish()


WEB = Binding("80", "tcp", "0.0.0.0", "8080")


@pytest.mark.parametrize(
    ("message", "remove", "bindings"),
    [
        (
            b'{"remove":false,"ports":{"80/tcp":[{"HostIp":"0.0.0.0","HostPort":"8080"}]},"connectAddrs":null}\n',
            False,
            [WEB],
        ),
        (b'{"remove":true,"ports":{"80/TCP":[{"HostIp":"0.0.0.0","HostPort":"8080"}]}}', True, [WEB]),
        (b'{"PORTS":{"80":[{"HOSTIP":"0.0.0.0","hostport":"8080","x":[1]}]},"y":{}}', False, [WEB]),
        (
            b'{"ports":{"443/tcp":[{"HostIp":"127.0.0.1","HostPort":"8443"}],"53/udp":[{},{"HostPort":"53"}]}}',
            False,
            [
                Binding("443", "tcp", "127.0.0.1", "8443"),
                Binding("53", "udp", "", ""),
                Binding("53", "udp", "", "53"),
            ],
        ),
        (b"null", False, []),
        (b"{}", False, []),
        (b'{"remove":null,"ports":null}', False, []),
        (b'{"ports":{"80/tcp":null}}', False, []),
        (b'{"ports":{"80/tcp":[null]}}', False, [Binding("80", "tcp", "", "")]),
        (b'{"ports":{"80/":[{}],"/udp":[{}],"1/sctp":[{}]}}', False,
         [Binding("80", "tcp", "", ""), Binding("", "udp", "", ""), Binding("1", "sctp", "", "")]),
        # Repeated fields: a map is filled on, a null empties it, of a repeated key the last counts.
        (b'{"ports":{"80":[{}]},"ports":{"81":[{"HostPort":"1"}],"81":[{"HostPort":"2"}]}}', False,
         [Binding("80", "tcp", "", ""), Binding("81", "tcp", "", "2")]),
        (b'{"ports":{"80":[{}]},"Ports":null,"remove":true,"remove":null}', True, []),
        (b'{"connectAddrs":[{"network":"tcp","addr":"x"}]}', False, []),
    ],
)  # fmt: skip
def test_taken(message: bytes, remove: bool, bindings: list[Binding]) -> None:
    assert read(message) == PortMapping(remove, tuple(bindings))


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (b"", "EOF"),
        (b'{"remove":', "unexpected EOF"),
        (b"x", "invalid character 'x' looking for beginning of value"),
        (b"[]", "json: cannot unmarshal array into Go value of type types.PortMapping"),
        (b'{"remove":"true"}', "json: cannot unmarshal string into Go struct field PortMapping.remove of type bool"),
        (b'{"ports":[]}', "json: cannot unmarshal array into Go struct field PortMapping.ports of type nat.PortMap"),
        (
            b'{"ports":{"80/tcp":{}}}',
            "json: cannot unmarshal object into Go struct field PortMapping.ports of type []nat.PortBinding",
        ),
        (
            b'{"ports":{"80/tcp":["8080"]}}',
            "json: cannot unmarshal string into Go struct field PortMapping.ports of type nat.PortBinding",
        ),
        (
            b'{"ports":{"80/tcp":[{"HostPort":8080}]}}',
            "json: cannot unmarshal number into Go struct field PortBinding.ports.HostPort of type string",
        ),
        (
            b'{"ports":{"80/tcp":[{"HostIp":true}]}}',
            "json: cannot unmarshal bool into Go struct field PortBinding.ports.HostIp of type string",
        ),
        (b'{"x":' * 10_000, "exceeded max depth"),
    ],
)
def test_refused(message: bytes, text: str) -> None:
    with pytest.raises(GoJsonError) as caught:
        read(message)
    assert str(caught.value) == text


def test_complete_at_its_last_byte_and_not_before() -> None:
    message = b'{"remove":true}'
    reader = MappingReader()
    for at in range(len(message) - 1):
        assert reader.feed(message[at : at + 1]) is None
    assert reader.feed(b"} and whatever follows") == PortMapping(True, ())


def test_size_is_bounded() -> None:
    def message(size: int) -> bytes:
        return b'{"x":"' + b"y" * (size - 8) + b'"}'

    assert read(message(MAX_MESSAGE)) == PortMapping(False, ())
    assert read(message(MAX_MESSAGE) + b" " * 100_000) == PortMapping(False, ())
    for large in (message(MAX_MESSAGE + 1), b" " * (MAX_MESSAGE + 1), b'"' + b"y" * MAX_MESSAGE):
        with pytest.raises(GoJsonError, match="larger than 65535 bytes"):
            read(large)
        reader = MappingReader()
        with pytest.raises(GoJsonError, match="larger than 65535 bytes"):
            for at in range(0, len(large), 4096):
                reader.feed(large[at : at + 4096])


def test_bindings_are_bounded() -> None:
    def message(count: int) -> bytes:
        return json.dumps({"ports": {"80/tcp": [{}] * (count - 1), "81/tcp": [{}]}}).encode()

    assert len(read(message(MAX_BINDINGS)).bindings) == MAX_BINDINGS
    with pytest.raises(GoJsonError, match="more than 2048 bindings"):
        read(message(MAX_BINDINGS + 1))


@pytest.mark.parametrize(
    ("host_ip", "expected"),
    [
        ("", [(LOCALHOST4, False), (LOCALHOST6, True)]),
        ("localhost", [(LOCALHOST4, False), (LOCALHOST6, True)]),
        ("127.0.0.1", [(LOCALHOST4, False)]),
        ("::1", [(LOCALHOST6, False)]),
        ("0.0.0.0", [(ANY4, False), (ANY6, True)]),
        ("::", [(ANY6, False)]),
        ("0:0:0:0:0:0:0:0", [(ANY6, False)]),
        ("::ffff:127.0.0.1", [(LOCALHOST4, False)]),
        ("192.0.2.7", [(bytes([192, 0, 2, 7]), False)]),
    ],
)
def test_host_ip(host_ip: str, expected: list[tuple[bytes, bool]]) -> None:
    found = listenings(Binding("80", "tcp", host_ip, "8080"))
    assert found == tuple(Listening(address, 8080, implied) for address, implied in expected)


@pytest.mark.parametrize(("text", "port"), [("1", 1), ("65535", 65_535), ("0080", 80), ("+443", 443)])
def test_ports(text: str, port: int) -> None:
    assert {one.port for one in listenings(Binding("80", "tcp", "0.0.0.0", text))} == {port}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "value is empty"),
        ("x", "invalid syntax"),
        ("80-90", "invalid syntax"),
        ("-+80", "invalid syntax"),
        ("80\n", "invalid syntax"),
        ("٣", "invalid syntax"),
        ("0", "value out of range (1\u201365535)"),
        ("-1", "value out of range (1\u201365535)"),
        ("65536", "value out of range (1\u201365535)"),
        ("9" * 5000, "value out of range (1\u201365535)"),
    ],
)
def test_bad_ports(text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        listenings(Binding("80", "tcp", "0.0.0.0", text))
    assert str(caught.value) == f"parsing port error: invalid port '{text}': {reason}"


@pytest.mark.parametrize("host_ip", ["example.com", "0.0.0.256", "[::1]", "fe80::1%lo", " 127.0.0.1"])
def test_no_addresses(host_ip: str) -> None:
    with pytest.raises(ConfigError) as caught:
        listenings(Binding("80", "tcp", host_ip, "8080"))
    text = f"failed creating listener for published port [8080]: listen tcp: lookup {host_ip}: no such host"
    assert str(caught.value) == text
