"""The consoles that commands print on. What they print is text and never a control sequence,
wherever it comes from.

In: strings, rich's renderables. Out: lines on standard output or error. Colour comes from styles
that the code sets; whatever else a terminal would obey is escaped when it is rendered
(`pipeline/storage/printable.py`), so that no caller can forget to.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from pipeline.storage.printable import printable_lines

WIDTH = 160
"""Columns where the stream is not a terminal: wide enough not to fold lines."""


class Terminal(Console):
    """A console on standard output or error. Text is shown as it is, except for what a terminal
    would obey."""

    def __init__(self, *, stderr: bool = False, **options: Any) -> None:
        stream = sys.stderr if stderr else sys.stdout
        super().__init__(
            stderr=stderr,
            emoji=False,
            highlight=False,
            soft_wrap=True,
            width=None if stream.isatty() else WIDTH,
            **options,
        )

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """The segments of a renderable. Those with `control` are rich's own cursor movements."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable_lines(text), style, control)


def accept_any_text() -> None:
    """Let standard output and error take every character, whatever their encoding: one that it does
    not have is escaped."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")
