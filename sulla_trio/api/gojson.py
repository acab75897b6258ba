"""JSON as Go's encoding/json reads and writes it, as far as a client of gvproxy's API can tell.

Source: specs/gvproxy.md section 2.0. Reading: the first value only, field names in any case, unknown fields ignored, null is
the zero value. Writing: compact, HTML characters escaped, a newline at the end.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

_BLANK: Final = " \t\r\n"
_ESCAPES: Final = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
_TABLE: Final = str.maketrans(_ESCAPES)
_LITERALS: Final = ("true", "false", "null")


class GoJsonError(ValueError):
    """The body does not decode; the text is Go's."""


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with its fields in order, repeated ones too (the last wins, whatever its case)."""


class _Number(str):
    """A JSON number as it was written: nothing here reads one, so none is converted (or bounded)."""


def _refuse_constant(name: str) -> Any:
    raise json.JSONDecodeError("Expecting value", name, 0)


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_Pairs, parse_int=_Number, parse_float=_Number, parse_constant=_refuse_constant
)


def decode_struct(body: bytes, struct: str, fields: Sequence[str]) -> dict[str, str]:
    """The string `fields` of the first JSON value in `body`, which Go would decode into `struct`.

    Absent fields and nulls are ``""``.

    Raises:
        GoJsonError: empty or truncated, not JSON, or a field of another type.
    """
    value = _first_value(body.decode("utf-8", "replace"))
    result = dict.fromkeys(fields, "")
    if value is None:
        return result
    if not isinstance(value, _Pairs):
        raise GoJsonError(f"json: cannot unmarshal {_type_name(value)} into Go value of type types.{struct}")
    for name, content in value:
        key = name.lower()
        if key not in result or content is None:
            continue
        if not isinstance(content, str) or isinstance(content, _Number):
            raise GoJsonError(
                f"json: cannot unmarshal {_type_name(content)} into Go struct field {struct}.{key} of type string"
            )
        # Go replaces an unpaired surrogate by U+FFFD; Python keeps it, and it cannot be encoded again.
        result[key] = content.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return result


def _first_value(text: str) -> Any:
    start = len(text) - len(text.lstrip(_BLANK))
    if start == len(text):
        raise GoJsonError("EOF")
    try:
        return _DECODER.raw_decode(text, start)[0]
    except json.JSONDecodeError as error:
        raise GoJsonError(_syntax_text(text, start, error)) from None
    except RecursionError:
        raise GoJsonError("exceeded max depth") from None


def _syntax_text(text: str, start: int, error: json.JSONDecodeError) -> str:
    if error.doc != text:  # NaN and Infinity, which are not JSON
        return f"invalid character '{error.doc[0]}' looking for beginning of value"
    at = error.pos
    while at < len(text) and text[at] in _BLANK:
        at += 1
    rest = text[at:]
    truncated = not rest or rest == "-" or any(literal.startswith(rest) for literal in _LITERALS)
    if truncated or error.msg.startswith("Unterminated string"):
        return "unexpected EOF"
    looking = "looking for beginning of value"
    if "property name" in error.msg:
        looking = "looking for beginning of object key string"
    elif "':' delimiter" in error.msg:
        looking = "after object key"
    elif "',' delimiter" in error.msg:
        looking = "after object key:value pair" if text[start] == "{" else "after array element"
    elif "control character" in error.msg or "escape" in error.msg:
        looking = "in string literal"
    return f"invalid character {_quoted(rest[0])} {looking}"


def _quoted(character: str) -> str:
    if character == "'":
        return "'\\''"
    if character.isprintable():
        return f"'{character}'"
    return "'" + character.encode("unicode_escape").decode() + "'"


def _type_name(value: Any) -> str:
    if isinstance(value, _Number):
        return "number"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, str):
        return "string"
    return "object" if isinstance(value, _Pairs) else "array"


def encode(value: Any, *, sort_keys: bool = True) -> bytes:
    """`value` as Go's json.Encoder writes it, newline included. `sort_keys` for maps; structs keep their order."""
    text = json.dumps(value, sort_keys=sort_keys, ensure_ascii=False, separators=(",", ":"))
    return text.translate(_TABLE).encode("utf-8", "replace") + b"\n"
