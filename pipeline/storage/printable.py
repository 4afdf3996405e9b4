"""Text from files and stores as it can be printed: no control character of it reaches a terminal.

Ids, texts, paths and error messages can hold bytes that a terminal obeys (CWE-150: escape sequences
set its title, move its cursor or write into its clipboard), or characters that change the order in
which the rest of a line is read. They are replaced by what Python calls them: `\\x1b`, `\\u202e`.
"""

from __future__ import annotations

import json
import re
from typing import Any

_UNPRINTABLE = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls of ASCII and Latin-1, without tab and line feed
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks and overrides of direction
    "\u2028\u2029\ufeff"  # line and paragraph separators, byte order mark
    "\ud800-\udfff"  # bytes of names that are not UTF-8, halves of surrogate pairs
)
_IN_LINES = re.compile(f"[{_UNPRINTABLE}]")
_IN_A_LINE = re.compile(f"[{_UNPRINTABLE}\t\n]")
_IN_JSON = re.compile(f"[{_UNPRINTABLE}]")


def printable(text: str) -> str:
    """A single value, such as an id or a path, without anything that a terminal obeys; line feeds
    and tabs are escaped, too, so that no value can pass for a line of a message."""
    return _IN_A_LINE.sub(_escaped, text)


def printable_lines(text: str) -> str:
    """As `printable`, for a whole message: its line feeds and tabs stay."""
    return _IN_LINES.sub(_escaped, text)


def printable_json(value: Any, *, ascii_only: bool = False, **options: Any) -> str:
    """`value` as JSON that is exact and can be printed: what a terminal obeys stands there as
    `\\uXXXX`. options: those of json.dumps."""
    text = json.dumps(value, ensure_ascii=ascii_only, **options)
    return _IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _escaped(match: re.Match[str]) -> str:
    return ascii(match[0])[1:-1]
