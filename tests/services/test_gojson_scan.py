"""The end of a JSON value and the words for what is wrong with it, whatever the cuts."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sulla_trio.services.gojson_scan import GoJsonError, Scanner, quote_byte


def outcome(chunks: list[bytes]) -> tuple[int, str]:
    """(where the value ends in the stream, -1 at its end; error text)."""
    scanner, passed = Scanner(), 0
    try:
        for chunk in chunks:
            end = scanner.scan(chunk)
            if end >= 0:
                return passed + end, ""
            passed += len(chunk)
        scanner.finish()
    except GoJsonError as error:
        return passed, str(error)
    return -1, ""


@pytest.mark.parametrize(
    ("stream", "end"),
    [
        (b'{"a":[1,{}]}', 12),
        (b' \r\n\t{ "a" : [ ] , "b" : [ 1 , 2 ] } x', 35),
        (b"[]]", 2),
        (b'"}" ', 3),
        (b"12 ", 2),
        (b"12", -1),
        (b"-0.5e+10", -1),
        (b"0E1x", 3),
        (b"null", -1),
        (b"nullx", 4),
        (b'"\\u12aF\\n\\\\"', -1),
        (b'{"\xc3\xa9\xff":true}', 12),
    ],
)
def test_ends(stream: bytes, end: int) -> None:
    assert outcome([stream]) == (end, "")


@pytest.mark.parametrize(
    ("stream", "text"),
    [
        (b"", "EOF"),
        (b" \n", "EOF"),
        (b"-", "unexpected EOF"),
        (b"1.", "unexpected EOF"),
        (b"nul", "unexpected EOF"),
        (b'"\\u12', "unexpected EOF"),
        (b'{"a":{', "unexpected EOF"),
        (b"]", "invalid character ']' looking for beginning of value"),
        (b"[,", "invalid character ',' looking for beginning of value"),
        (b"[1,]", "invalid character ']' looking for beginning of value"),
        (b"{1", "invalid character '1' looking for beginning of object key string"),
        (b'{"a":1,}', "invalid character '}' looking for beginning of object key string"),
        (b'{"a"}', "invalid character '}' after object key"),
        (b'{"a":1]', "invalid character ']' after object key:value pair"),
        (b"[1}", "invalid character '}' after array element"),
        (b'"\n', "invalid character '\\n' in string literal"),
        (b'"\\x', "invalid character 'x' in string escape code"),
        (b'"\\u12g', "invalid character 'g' in \\u hexadecimal character escape"),
        (b"nuLl", "invalid character 'L' in literal null (expecting 'l')"),
        (b"-x", "invalid character 'x' in numeric literal"),
        (b"[01", "invalid character '1' after array element"),
        (b"1.e", "invalid character 'e' after decimal point in numeric literal"),
        (b"1e+x", "invalid character 'x' in exponent of numeric literal"),
        (b"\xef\xbb\xbf{}", "invalid character 'ï' looking for beginning of value"),
        (b"[" * 201, "exceeded max depth"),
        (b'{"a":' * 1000, "exceeded max depth"),
    ],
)
def test_errors(stream: bytes, text: str) -> None:
    assert outcome([stream])[1] == text
    assert outcome([stream[at : at + 1] for at in range(len(stream))])[1] == text


def test_depth_is_of_what_is_open() -> None:
    assert outcome([b"[" + b"[]," * 500 + b"[]]"]) == (1504, "")
    assert outcome([b"[" * 200 + b"]" * 200]) == (400, "")


@pytest.mark.parametrize(
    ("byte", "text"),
    [(0x27, "'\\''"), (0x22, "'\"'"), (0x5C, "'\\\\'"), (7, "'\\a'"), (0, "'\\x00'"), (0x7F, "'\\x7f'"),
     (0x80, "'\\u0080'"), (0xE9, "'é'")],
)  # fmt: skip
def test_quoting(byte: int, text: str) -> None:
    assert quote_byte(byte) == text


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


@given(values, st.booleans(), st.integers(1, 7), st.binary(max_size=3))
def test_a_value_ends_where_it_ends(value: object, ascii_only: bool, step: int, behind: bytes) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=1).encode()
    stream = text + b" " + behind
    assert outcome([stream]) == (len(text), "")
    assert outcome([stream[at : at + step] for at in range(0, len(stream), step)]) == (len(text), "")


@given(st.text(alphabet='{}[]":,01-.eEtrufalsn\\ "x', max_size=20), st.integers(1, 5))
def test_cuts_change_nothing_and_python_agrees(text: str, step: int) -> None:
    stream = text.encode()
    whole = outcome([stream])
    cut = outcome([stream[at : at + step] for at in range(0, len(stream), step)])
    assert cut[1] == whole[1]
    if not whole[1]:
        assert cut == whole
        json.loads(stream if whole[0] < 0 else stream[: whole[0]])
    else:
        with pytest.raises(ValueError):
            json.loads(stream)
