"""Text of strangers as Markdown and YAML show it: as it is, and never as markup.

Names of columns, prompts, URIs and licences come from inputs, models and people. In a card they
stand in code spans, which neither Markdown nor HTML reads any further.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import yaml

from pipeline.storage.printable import printable

MAX_SHOWN = 400
"""How many characters of one value a card shows."""


def code(text: str) -> str:
    """A value as a code span on one line, safe in a table, too. An empty one is said in words."""
    line = printable(text)
    if len(line) > MAX_SHOWN:
        line = f"{line[:MAX_SHOWN]}…"
    if not line.strip():
        return f"({len(line)} blanks)" if line else "(empty)"
    fence = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    blank = " " if line[0] in "` " or line[-1] in "` " else ""
    # a table ends its cell at "|" in a code span, too, unless it is escaped
    return f"{fence}{blank}{line}{blank}{fence}".replace("|", "\\|")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def front_matter(fields: dict[str, Any]) -> str:
    """The YAML block at the head of a card."""
    text = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=1 << 20)
    return f"---\n{text}---"
