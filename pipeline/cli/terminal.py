"""The consoles that commands print on. What they print is text and never a control sequence,
wherever it comes from.

In: strings, rich's renderables. Out: lines on standard output or error. Colour comes from styles
that the code sets; whatever else a terminal would obey is escaped when it is rendered
(`pipeline/storage/printable.py`), so that no caller can forget to.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable
from typing import IO, Any, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from pipeline.storage.printable import printable_lines

WIDTH = 1 << 16
"""Columns where the stream is not a terminal: a line is never folded there."""


def facts(rows: Iterable[tuple[str, Text]], name_columns: int = 0) -> Table:
    """A table of named facts, one a row. name_columns: how wide the names are at least."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(min_width=name_columns)
    table.add_column(overflow="fold")
    for name, fact in rows:
        table.add_row(name, fact)
    return table


class Terminal(Console):
    """A console on standard output or error. Text is shown as it is, without markup, except for
    what a terminal would obey. An answer that standard output does not take is an error; a message
    that standard error does not take (its disk is full, its reader is gone) is lost, and whatever
    it is about goes on."""

    def __init__(self, *, stderr: bool = False, **options: Any) -> None:
        stream = sys.stderr if stderr else sys.stdout
        super().__init__(
            stderr=stderr,
            emoji=False,
            markup=False,
            highlight=False,
            soft_wrap=True,
            width=None if stream.isatty() else WIDTH,
            **options,
        )

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich prints; but where no terminal shows it, a table is not filled up with blanks."""
        if self.is_terminal or not any(isinstance(entry, Table) for entry in objects):
            super().print(*objects, **options)
            return
        with self.capture() as captured:
            super().print(*objects, **options)
        lines = captured.get().splitlines()
        super().print(Text("\n".join(line.rstrip() for line in lines)))

    @property
    def file(self) -> IO[str]:
        """Where lines go."""
        stream = super().file
        return cast(IO[str], _Patient(stream)) if self.stderr else stream

    @file.setter
    def file(self, new_file: IO[str]) -> None:
        self._file = new_file

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """The segments of a renderable. Those with `control` are rich's own cursor movements."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable_lines(text), style, control)

    def on_broken_pipe(self) -> None:
        """The reader of standard output has all it wants: `main` knows what that means, where rich
        would end the process by itself."""
        raise BrokenPipeError


class _Patient:
    """A stream that loses what it cannot write."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):  # ValueError: it is closed
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


def accept_any_text() -> None:
    """Let standard output and error take every character, whatever their encoding: one that it does
    not have is escaped."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")
