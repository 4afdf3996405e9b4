"""What a person sees: the plan, the moving figures of a run, its report. Plain lines when there is
no terminal.

Reads `Plan` and `Progress`, prints with rich; nothing here decides anything.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pydantic_core
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline.driver.plan import Plan
from pipeline.job.model_settings import NO_LIMIT
from pipeline.storage.addresses import shown
from pipeline.storage.lineage import Snapshot
from pipeline.workers.metrics import TROUBLES, Progress

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
    revision = spec.model.revision
    licence = facts["model_license"] or "no licence stated"
    limit = (
        f"at most {plan.job.max_tokens} tokens"
        if plan.job.max_tokens < NO_LIMIT
        else "texts of any length"
    )
    table.add_row(
        "input",
        f"{', '.join(map(shown, spec.input.uri))}: {facts['shards']} shards, {human(facts['input_bytes'])}",
    )
    table.add_row(
        "output",
        f"{shown(spec.output.uri)}, " + (f"snapshot {facts['head']}" if facts["head"] else "new"),
    )
    table.add_row(
        "model",
        f"{spec.model.path}{f'@{revision}' if revision else ''} ({licence}), {plan.job.engine.pooling} pooling, {limit}, "
        f"{plan.job.engine.dtype} on {plan.job.engine.device}"
        + (f", prompt {plan.job.prompt!r}" if plan.job.prompt else ""),
    )
    table.add_row("fingerprint", facts["fingerprint"])
    if plan.changed_identity:
        names = ", ".join(plan.changed_identity[:6])
        table.add_row("", f"[yellow]full re-embed: differs from the live one in {names}[/yellow]")
    table.add_row(
        "to do",
        f"about {facts['parts_todo']} parts in {facts['splits_todo']} splits, {human(facts['bytes_todo'])} of records",
    )
    table.add_row("shards", ", ".join(f"{n} {name}" for name, n in facts["shard_changes"].items()))
    table.add_row("done", f"{facts['parts_done']} parts, {facts['documents_done']} documents")
    removed = facts["documents_removed_at_most"]
    table.add_row(
        "stale",
        f"{facts['parts_stale']} parts leave the next snapshot, with {removed} documents at most",
    )
    console.print(table)
    if _restricted(plan.job.model_license):
        console.print(
            f"[yellow]The model's licence ({plan.job.model_license}) restricts its use; it is recorded in the output.[/yellow]"
        )


def report(
    console: Console, progress: Progress, uri: str, snapshot: Any, rows: Mapping[str, int]
) -> None:
    """The figures at the end of a run. rows: see `refresh.outcome`."""
    seconds = progress.summary()["seconds"]
    stages = ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
    console.print(
        f"[green]snapshot {snapshot.number}[/green] of {shown(uri)}: {snapshot.n_rows} rows from {snapshot.n_documents} "
        f"documents in {snapshot.n_files} files ({human(snapshot.size_bytes)}), {snapshot.n_rejects} rejects "
        f"{snapshot.reject_reasons or ''}"
    )
    console.print("rows: " + ", ".join(f"{n} {name}" for name, n in rows.items()))
    console.print(
        f"this run: {progress['n_documents']} documents, {progress['n_tokens']} tokens in {duration(progress.elapsed_s)} "
        f"({progress.tokens_per_s:.0f} tokens/s, {progress.padding_share:.1%} padding); worker seconds: {stages}"
    )
    if progress.busy_share is not None:
        console.print(
            f"embedders busy {progress.busy_share:.0%} of their time; the limit was: {progress.bottleneck}"
        )
    troubles = [f"{progress[name]} {words}" for name, words in TROUBLES.items() if progress[name]]
    if troubles:
        console.print(f"[yellow]recovered from: {', '.join(troubles)}[/yellow]")
    if snapshot.n_duplicate_ids:
        console.print(
            f"[yellow]{snapshot.n_duplicate_ids} document ids occur more than once; `verify` lists them[/yellow]"
        )


class Watcher:
    """Shows `Progress` while a run goes on; use as a context manager, call with (progress, notes)."""

    def __init__(self, console: Console) -> None:
        self.console, self.last = console, 0.0
        self.live = (
            Live(
                console=console,
                refresh_per_second=4,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            if console.is_terminal
            else None
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
            f"{progress.fraction:.0%}  eta={duration(progress.eta_s)} documents={progress['n_documents']} "
            f"tokens/s={progress.tokens_per_s:.0f} padding={progress.padding_share:.1%} rejects={progress['n_rejects']} "
            f"parts={progress['parts']} elapsed={duration(progress.elapsed_s)}"
        )


def _restricted(licence: str | None) -> bool:
    return licence is not None and any(
        word in licence.lower().replace("-", "") for word in ("noncommercial", "ccbync")
    )


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    text = json.dumps(value, ensure_ascii=False, indent=1, default=pydantic_core.to_jsonable_python)
    sys.stdout.write(text + "\n")


def show_fields(found: Any, as_json: bool) -> None:
    """The fields of a dataclass, a line each, or as JSON."""
    fields = dataclasses.asdict(found)
    if as_json:
        print_json(fields)
        return
    out = stdout()
    for name, value in fields.items():
        out.print(f"{name}: ", end="", style="bold")
        out.print(
            value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str),
            markup=False,
        )


def show_status(head: Snapshot | None, numbers: Sequence[int], waiting: int) -> None:
    """The newest snapshot in three lines; `waiting`: finished parts that are not in it."""
    out = stdout()
    if head is None:
        out.print(f"no snapshot yet; {waiting} parts are finished")
        return
    state = "complete" if head.complete else "partial: its run has not ended"
    out.print(
        f"snapshot {head.number} ({state}), {len(numbers)} kept, run {head.run_id}, fingerprint {head.fingerprint}"
    )
    out.print(
        f"{head.n_rows} rows, {head.n_documents} documents, {head.n_rejects} rejects {head.reject_reasons or ''}"
    )
    out.print(
        f"{head.n_files} files, {human(head.size_bytes)}, {head.n_tokens} tokens; {waiting} parts outside the head"
    )


def show_checks(checks: Sequence[Any]) -> None:
    """A line a check of `verify`."""
    for check in checks:
        stdout().print("[green]ok  [/green]" if check.ok else "[red]FAIL[/red]", end=" ")
        stdout().print(f"{check.name}: {check.detail}", markup=False)


def show_hits(hits: Sequence[Any]) -> None:
    """The hits of `search` as a table."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("score", "doc_id", "chunk", "text"):
        table.add_column(name, justify="right" if name == "score" else "left", overflow="fold")
    for hit in hits:
        text = " ".join((hit.text or "").split())[:100]
        table.add_row(f"{hit.score:.4f}", Text(hit.doc_id), str(hit.chunk), Text(text))
    stdout().print(table)


def stdout() -> Console:
    """Where answers go; wide enough not to fold when it is no terminal."""
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)
