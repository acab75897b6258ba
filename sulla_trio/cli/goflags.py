"""The grammar of Go's `flag` package: what the daemons' callers were written against.

Source: specs/daemons.md section 3.1. argparse will not do: it abbreviates, permutes and bundles.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

_TRUE: Final = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE: Final = frozenset({"0", "f", "F", "false", "FALSE", "False"})
_INT: Final = re.compile(
    r"[+-]?(?:0[xX](?:_?[0-9a-fA-F])+|0[bB](?:_?[01])+|0[oO]?(?:_?[0-7])+|0|[1-9](?:_?[0-9])*)", re.ASCII
)
_INT_BITS: Final = 63


class FlagError(Exception):
    """The command line does not parse; the text is Go's first line, the usage follows it."""


class HelpRequested(Exception):
    """``-h``, ``-help`` or ``--help`` was given."""


@dataclass(slots=True)
class _Flag:
    name: str
    kind: str
    """``bool``, ``string``, ``int`` or ``value`` (repeatable)."""
    default: Any
    usage: str
    ours: bool
    """Not one of the Go daemon's: shown with two dashes, accepted with one or two."""


class FlagSet:
    """Flags of one program. Declare them, then `parse`."""

    def __init__(self, program: str) -> None:
        self.program = program
        self._flags: dict[str, _Flag] = {}
        self._aliases: dict[str, str] = {}

    def add_bool(self, name: str, usage: str, *, default: bool = False, ours: bool = False) -> None:
        """A flag without a separate value: ``-debug``, ``-debug=false``."""
        self._flags[name] = _Flag(name, "bool", default, usage, ours)

    def add_string(self, name: str, usage: str, *, default: str = "", ours: bool = False) -> None:
        """A text; a word of `usage` in backquotes names the value in the usage text."""
        self._flags[name] = _Flag(name, "string", default, usage, ours)

    def add_int(self, name: str, usage: str, *, default: int = 0, ours: bool = False) -> None:
        """A 64-bit integer in any of Go's notations."""
        self._flags[name] = _Flag(name, "int", default, usage, ours)

    def add_repeated(self, name: str, usage: str, *, ours: bool = False) -> None:
        """A text that may be given again; the value is the tuple of all."""
        self._flags[name] = _Flag(name, "value", (), usage, ours)

    def add_alias(self, alias: str, name: str) -> None:
        """Another name for the declared flag `name`, which the usage text does not list."""
        self._aliases[alias] = name

    def parse(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Every flag's value by name. What follows the first non-flag or ``--`` is ignored, as the Go daemons do.

        Raises:
            FlagError: unknown flag, missing or bad value.
            HelpRequested: help was asked for and no flag of that name is declared.
        """
        values = {flag.name: flag.default for flag in self._flags.values()}
        rest = list(reversed(arguments))
        while rest:
            token = rest[-1]
            if len(token) < 2 or token[0] != "-":
                break
            rest.pop()
            if token == "--":
                break
            self._parse_one(token, rest, values)
        return values

    def _parse_one(self, token: str, rest: list[str], values: dict[str, Any]) -> None:
        name = token[2:] if token.startswith("--") else token[1:]
        if not name or name[0] in "-=":
            raise FlagError(f"bad flag syntax: {token}")
        name, equals, text = name.partition("=")
        flag = self._flags.get(self._aliases.get(name, name))
        if flag is None:
            if name in ("help", "h"):
                raise HelpRequested
            raise FlagError(f"flag provided but not defined: -{name}")
        if flag.kind == "bool":
            values[flag.name] = _parse_bool(name, text) if equals else True
            return
        if not equals:
            if not rest:
                raise FlagError(f"flag needs an argument: -{name}")
            text = rest.pop()
        if flag.kind == "int":
            values[flag.name] = _parse_int(name, text)
        elif flag.kind == "value":
            values[flag.name] = (*values[flag.name], text)
        else:
            values[flag.name] = text

    def usage(self) -> str:
        """The text that ``-h`` and every error print to stderr."""
        lines = [f"Usage of {self.program}:"]
        for flag in sorted(self._flags.values(), key=lambda flag: flag.name):
            placeholder, text = _unquote(flag)
            dashes = "--" if flag.ours else "-"
            lines.append(f"  {dashes}{flag.name}{placeholder and ' ' + placeholder}")
            lines.append("    \t" + text.replace("\n", "\n    \t") + _default_text(flag))
        return "\n".join(lines) + "\n"


def _parse_bool(name: str, text: str) -> bool:
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise FlagError(f"invalid boolean value {go_quote(text)} for -{name}: parse error")


def _parse_int(name: str, text: str) -> int:
    if not _INT.fullmatch(text):
        raise FlagError(f"invalid value {go_quote(text)} for flag -{name}: parse error")
    digits = text.lstrip("+-")
    octal = re.fullmatch(r"0_?[0-7][0-7_]*", digits)
    # Longer than any 64-bit number in any base: Python would refuse, or spend its time.
    number = 1 << 64 if len(digits) > 100 else int("0o" + digits[1:].lstrip("_") if octal else digits, 0)
    if text.startswith("-"):
        number = -number
    if not -(1 << _INT_BITS) <= number < 1 << _INT_BITS:
        raise FlagError(f"invalid value {go_quote(text)} for flag -{name}: value out of range")
    return number


def _unquote(flag: _Flag) -> tuple[str, str]:
    """(name of the value, usage text without its backquotes), as Go's UnquoteUsage."""
    match = re.search(r"`([^`]*)`", flag.usage)
    if match:
        return match[1], flag.usage.replace(match[0], match[1], 1)
    return ("" if flag.kind == "bool" else flag.kind), flag.usage


def _default_text(flag: _Flag) -> str:
    if not flag.default:
        return ""
    if flag.kind == "string":
        return f" (default {go_quote(flag.default)})"
    return f" (default {str(flag.default).lower() if flag.kind == 'bool' else flag.default})"


_GO_ESCAPES: Final = {
    "\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v", '"': '\\"', "\\": "\\\\"
}  # fmt: skip


def go_quote(text: str) -> str:
    """`text` as Go's ``%q`` prints it."""
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    return '"' + "".join(map(_escape, text)) + '"'


def _escape(character: str) -> str:
    if character in _GO_ESCAPES:
        return _GO_ESCAPES[character]
    if character.isprintable():
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of argv that was not UTF-8 (PEP 383)
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x20 or code == 0x7F:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def run_flags(
    flags: FlagSet, arguments: Sequence[str], write: Callable[[str], object]
) -> tuple[dict[str, Any] | None, int]:
    """Parse as a Go program does: (values, 0), or (None, exit status) after writing message and usage."""
    try:
        return flags.parse(arguments), 0
    except HelpRequested:
        write(flags.usage())
        return None, 0
    except FlagError as error:
        write(f"{error}\n{flags.usage()}")
        return None, 2
