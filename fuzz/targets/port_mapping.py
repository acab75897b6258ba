"""A PortMapping is the same, or refused in the same words, whole and byte by byte; bindings are bounded, none raises."""

from __future__ import annotations

from sulla_trio.errors import ConfigError
from sulla_trio.services.gojson_scan import GoJsonError
from sulla_trio.services.port_mapping import MAX_BINDINGS, MappingReader, PortMapping, listenings

DICTIONARY = (
    b'"remove":true', b'"ports":{', b'"80/tcp":[', b'{"HostIp":"0.0.0.0","HostPort":"8080"}', b"null", b'"\\ud800"',
    b'"HOSTPORT":', b"[[[[[[[[", b"1e999", b'"::"', b"\xff",
)  # fmt: skip


def feed(chunks: list[bytes]) -> PortMapping | str:
    reader = MappingReader()
    try:
        for chunk in chunks:
            mapping = reader.feed(chunk)
            if mapping is not None:
                return mapping
        return reader.finish()
    except GoJsonError as error:
        return str(error)


def fuzz_one(data: bytes) -> None:
    whole = feed([data])
    assert feed([data[at : at + 1] for at in range(len(data))]) == whole
    assert feed([data[at : at + 7] for at in range(0, len(data), 7)]) == whole
    if isinstance(whole, str):
        assert whole
        return
    assert len(whole.bindings) <= MAX_BINDINGS
    for binding in whole.bindings:
        assert binding.protocol
        assert "".join(binding).encode()
        assert binding.protocol == binding.protocol.lower()
        try:
            found = listenings(binding)
        except ConfigError:
            continue
        assert all(1 <= one.port <= 65_535 and len(one.address) in (4, 16) for one in found)
        assert [one.implied for one in found] in ([False], [False, True])
