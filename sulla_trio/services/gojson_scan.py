"""Where a JSON value ends, and what is wrong with it, byte by byte and in the words of Go's encoding/json.

A peer that keeps its connection open after one value is answered when the value is complete, not at the end of the stream;
so completeness must be known without parsing anew at each chunk. Grammar: RFC 8259. Nothing but positions comes out:
`gojson` makes the values.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

MAX_DEPTH: Final = 200
"""Arrays and objects inside one another (Go: 10,000). Nobody means more than ten; Python's parser, which recurses, has
some hundreds left below a server's own frames."""

_SPACE: Final = frozenset(b" \t\r\n")
_DIGITS: Final = frozenset(b"0123456789")
_HEX: Final = frozenset(b"0123456789abcdefABCDEF")
_ESCAPED: Final = frozenset(b'bfnrt\\/"')
_PLAIN: Final = re.compile(rb'[^"\\\x00-\x1f]*')
_LITERALS: Final = {ord("t"): b"true", ord("f"): b"false", ord("n"): b"null"}
_SHORT: Final = {7: "\\a", 8: "\\b", 9: "\\t", 10: "\\n", 11: "\\v", 12: "\\f", 13: "\\r", 39: "\\'", 92: "\\\\"}
_KEY, _VALUE, _ELEMENT = range(3)  # what is being read of the innermost object or array

_State = Callable[[int], None]


class GoJsonError(ValueError):
    """The bytes do not decode; the text is Go's."""


