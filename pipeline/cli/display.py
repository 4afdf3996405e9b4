"""How a run looks: the plan, the progress and the report.

Prints `Plan`, `Progress` and `Snapshot` with rich, as plain lines when the output is not a
terminal. Everything is a `Text` with a style: rich would take `[/INST]` of a prompt for markup.
Nothing here decides anything.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline.driver.plan import Plan
from pipeline.job.model.settings import NO_LIMIT
from pipeline.job.resolve import Job
from pipeline.observe.progress import TROUBLES, Progress
from pipeline.output.damage import DamagedShard, named
from pipeline.read.input.passed_over import sentence
from pipeline.read.preview import Preview
from pipeline.storage.addresses import shown
from pipeline.storage.lineage import Snapshot

WARNING = "yellow"
"""The style of what a person should look at."""

PLAIN_SECONDS = 10.0
"""Seconds between two progress lines when the output is not a terminal that can be redrawn."""


def human(n_bytes: float) -> str:
    """A number of bytes for people: 1536 ─► '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(n_bytes) < 1024 or unit == "TiB":
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    raise AssertionError("unreachable")


def duration(seconds: float | None) -> str:
    """A number of seconds for people: 75 ─► '1:15'; None ─► '-'."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def show_plan(console: Console, plan: Plan, first_records: Sequence[Preview] = ()) -> None:
    """The dry run, one fact a line."""
    facts = plan.summary()
    job = plan.job
    takeover = plan.takeover.describe()
    lines = [
        (
            "input",
            f"{', '.join(map(shown, job.spec.input.uri))}: "
            f"{facts['shards']} shards, {human(facts['input_bytes'])}",
        ),
        (
            "output",
            f"{shown(job.spec.output.uri)}, "
            + (f"snapshot {facts['head']}" if facts["head"] else "new"),
        ),
        ("model", _model_line(job)),
        ("fingerprint", facts["fingerprint"]),
        (
            "to do",
            f"about {facts['parts_todo']} parts in {facts['splits_todo']} splits, "
            f"{human(facts['bytes_todo'])} of records",
        ),
        ("shards", ", ".join(f"{n} {name}" for name, n in facts["shard_changes"].items())),
        ("done", f"{facts['parts_done']} parts, {facts['documents_done']} documents"),
        (
            "stale",
            f"{facts['parts_stale']} parts drop out of the next snapshot, "
            f"with at most {facts['documents_removed_at_most']} documents",
        ),
    ]
    if plan.lost:
        lines.append(("", f"files of {len(plan.lost)} live parts are gone: they are made anew"))
    if takeover:
        lines.insert(2, ("", takeover))
    lines[1:1] = [("first record", str(entry)) for entry in first_records]
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, fact in lines:
        table.add_row(name, Text(fact, "" if name else WARNING))
    console.print(table)
    show_passed_over(console, plan)
    if _restricted(job.model_license):
        _warn(
            console,
            f"The model's licence ({job.model_license}) restricts its use; it is recorded in the "
            "output.",
        )


def _warn(console: Console, text: str) -> None:
    console.print(Text(text, WARNING))


def show_passed_over(console: Console, plan: Plan) -> None:
    """What of the input is not read, for the plan and once more for the end of a run."""
    for line in _left_out(plan):
        _warn(console, line)


def _left_out(plan: Plan) -> list[str]:
    """What the listing passes over, and what it cannot tell, a line each."""
    lines = []
    if plan.passed_over:
        lines.append(f"objects passed over: {sentence(plan.passed_over)}")
    if plan.unversioned:
        n_shards = len(plan.unversioned)
        have = "1 shard has" if n_shards == 1 else f"{n_shards} shards have"
        lines.append(
            f"{have} no version, because the server sends neither ETag nor Last-Modified "
            f"(first: {shown(plan.unversioned[0].uri)}): a change that keeps the size is not seen"
        )
    return lines


def _model_line(job: Job) -> str:
    """Model, licence, pooling, limit, dtype, device and prompt in one line."""
    model = job.spec.model
    revision = f"@{model.revision}" if model.revision else ""
    licence = job.model_license or "no licence stated"
    limit = "texts of any length"
    if job.max_tokens < NO_LIMIT:
        limit = f"at most {job.max_tokens} tokens"
        if model.max_tokens != "auto" and model.max_tokens > job.max_tokens:
            limit += f" (asked {model.max_tokens}; the model has {job.max_tokens})"
    prompt = f", prompt {job.prompt!r} ({job.prompt_source})" if job.prompt else ", no prompt"
    return (
        f"{model.path}{revision} ({licence}), {job.engine.pooling} pooling, {limit}, "
        f"{job.engine.dtype} on {job.engine.device}{prompt}"
    )


def headline(uri: str, snapshot: Snapshot) -> Text:
    """A snapshot in one line: what a run ends with, and all that a quiet one shows."""
    line = Text(f"snapshot {snapshot.number}", "green")
    return line.append(
        f" of {shown(uri)}: {snapshot.n_rows} rows from {snapshot.n_documents} documents in "
        f"{snapshot.n_files} files ({human(snapshot.size_bytes)}), {snapshot.n_rejects} rejects "
        f"{snapshot.reject_reasons or ''}",
        "default",
    )


def report(
    console: Console,
    progress: Progress,
    uri: str,
    snapshot: Snapshot,
    rows: Mapping[str, int],
    damaged: Sequence[DamagedShard] = (),
) -> None:
    """The figures at the end of a run. rows: number of rows by outcome, see `tally.row_counts`.
    damaged: the shards that could not be read to their end."""
    stages = progress.summary()["seconds"].items()
    console.print(headline(uri, snapshot))
    console.print(Text("rows: " + ", ".join(f"{n} {name}" for name, n in rows.items())))
    console.print(
        Text(
            f"this run: {progress['n_documents']} documents, {progress['n_tokens']} tokens "
            f"in {duration(progress.elapsed_s)} ({progress.tokens_per_s:.0f} tokens/s, "
            f"{progress.padding_share:.1%} padding); worker seconds: "
            + ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in stages)
        )
    )
    if progress.busy_share is not None:
        console.print(
            Text(
                f"embedders busy {progress.busy_share:.0%} of their time; "
                f"bottleneck: {progress.bottleneck}"
            )
        )
    troubles = [f"{progress[name]} {words}" for name, words in TROUBLES.items() if progress[name]]
    if troubles:
        _warn(console, f"recovered from: {', '.join(troubles)}")
    if snapshot.n_duplicate_ids:
        _warn(
            console,
            f"{snapshot.n_duplicate_ids} document ids occur more than once; `verify` lists them",
        )
    show_damage(console, damaged)


def show_damage(console: Console, damaged: Sequence[DamagedShard]) -> None:
    """One line about the shards that could not be read to their end, if there are any."""
    if damaged:
        text = f"{len(damaged)} damaged shards, of which this could not be read: {named(damaged)}"
        _warn(console, text)


class Watcher:
    """Shows the `Progress` of a run: a context manager that is called with (progress, notes)."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.printed_at = 0.0
        self.live: Live | None = None
        if console.is_terminal:
            self.live = Live(
                console=console,
                refresh_per_second=4,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
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
            _warn(self.console, note)
        if self.live:
            self.live.update(Text(self._line(progress)))
        elif time.monotonic() - self.printed_at > PLAIN_SECONDS:
            self.printed_at = time.monotonic()
            self.console.print(Text(self._line(progress)))

    @staticmethod
    def _line(progress: Progress) -> str:
        if not progress["parts"]:
            return f"starting workers and loading the model … {duration(progress.elapsed_s)}"
        return (
            f"{progress.fraction:.0%}  eta={duration(progress.eta_s)} "
            f"documents={progress['n_documents']} tokens/s={progress.tokens_per_s:.0f} "
            f"padding={progress.padding_share:.1%} rejects={progress['n_rejects']} "
            f"parts={progress['parts']} elapsed={duration(progress.elapsed_s)}"
        )


def _restricted(licence: str | None) -> bool:
    return licence is not None and any(
        word in licence.lower().replace("-", "") for word in ("noncommercial", "ccbync")
    )
