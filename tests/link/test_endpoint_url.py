"""Endpoint URLs: every form, every bad form, ports and GUIDs."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sulla_trio.errors import ConfigError
from sulla_trio.link.endpoint_url import FORMS, parse_endpoint, port_of_service, service_of_port

VM = "2f3a9b1c-77aa-4e0d-9c55-0123456789ab"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("fd://5", ("fd", "", 5)),
        ("fd://0", ("fd", "", 0)),
        ("unix:///run/x.sock", ("unix", "/run/x.sock", 0)),
        ("unix:///run/a b#c?d%20:7", ("unix", "/run/a b#c?d%20:7", 0)),
        ("tcp://127.0.0.1:80", ("tcp", "127.0.0.1", 80)),
        ("tcp://LocalHost:0", ("tcp", "localhost", 0)),
        ("tcp://[::1]:80", ("tcp", "::1", 80)),
        ("vsock://2:6656", ("vsock", "2", 6656)),
        ("vsock://007:1", ("vsock", "7", 1)),
        ("vsock://4294967294:4294967294", ("vsock", "4294967294", 4294967294)),
        ("vsock://ANY:6656", ("vsock", "ANY", 6656)),
        (f"hyperv://{VM.upper()}:6669", ("hyperv", VM, 6669)),
        ("vsock+unix:///run/fc.sock:6669", ("vsock+unix", "/run/fc.sock", 6669)),
        ("vsock+unix:///run/a:b:6669", ("vsock+unix", "/run/a:b", 6669)),
    ],
)
def test_parse(url: str, expected: tuple[str, str, int]) -> None:
    assert parse_endpoint(url) == (*expected, url)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("vsock://3", "vsock://3:6669"),
        ("vsock://ANY", "vsock://ANY:6669"),
        (f"hyperv://{VM}", f"hyperv://{VM}:6669"),
        ("vsock+unix:///run/fc.sock", "vsock+unix:///run/fc.sock:6669"),
        ("vsock+unix:///run/a:b", "vsock+unix:///run/a:b:6669"),
        ("tcp://host", "tcp://host:6669"),
        ("tcp://[::1]", "tcp://[::1]:6669"),
        ("vsock://3:1", "vsock://3:1"),
        ("unix:///run/x", "unix:///run/x"),
    ],
)
def test_the_callers_port_stands_for_one_left_out_and_the_text_says_it(url: str, text: str) -> None:
    parsed = parse_endpoint(url, 6669)
    assert parsed.text == text
    assert parsed == parse_endpoint(text)


@pytest.mark.parametrize(
    "url",
    [
        *("", "/run/x", "unix", "http://x", "vsock:2:1", "://2:1", "VSOCK://2:1", " vsock://2:1", "vsock://2:1\n"),
        *("fd://", "fd://x", "fd://-1", "fd://+1", "fd://1_0", "fd://1:2", "fd://2147483648", "fd://3/"),
        *("unix://run/x", "unix://", "unix:///", "unix:///run/", "unix:///a\0b", "unix:///a\nb"),
        *("tcp://1.2.3.4", "tcp://h:99999", "tcp://h:", "tcp://:80", "tcp://h:-1", "tcp://h:٣", "tcp://u@h:80"),
        *("tcp://::1:80", "tcp://[::1", "tcp://[::1]", "tcp://[x]:80", "tcp://[fe80::1%eth0]x:80", "tcp://h/p:80"),
        *("vsock://2", "vsock://a:1", "vsock://:1", "vsock://2:x", "vsock://2:", "vsock://-1:1", "vsock://any:1"),
        *("vsock://4294967295:1", "vsock://2:4294967295", "vsock://2:1/", "vsock://2:1:1", "vsock://1e3:1"),
        *(
            "hyperv://x:1",
            f"hyperv://{VM}",
            f"hyperv://{VM[:-1]}:1",
            f"hyperv://{{{VM}}}:1",
            f"hyperv://{VM}:2147483648",
        ),
        *(
            "vsock+unix://run/x:1",
            "vsock+unix:///run/x",
            "vsock+unix://:1",
            "vsock+unix:///:1",
            "vsock+unix:///x:4294967295",
        ),
    ],
)
def test_bad_urls_are_one_line_that_names_them_and_the_form(url: str) -> None:
    with pytest.raises(ConfigError, match="invalid endpoint") as caught:
        parse_endpoint(url)
    text = str(caught.value)
    assert (url if url.isprintable() else repr(url)) in text
    assert text.isprintable()
    scheme = url.partition("://")[0]
    assert FORMS.get(scheme, "fd://N") in text


def test_a_default_that_is_no_port_of_the_transport_is_not_taken() -> None:
    with pytest.raises(ConfigError, match="want tcp://host:port"):
        parse_endpoint("tcp://host", 70_000)


def test_an_unknown_scheme_is_told_all_forms() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_endpoint("carrier-pigeon://x")
    assert all(form in str(caught.value) for form in FORMS.values())


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("vsock://3:6669", "vsock://3:6656"),
        ("vsock://ANY:6669", "vsock://ANY:6656"),
        (f"hyperv://{VM}:6669", f"hyperv://{VM}:6656"),
        ("vsock+unix:///run/fc.sock:6669", "vsock+unix:///run/fc.sock:6656"),
        ("tcp://host:6669", "tcp://host:6656"),
        ("tcp://[::1]:6669", "tcp://[::1]:6656"),
        ("unix:///run/x", "unix:///run/x"),
        ("fd://3", "fd://3"),
    ],
)
def test_with_port(url: str, text: str) -> None:
    assert parse_endpoint(url).with_port(6656) == parse_endpoint(text)


def test_with_a_port_that_does_not_exist() -> None:
    with pytest.raises(ConfigError, match="tcp://host:65536"):
        parse_endpoint("tcp://host:1").with_port(65_536)


@pytest.mark.parametrize(
    ("port", "service"),
    [
        (0, "00000000-facb-11e6-bd58-64006a7986d3"),
        (6656, "00001a00-facb-11e6-bd58-64006a7986d3"),
        (6669, "00001a0d-facb-11e6-bd58-64006a7986d3"),
        (0x7FFFFFFF, "7fffffff-facb-11e6-bd58-64006a7986d3"),
    ],
)
def test_service_guids(port: int, service: str) -> None:
    assert service_of_port(port) == service
    assert port_of_service(service) == port
    assert port_of_service(service.upper()) == port


@pytest.mark.parametrize(
    "service", ["", VM, "80000000-facb-11e6-bd58-64006a7986d3", "1a00-facb-11e6-bd58-64006a7986d3", "x" * 36]
)
def test_guids_that_are_no_vsock_port(service: str) -> None:
    assert port_of_service(service) is None


@pytest.mark.parametrize("port", [-1, 0x80000000])
def test_ports_without_a_service(port: int) -> None:
    with pytest.raises(ValueError, match=str(port)):
        service_of_port(port)


@settings(deadline=None)
@given(
    st.text(max_size=60), st.sampled_from(["", *(f"{scheme}://" for scheme in FORMS)]), st.none() | st.integers(0, 9999)
)
def test_any_text_parses_to_its_own_meaning_or_is_refused(rest: str, start: str, default: int | None) -> None:
    try:
        parsed = parse_endpoint(start + rest, default)
    except ConfigError:
        return
    assert parse_endpoint(parsed.text) == parsed