class Scanner:
    """Finds the end of the first JSON value in a stream of chunks. Every way of cutting the stream gives the same end.

    After `scan` has returned an end or raised, the scanner is spent.
    """

    def __init__(self, max_depth: int = MAX_DEPTH) -> None:
        self._max_depth = max_depth
        self._state: _State = self._begin_value
        self._stack: list[int] = []
        self._count = 0
        """Hexadecimal digits, or bytes of the literal, read so far."""
        self._literal = b""
        self._started = self._ended = False

    def scan(self, chunk: bytes) -> int:
        """The index in `chunk` behind the value's last byte, or -1: more is needed.

        A number, a text or a word on its own ends before the byte that follows it, as in Go: ``12`` may become ``123``.

        Raises:
            GoJsonError: not JSON, or nested deeper than `max_depth`.
        """
        at, size = 0, len(chunk)
        while at < size:
            if self._state == self._in_string:
                at = _PLAIN.match(chunk, at).end()  # type: ignore[union-attr]  # it matches the empty text
                if at == size:
                    break
            self._state(chunk[at])
            if self._ended:
                return at
            at += 1
            if self._state == self._end_value and not self._stack and chunk[at - 1] in b"}]":
                return at
        return -1

    def finish(self) -> None:
        """The stream has ended: the value must be complete.

        Raises:
            GoJsonError: ``EOF`` where there was nothing, else ``unexpected EOF``.
        """
        if not self._started:
            raise GoJsonError("EOF")
        try:
            self._state(ord(" "))
        except GoJsonError:
            pass  # a half literal or number
        if not self._ended:
            raise GoJsonError("unexpected EOF")

    def _fail(self, byte: int, context: str) -> GoJsonError:
        return GoJsonError(f"invalid character {quote_byte(byte)} {context}")

    def _push(self, part: int, state: _State) -> None:
        if len(self._stack) >= self._max_depth:
            raise GoJsonError("exceeded max depth")
        self._stack.append(part)
        self._state = state

    # Values

    def _begin_value(self, byte: int) -> None:
        if byte in _SPACE:
            return
        self._started = True
        if byte == ord("{"):
            self._push(_KEY, self._first_key)
        elif byte == ord("["):
            self._push(_ELEMENT, self._first_element)
        elif byte == ord('"'):
            self._state = self._in_string
        elif byte == ord("-"):
            self._state = self._minus
        elif byte == ord("0"):
            self._state = self._after_integer
        elif byte in _DIGITS:
            self._state = self._integer
        elif byte in _LITERALS:
            self._literal, self._count, self._state = _LITERALS[byte], 1, self._in_literal
        else:
            raise self._fail(byte, "looking for beginning of value")

    def _first_element(self, byte: int) -> None:
        if byte == ord("]"):
            self._end_value(byte)
        else:
            if byte not in _SPACE:
                self._state = self._begin_value
            self._begin_value(byte)

    def _first_key(self, byte: int) -> None:
        if byte == ord("}"):
            self._stack[-1] = _VALUE
            self._end_value(byte)
        else:
            self._begin_key(byte)

    def _begin_key(self, byte: int) -> None:
        if byte == ord('"'):
            self._state = self._in_string
        elif byte not in _SPACE:
            raise self._fail(byte, "looking for beginning of object key string")

    def _end_value(self, byte: int) -> None:
        """The byte after a value, or after the blanks behind it."""
        self._state = self._end_value
        if not self._stack:
            self._ended = True
            return
        if byte in _SPACE:
            return
        part = self._stack[-1]
        if part == _KEY:
            if byte != ord(":"):
                raise self._fail(byte, "after object key")
            self._stack[-1], self._state = _VALUE, self._begin_value
        elif byte == ord(","):
            if part == _VALUE:
                self._stack[-1], self._state = _KEY, self._begin_key
            else:
                self._state = self._begin_value
        elif byte == (ord("}") if part == _VALUE else ord("]")):
            self._stack.pop()
        else:
            raise self._fail(byte, "after object key:value pair" if part == _VALUE else "after array element")

    # Texts and words

    def _in_string(self, byte: int) -> None:
        if byte == ord('"'):
            self._state = self._end_value
        elif byte == ord("\\"):
            self._state = self._escape
        elif byte < 0x20:
            raise self._fail(byte, "in string literal")

    def _escape(self, byte: int) -> None:
        if byte == ord("u"):
            self._count, self._state = 0, self._unicode
        elif byte in _ESCAPED:
            self._state = self._in_string
        else:
            raise self._fail(byte, "in string escape code")

    def _unicode(self, byte: int) -> None:
        if byte not in _HEX:
            raise self._fail(byte, "in \\u hexadecimal character escape")
        self._count += 1
        if self._count == 4:
            self._state = self._in_string

    def _in_literal(self, byte: int) -> None:
        wanted = self._literal[self._count]
        if byte != wanted:
            raise self._fail(byte, f"in literal {self._literal.decode()} (expecting {quote_byte(wanted)})")
        self._count += 1
        if self._count == len(self._literal):
            self._state = self._end_value

    # Numbers

    def _minus(self, byte: int) -> None:
        if byte not in _DIGITS:
            raise self._fail(byte, "in numeric literal")
        self._state = self._after_integer if byte == ord("0") else self._integer

    def _integer(self, byte: int) -> None:
        if byte not in _DIGITS:
            self._after_integer(byte)

    def _after_integer(self, byte: int) -> None:
        if byte == ord("."):
            self._state = self._point
        else:
            self._maybe_exponent(byte)

    def _point(self, byte: int) -> None:
        if byte not in _DIGITS:
            raise self._fail(byte, "after decimal point in numeric literal")
        self._state = self._fraction

    def _fraction(self, byte: int) -> None:
        if byte not in _DIGITS:
            self._maybe_exponent(byte)

    def _maybe_exponent(self, byte: int) -> None:
        if byte in b"eE":
            self._state = self._exponent_sign
        else:
            self._end_value(byte)

    def _exponent_sign(self, byte: int) -> None:
        if byte in b"+-":
            self._state = self._exponent
        else:
            self._exponent(byte)

    def _exponent(self, byte: int) -> None:
        if byte not in _DIGITS:
            raise self._fail(byte, "in exponent of numeric literal")
        self._state = self._exponent_digits

    def _exponent_digits(self, byte: int) -> None:
        if byte not in _DIGITS:
            self._end_value(byte)


def quote_byte(byte: int) -> str:
    """One byte as Go quotes it in an error: as the character of that code point."""
    if byte in _SHORT:
        return f"'{_SHORT[byte]}'"
    character = chr(byte)
    if character.isprintable():
        return f"'{character}'"
    return f"'\\x{byte:02x}'" if byte < 0x80 else f"'\\u{byte:04x}'"
