"""What a run shows while it works: a bar and a few lines that are drawn again, plain lines where
nothing can be drawn again, or JSON lines for programs.

In: the `Progress` of a run and notes. Out: text on standard error, or in a file. The drawing is
rich's, the figures are those of `pipeline/observe/figures.py`. All text is `Text` without markup:
reasons and notes quote data. Cost: four drawings a second, a line in ten seconds, or one a second.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

from pipeline.cli.display import WARNING
from pipeline.errors import SpecError
from pipeline.observe.figures import figures
from pipeline.observe.live_record import LiveRun
from pipeline.observe.progress import DONE, EMBEDDING, PLANNING, Progress
from pipeline.storage.printable import printable
from pipeline.storage.words import by_name, counted, duration, number, short

PLAIN_SECONDS = 10.0
"""Seconds between two lines where the output is not a terminal that can be redrawn."""
JSON_SECONDS = 1.0
"""Seconds between two JSON lines."""
MODES = ("auto", "plain", "json")
"""What `--progress` takes; `json:FILE` writes to a file."""


class Watcher:
    """Shows the `Progress` of a run: a context manager that is called with (progress, notes).

    mode: one of MODES, or `json:FILE`. Raises SpecError for another mode, and for a FILE that
    cannot be opened.
    """

    def __init__(self, console: Console, mode: str = "auto") -> None:
        kind, _, file = mode.partition(":")
        if kind not in MODES or (file and kind != "json"):
            raise SpecError(f"--progress {mode}: this is none of {', '.join(MODES)} and json:FILE")
        self.console = console
        self._stack = contextlib.ExitStack()
        self._stream = console.file
        self._lines: IO[str] | None = None
        self._printed_s = -PLAIN_SECONDS
        self._phase = ""
        self._view: _View | None = None
        if file:
            try:
                lines = Path(file).open("a", encoding="utf-8")  # noqa: SIM115 - closed with the stack
            except OSError as error:
                raise SpecError(f"--progress {mode}: {error.strerror}") from None
            self._lines = self._stack.enter_context(lines)
        elif kind == "json":
            self._lines = self._stream
        can_redraw = kind == "auto" or bool(file)
        if (
            can_redraw
            and not console.quiet
            and console.is_terminal
            and not console.is_dumb_terminal
            and not os.environ.get("CI")
        ):
            self._view = _View(console)

    @property
    def is_alone(self) -> bool:
        """Whether JSON lines take the place of all other messages."""
        return self._lines is not None and self._lines is self._stream

    def __enter__(self) -> Self:
        if self._view:
            self._stack.enter_context(_own_stream(self.console))
            self._stack.enter_context(self._view)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __call__(self, progress: Progress, notes: Sequence[str]) -> None:
        now_s = time.monotonic()
        has_changed = progress.phase != self._phase
        self._phase = progress.phase
        if self._lines:
            if has_changed or notes or now_s - self._printed_s >= JSON_SECONDS:
                self._printed_s = now_s
                self._lines.write(json_line(progress, notes) + "\n")
                self._lines.flush()
            if self.is_alone:
                return
        for note in notes:
            self.console.print(Text(note, WARNING))
        if self._view:
            self._view.progress = progress
        elif progress.phase == DONE:
            return
        elif has_changed or now_s - self._printed_s > PLAIN_SECONDS:
            self._printed_s = now_s
            self.console.print(Text(plain_line(figures(progress))))


def json_line(progress: Progress, notes: Sequence[str] = ()) -> str:
    """One line of `--progress json`, in ASCII: the figures, the time and the notes."""
    moment = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    return json.dumps({"time": moment, **figures(progress), "notes": list(notes)})


def plain_line(facts: Mapping[str, Any]) -> str:
    """Figures in one line."""
    head = f"{facts['phase']}, {duration(facts['elapsed_s'])}"
    if facts["phase"] != EMBEDDING:
        return f"{head} …"
    words = [f"{facts['fraction']:.0%}", *pieces(facts)]
    if facts["eta_s"] is not None:
        words.insert(1, f"{duration(facts['eta_s'])} left")
    return f"{head}: {' · '.join(words)}"


def pieces(facts: Mapping[str, Any]) -> list[str]:
    """Figures of the embedding in words, the most important first."""
    words = [
        counted(facts["documents"], "document"),
        f"{short(facts['tokens'])} tokens",
        f"{short(facts['tokens_per_s'])} tokens/s",
        counted(facts["parts"], "part"),
    ]
    if facts["reused"]:
        words.append(f"{counted(facts['reused'], 'row')} reused")
    if facts["rejects"]:
        rejects = f"{counted(facts['rejects'], 'reject')} ({by_name(facts['reject_reasons'])})"
        words.append(rejects)
    if facts["padding_share"] >= 0.001:
        words.append(f"{facts['padding_share']:.1%} padding")
    if facts["waits"]:
        words.append(facts["waits"])
    if facts["workers"]:
        words.append(f"workers: {by_name(facts['workers'])}")
    if rates := facts["tokens_per_stage_second"]:
        stages = ", ".join(f"{stage} {short(rate)}" for stage, rate in rates.items())
        words.append(f"tokens/s of a worker: {stages}")
    if facts["retries"]:
        words.append(f"{number(facts['retries'])} requests tried again")
    return words


def show_live_runs(console: Console, runs: Sequence[LiveRun]) -> None:
    """What runs say of themselves that work on an output, for another terminal or node."""
    for run in runs:
        place = f"on {run.host}, process {run.process}, since {run.since}"
        if run.is_silent:
            words = f"run {run.run_id} of job '{run.job}' is silent for {duration(run.silent_s)}"
            console.print(Text(printable(f"{words} ({place}): it has probably died"), WARNING))
            continue
        console.print(Text(printable(f"run {run.run_id} of job '{run.job}' works {place}")))
        try:
            line = plain_line(run.figures)
        except (KeyError, TypeError, ValueError, AttributeError):  # of another release
            line = run.figures["phase"]
        console.print(Text(printable(f"  {line} (seen {duration(run.silent_s)} ago)")))


def in_lines(words: Iterable[str], width: int) -> list[str]:
    """Words joined by dots, as many on a line as fit."""
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + 3 + len(word) <= width:
            lines[-1] += f" · {word}"
        else:
            lines.append(word)
    return lines


class _View(Bar):
    """The lines that are drawn again: phase, bar, share and times; below them the figures."""

    def __init__(self, console: Console) -> None:
        self.progress: Progress | None = None
        self._terminal = console
        super().__init__(
            TextColumn("{task.fields[phase]}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[times]}", markup=False),
            console=console,
            expand=True,
            refresh_per_second=4,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._id: TaskID = self.add_task("", total=None, phase=PLANNING, times="")

    def get_renderables(self) -> Iterable[RenderableType]:
        words: list[str] = []
        if self.progress is not None:
            facts = figures(self.progress)
            times = duration(facts["elapsed_s"])
            if facts["phase"] == EMBEDDING:
                left = "" if facts["eta_s"] is None else f", {duration(facts['eta_s'])} left"
                times = f"{facts['fraction']:.0%} {times}{left}"
                words = pieces(facts)
            task = self._tasks[self._id]  # not `update`, which would draw
            task.fields.update(phase=facts["phase"], times=times)
            task.total = 1.0 if facts["phase"] == EMBEDDING else None
            task.completed = facts["fraction"]
        yield self.make_tasks_table(self.tasks)
        for line in in_lines(words, self._terminal.width - 2):
            yield Text(f"  {line}", no_wrap=True, overflow="ellipsis")


@contextlib.contextmanager
def _own_stream(console: Console) -> Any:
    """Lets a console write to the terminal also while descriptor 2 is Ray's log."""
    stream = console.file
    try:
        encoding = getattr(stream, "encoding", None)
        own = os.fdopen(os.dup(stream.fileno()), "w", encoding=encoding, errors="backslashreplace")
    except (OSError, ValueError, AttributeError):  # it is no file
        yield
        return
    console.file = own
    try:
        yield
    finally:
        console.file = None  # type: ignore[assignment]
        own.close()
