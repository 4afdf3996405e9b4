"""What a person sees: the plan, the moving figures of a run, its report. Plain lines when there is no terminal.

Reads `Plan` and `Progress`, prints with rich; nothing here decides anything.
"""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from pipeline.metrics import Progress
from pipeline.plan import Plan
from pipeline.storage import shown

PLAIN_SECONDS = 10.0
"""Seconds between two lines where there is no terminal to redraw."""


def human(n_bytes: float) -> str:
    """1536 ─► '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(n_bytes) < 1024 or unit == "TiB":
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    raise AssertionError("unreachable")


def duration(seconds: float | None) -> str:
    """75 ─► '1:15'; None ─► '-'."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def show_plan(console: Console, plan: Plan) -> None:
    """The dry run, a line a fact."""
    facts, spec = plan.summary(), plan.job.spec
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    licence = facts["model_license"] or "no licence stated"
    limit = f"at most {plan.job.max_tokens} tokens"
    table.add_row(
        "input",
        f"{', '.join(map(shown, spec.input.uri))}: {facts['shards']} shards, {human(facts['input_bytes'])}",
    )
    table.add_row(
        "output", f"{shown(spec.output.uri)}, " + (f"snapshot {facts['head']}" if facts["head"] else "new")
    )
    table.add_row(
        "model",
        f"{spec.model.path} ({licence}), {plan.job.pooling} pooling, {limit}, {plan.job.dtype} on {plan.job.device}",
    )
    table.add_row("fingerprint", facts["fingerprint"])
    if plan.changed_identity:
        names = ", ".join(plan.changed_identity[:6])
        table.add_row(
            "", f"[yellow]differs from the live one in {names}: everything is embedded again[/yellow]"
        )
    table.add_row(
        "to do",
        f"about {facts['parts_todo']} parts in {facts['splits_todo']} splits, {human(facts['bytes_todo'])} of records",
    )
    table.add_row("done", f"{facts['parts_done']} parts, {facts['documents_done']} documents")
    table.add_row("stale", f"{facts['parts_stale']} parts leave the next snapshot")
    console.print(table)
    if _restricted(plan.job.model_license):
        console.print(
            f"[yellow]The model's licence ({plan.job.model_license}) restricts its use; it is recorded in the output.[/yellow]"
        )


def report(console: Console, progress: Progress, uri: str, snapshot: Any) -> None:
    """The figures at the end of a run."""
    seconds = progress.summary()["seconds"]
    stages = ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
    console.print(
        f"[green]snapshot {snapshot.number}[/green] of {shown(uri)}: {snapshot.n_rows} rows from {snapshot.n_documents} "
        f"documents in {snapshot.n_files} files ({human(snapshot.size_bytes)}), {snapshot.n_rejects} rejects {snapshot.reject_reasons or ''}"
    )
    console.print(
        f"this run: {progress['n_documents']} documents, {progress['n_tokens']} tokens in {duration(progress.elapsed_s)} "
        f"({progress.tokens_per_s:.0f} tokens/s, {progress.padding_share:.1%} padding); worker seconds: {stages}"
    )
    if snapshot.n_duplicate_ids:
        console.print(
            f"[yellow]{snapshot.n_duplicate_ids} document ids occur more than once; `verify` lists them[/yellow]"
        )


class Watcher:
    """Shows `Progress` while a run goes on; use as a context manager, call with (progress, notes)."""

    def __init__(self, console: Console) -> None:
        self.console, self.last = console, 0.0
        self.live = (
            Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        )

    def __enter__(self) -> Watcher:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def __call__(self, progress: Progress, notes: list[str]) -> None:
        for note in notes:
            self.console.print(f"[yellow]{note}[/yellow]")
        if self.live:
            self.live.update(self._line(progress))
        elif time.monotonic() - self.last > PLAIN_SECONDS:
            self.last = time.monotonic()
            self.console.print(self._line(progress))

    @staticmethod
    def _line(progress: Progress) -> str:
        if not progress["parts"]:
            return f"starting workers and loading the model … {duration(progress.elapsed_s)}"
        return (
            f"{progress.fraction:.0%}  parts={progress['parts']} documents={progress['n_documents']} "
            f"tokens/s={progress.tokens_per_s:.0f} padding={progress.padding_share:.1%} rejects={progress['n_rejects']} "
            f"elapsed={duration(progress.elapsed_s)} eta={duration(progress.eta_s)}"
        )


def _restricted(licence: str | None) -> bool:
    return licence is not None and any(
        word in licence.lower().replace("-", "") for word in ("noncommercial", "ccbync")
    )
