"""What a report is made of: sections of paragraphs, tables, plots and code.

The sections are written once (`overview`, `work`, `input`, `vectors`, `ending`); the page and the
Markdown are two ways to show them. All text in them is plain: whoever shows it escapes it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.tools.report.geometry import Histogram

if TYPE_CHECKING:
    from bokeh.plotting import figure

NOTHING = "–"
"""A cell without a value."""


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph. style: "", "muted", "note" or "good"."""

    text: str
    style: str = ""
    kind: ClassVar = "text"


@dataclasses.dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    text: str
    kind: ClassVar = "heading"


@dataclasses.dataclass(frozen=True)
class Facts:
    """Names and values."""

    rows: Sequence[tuple[str, str]]
    kind: ClassVar = "facts"


@dataclasses.dataclass(frozen=True)
class Column:
    """numeric: aligned to the right. is_text: holds texts of the corpus, so it is given room."""

    name: str
    numeric: bool = False
    is_text: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells are text; a caption says what the rows are."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    kind: ClassVar = "table"


@dataclasses.dataclass(frozen=True)
class Bar:
    """One line of a histogram in characters."""

    label: str
    count: str
    bar: str


@dataclasses.dataclass(frozen=True)
class Bars:
    """A histogram in characters, for Markdown."""

    label: str
    count_label: str
    rows: Sequence[Bar]


@dataclasses.dataclass(frozen=True)
class Plot:
    """draw: makes the plot, given the module `plots`, which imports Bokeh. description: what it
    shows, for readers who do not see it. bars: the same in characters; None where a table near it
    has the figures."""

    id: str
    caption: str
    description: str
    draw: Callable[[Any], figure]
    bars: Bars | None = None
    kind: ClassVar = "plot"


@dataclasses.dataclass(frozen=True)
class Code:
    """Code to paste."""

    title: str
    language: str
    code: str
    kind: ClassVar = "code"


Block = Text | Heading | Facts | Table | Plot | Code


@dataclasses.dataclass(frozen=True)
class Section:
    """One heading of the contents."""

    id: str
    title: str
    blocks: Sequence[Block]


@dataclasses.dataclass(frozen=True)
class Card:
    """One figure at the head of the report."""

    label: str
    value: str
    small: str = ""


MAX_BARS = 12
BAR_CHARS = 30


def bars(
    values: Histogram,
    label: str,
    count_label: str,
    form: Callable[[float], str],
    *,
    whole: bool = False,
) -> Bars:
    """A histogram in at most MAX_BARS lines. form: how an edge is written. whole: whether values
    are whole numbers, so that the last one of a line is the one before its end."""
    step = -(-len(values.counts) // MAX_BARS)
    groups = [values.counts[n : n + step] for n in range(0, len(values.counts), step)]
    counts = [sum(group) for group in groups]
    most = max([*counts, 1])
    rows = []
    for number, count in enumerate(counts):
        low = values.edges[number * step]
        high = values.edges[min((number + 1) * step, len(values.edges) - 1)] - whole
        name = form(low) if low == high else f"{form(low)} to {form(high)}"
        rows.append(Bar(name, f"{count:,}", "█" * round(BAR_CHARS * count / most)))
    return Bars(label, count_label, rows)


def cell(value: str | None) -> str:
    """A value that may be missing."""
    return NOTHING if value is None else value
