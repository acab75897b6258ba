"""JSON as Go's encoding/json reads and writes it, as far as a client of the Go daemons can tell.

Source: specs/gvproxy.md section 2.0. Reading: the first value only, field names in any case, unknown fields ignored, null is
the zero value. Writing: compact, HTML characters escaped, a newline at the end.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from sulla_trio.services.gojson_scan import GoJsonError, Scanner

_ESCAPES: Final = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
_TABLE: Final = str.maketrans(_ESCAPES)


class JsonObject(list[tuple[str, Any]]):
    """A JSON object with its fields in order, repeated ones too (the last wins, whatever its case)."""


class JsonNumber(str):
    """A JSON number as it was written: nothing here reads one, so none is converted (or bounded)."""


_DECODER: Final = json.JSONDecoder(object_pairs_hook=JsonObject, parse_int=JsonNumber, parse_float=JsonNumber)


def decode_struct(body: bytes, struct: str, fields: Sequence[str]) -> dict[str, str]:
    """The string `fields` of the first JSON value in `body`, which Go would decode into `struct`.

    Absent fields and nulls are ``""``.

    Raises:
        GoJsonError: empty or truncated, not JSON, or a field of another type.
    """
    result = dict.fromkeys(fields, "")
    for name, content in fields_of(first_value(body), f"types.{struct}"):
        key = name.lower()
        if key in result:
            result[key] = string(content, result[key], f"{struct}.{key}")
    return result


def first_value(body: bytes) -> Any:
    """The first JSON value in `body`: None, bool, str, list, `JsonObject` or `JsonNumber`; what follows is not looked at.

    Raises:
        GoJsonError: empty, truncated, not JSON.
    """
    scanner = Scanner()
    end = scanner.scan(body)
    if end < 0:
        scanner.finish()
        end = len(body)
    return load(body[:end])


def load(value: bytes) -> Any:
    """The value in bytes that a `Scanner` has found to be one."""
    return _DECODER.decode(value.decode("utf-8", "replace"))


def fields_of(value: Any, type_name: str, field: str = "") -> JsonObject:
    """The fields of a value that Go decodes into a struct or a map; none for null.

    `field` is the struct field that holds it (``Struct.path``), empty for the outermost value.

    Raises:
        GoJsonError: not an object.
    """
    if value is None:
        return JsonObject()
    if not isinstance(value, JsonObject):
        raise mismatch(value, field, type_name)
    return value


def string(value: Any, default: str, field: str) -> str:
    """A value that Go decodes into a string; null leaves `default`. Raises GoJsonError."""
    if value is None:
        return default
    if not isinstance(value, str) or isinstance(value, JsonNumber):
        raise mismatch(value, field, "string")
    # Go replaces an unpaired surrogate by U+FFFD; Python keeps it, and it cannot be encoded again.
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def boolean(value: Any, default: bool, field: str) -> bool:
    """A value that Go decodes into a bool; null leaves `default`. Raises GoJsonError."""
    if value is None:
        return default
    if not isinstance(value, bool):
        raise mismatch(value, field, "bool")
    return value


def mismatch(value: Any, field: str, type_name: str) -> GoJsonError:
    """Go's error for a value of another type than the field's."""
    where = f"struct field {field} of type {type_name}" if field else f"value of type {type_name}"
    return GoJsonError(f"json: cannot unmarshal {_type_name(value)} into Go {where}")


def _type_name(value: Any) -> str:
    if isinstance(value, JsonNumber):
        return "number"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, str):
        return "string"
    return "object" if isinstance(value, JsonObject) else "array"


def encode(value: Any, *, sort_keys: bool = True) -> bytes:
    """`value` as Go's json.Encoder writes it, newline included. `sort_keys` for maps; structs keep their order."""
    text = json.dumps(value, sort_keys=sort_keys, ensure_ascii=False, separators=(",", ":"))
    return text.translate(_TABLE).encode("utf-8", "replace") + b"\n"
