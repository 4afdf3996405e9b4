"""Numbers for people: plurals, thousands, sizes, durations and rates, each by one function.

In: numbers with the unit that the function's name or argument states. Out: English. Every sentence
that a command prints goes through here, whichever room it is written in, so that no output says
`1 parts` or shows a Python dictionary. What machines read (`--json`, records) has bare numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

_SIZES = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_SHORT = ("", "k", "M", "G", "T")


def number(value: float) -> str:
    """A whole number with its thousands separated: 18412 ─► '18,412'."""
    return f"{value:,.0f}"


def counted(value: int, noun: str, plural: str | None = None) -> str:
    """A number and its noun: (1, 'part') ─► '1 part', (18412, 'part') ─► '18,412 parts'.
    plural: for nouns that do not just take an s."""
    return f"{number(value)} {noun if value == 1 else plural or noun + 's'}"


def agreeing(value: int, one: str, several: str) -> str:
    """The form of a verb or pronoun that goes with a number: (1, 'is', 'are') ─► 'is'."""
    return one if value == 1 else several


def by_name(counts: Mapping[str, int]) -> str:
    """Counts by name, without those that are 0: {'empty_text': 1200} ─► '1,200 empty_text'."""
    return ", ".join(f"{number(value)} {name}" for name, value in counts.items() if value)


def human(n_bytes: float) -> str:
    """A number of bytes: 1536 ─► '1.5 KiB'."""
    for unit in _SIZES[:-1]:
        if abs(n_bytes) < 1024:
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:,.1f} {_SIZES[-1]}"


def short(value: float) -> str:
    """A number in at most five characters where it is below 10¹⁵: 18412 ─► '18.4k'."""
    for unit in _SHORT[:-1]:
        if abs(value) < 999.5:
            digits = 0 if not unit or abs(value) >= 99.95 else 1
            return f"{value:.{digits}f}{unit}"
        value /= 1000
    return f"{value:,.0f}{_SHORT[-1]}"


def duration(seconds: float | None) -> str:
    """A number of seconds like a clock: 75 ─► '1:15', 3661 ─► '1:01:01'; None ─► '-'."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
