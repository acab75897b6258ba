"""Go's JSON: what it takes, what it refuses and how it writes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sulla_trio.services.gojson import decode_struct, encode
from sulla_trio.services.gojson_scan import GoJsonError

FIELDS = ("local", "remote")


def decode(body: bytes) -> dict[str, str]:
    return decode_struct(body, "T", FIELDS)


@pytest.mark.parametrize(
    ("body", "local"),
    [
        (b'{"local":"a"}', "a"),
        (b'  \n{"LoCaL":"a","local":"b"} {"local":"c"}', "b"),
        (b'{"local":"b","LOCAL":"a","local":"c"}', "c"),
        (b'{"local":"a","local":null}', "a"),
        (b'{"x":{"local":"deep"},"local":"a"}', "a"),
        (b'{"local":"\\ud800"}', "\ufffd"),
        (b'{"local":"\\ud83d\\ude00"}', "\U0001f600"),
        (b'{"local":"\xff"}', "\ufffd"),
        (b'{"x":' + b"9" * 10_000 + b',"local":"a"}', "a"),
        (b'{"x":1e999999,"local":"a"}', "a"),
        (b"null", ""),
        (b"{}garbage", ""),
    ],
)
def test_taken(body: bytes, local: str) -> None:
    assert decode(body)["local"] == local


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "EOF"),
        (b" \r\n\t", "EOF"),
        (b"{", "unexpected EOF"),
        (b'{"local', "unexpected EOF"),
        (b'{"local":', "unexpected EOF"),
        (b'{"local":"a"', "unexpected EOF"),
        (b"tru", "unexpected EOF"),
        (b"-", "unexpected EOF"),
        (b"x", "invalid character 'x' looking for beginning of value"),
        (b"'", "invalid character '\\'' looking for beginning of value"),
        (b"NaN", "invalid character 'N' looking for beginning of value"),
        (b'{"a":Infinity}', "invalid character 'I' looking for beginning of value"),
        (b"{,", "invalid character ',' looking for beginning of object key string"),
        (b'{"a" 1}', "invalid character '1' after object key"),
        (b'{"a":1 2}', "invalid character '2' after object key:value pair"),
        (b"[1 2]", "invalid character '2' after array element"),
        (b'{"a":"\x01"}', "invalid character '\\x01' in string literal"),
        (b'{"local":false}', "json: cannot unmarshal bool into Go struct field T.local of type string"),
        (b'{"LOCAL":-1.5}', "json: cannot unmarshal number into Go struct field T.local of type string"),
        (b'{"local":[]}', "json: cannot unmarshal array into Go struct field T.local of type string"),
        (b'"text"', "json: cannot unmarshal string into Go value of type types.T"),
        (b"[" * 100_000, "exceeded max depth"),
    ],
)
def test_refused(body: bytes, text: str) -> None:
    with pytest.raises(GoJsonError) as caught:
        decode(body)
    assert str(caught.value) == text


@given(st.binary(max_size=100))
def test_any_bytes_decode_or_are_refused(body: bytes) -> None:
    try:
        fields = decode(body)
    except GoJsonError:
        pass  # and nothing else
    else:
        assert [value.encode() for value in fields.values()]


def test_written() -> None:
    assert encode({"b": 1, "a": "<&>\u2028é"}) == '{"a":"\\u003c\\u0026\\u003e\\u2028é","b":1}\n'.encode()
    assert encode([{"local": "x", "a": 1}], sort_keys=False) == b'[{"local":"x","a":1}]\n'
    assert encode([]) == b"[]\n"
