"""What a terminal obeys is escaped. Oracle: the categories and directions of the Unicode database,
and json.loads."""

from __future__ import annotations

import json
import sys
import unicodedata

import pytest

from pipeline.storage.printable import printable, printable_json, printable_lines

EVERY_CHARACTER = "".join(map(chr, range(sys.maxunicode + 1)))
DIRECTIONS = {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}


def is_obeyed(char: str) -> bool:
    """Whether a terminal takes a character for a control, or it changes the order of others."""
    is_control = unicodedata.category(char) in ("Cc", "Zl", "Zp", "Cs")
    return is_control or unicodedata.bidirectional(char) in DIRECTIONS


def test_no_character_that_a_terminal_obeys_is_left_in_a_value() -> None:
    assert not any(map(is_obeyed, printable(EVERY_CHARACTER)))


def test_a_message_keeps_its_lines_and_nothing_else() -> None:
    assert {char for char in printable_lines(EVERY_CHARACTER) if is_obeyed(char)} == {"\n", "\t"}


def test_text_of_all_scripts_stays_as_it_is() -> None:
    text = "naïve 良い文書 🦉👩‍👩‍👧 שלום مرحبا नमस्ते [/INST] :smile: C:\\dir"
    assert printable(text) == printable_lines(text) == text


def test_an_escape_is_what_python_calls_the_character() -> None:
    assert printable("a\x1b[2Jb\n\u202ec\x9b") == "a\\x1b[2Jb\\n\\u202ec\\x9b"


@pytest.mark.thorough
def test_json_is_exact_and_holds_nothing_that_a_terminal_obeys() -> None:
    characters = EVERY_CHARACTER[:0xD800] + EVERY_CHARACTER[0xE000:]
    value = {"id": characters, "text": ["\x1b]0;title\x07", '"\\\udcff']}
    for ascii_only in (False, True):
        text = printable_json(value, ascii_only=ascii_only, indent=1)
        assert json.loads(text) == value
        assert {char for char in set(text) if is_obeyed(char)} <= {"\n"}
        assert text.isascii() or not ascii_only
