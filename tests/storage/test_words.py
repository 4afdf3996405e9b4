"""Numbers for people. Oracle: what a person would write, spelled out."""

from __future__ import annotations

import pytest

from pipeline.storage import words


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (3 << 40, "3.0 TiB"),
        (1 << 60, "1,024.0 PiB"),
    ],
)
def test_bytes_are_shown_in_the_largest_unit_that_fits(n_bytes: int, text: str) -> None:
    assert words.human(n_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0, "0:00"),
        (7.9, "0:07"),
        (75, "1:15"),
        (3661, "1:01:01"),
        (4e6, "1,111:06:40"),
    ],
)
def test_a_duration_is_shown_like_a_clock(seconds: float | None, text: str) -> None:
    assert words.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (999.6, "1.0k"),
        (18412, "18.4k"),
        (99_960, "100k"),
        (999_600, "1.0M"),
        (3_250_000, "3.2M"),
        (7.5e9, "7.5G"),
        (2e15, "2,000T"),
    ],
)
def test_a_short_number_keeps_its_size(value: float, text: str) -> None:
    assert words.short(value) == text


def test_nouns_and_verbs_go_with_their_number_and_thousands_are_separated() -> None:
    assert words.counted(0, "part") == "0 parts"
    assert words.counted(1, "part") == "1 part"
    assert words.counted(18412, "row") == "18,412 rows"
    assert words.counted(1, "entry", "entries") == "1 entry"
    assert words.counted(2, "entry", "entries") == "2 entries"
    assert words.agreeing(1, "is", "are") == "is"
    assert words.agreeing(0, "is", "are") == "are"
    assert words.number(1234567) == "1,234,567"


def test_counts_by_name_leave_out_what_is_zero_and_are_no_dictionary() -> None:
    assert words.by_name({"empty_text": 1200, "null_text": 0, "[red]": 1}) == (
        "1,200 empty_text, 1 [red]"
    )
    assert words.by_name({}) == ""
