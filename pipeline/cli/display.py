"""How a run looks before and after: the plan and the report.

Prints `Plan`, `Progress` and `Snapshot` with rich; what a run shows while it works is in `live.py`.
Everything is a `Text` with a style: rich would take `[/INST]` of a prompt for markup. Nothing here
decides anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from pipeline.cli.terminal import facts
from pipeline.driver.planning.plan import Plan
from pipeline.job.model.settings import NO_LIMIT
from pipeline.job.resolve import Job
from pipeline.observe.progress import EMBEDDING, END, START_UP, TROUBLES, Progress
from pipeline.output.damage import DamagedShard, named
from pipeline.read.input.passed_over import sentence
from pipeline.read.preview import Preview
from pipeline.storage.addresses import shown
from pipeline.storage.lineage import Snapshot
from pipeline.storage.words import agreeing, by_name, counted, duration, human, number

WARNING = "yellow"
"""The style of what a person should look at."""
NAME_COLUMNS = 12
"""How wide the names of the facts of a plan and of its estimate are."""


def show_plan(console: Console, plan: Plan, first_records: Sequence[Preview] = ()) -> None:
    """The dry run, one fact a line."""
    summary = plan.summary()
    job = plan.job
    takeover = plan.takeover.describe()
    uris = ", ".join(map(shown, job.spec.input.uri))
    shards = f"{counted(summary['shards'], 'shard')}, {human(summary['input_bytes'])}"
    state = f"snapshot {summary['head']}" if summary["head"] else "new"
    lines = [
        ("input", f"{uris}: {shards}"),
        ("output", f"{shown(job.spec.output.uri)}, {state}"),
        ("model", _model_line(job)),
        *(
            [("engine", f"{summary['engine']}: {summary['engine_reason']}")]
            if summary["engine"]
            else []
        ),
        ("fingerprint", summary["fingerprint"]),
        ("to do", _to_do(summary)),
        ("shards", by_name(summary["shard_changes"])),
    ]
    if summary["parts_done"]:
        documents = counted(summary["documents_done"], "document")
        lines.append(("done", f"{counted(summary['parts_done'], 'part')}, {documents}"))
    if n_stale := summary["documents_removed_at_most"]:
        words = f"shards that changed or are gone held {counted(n_stale, 'document')}: "
        lines.append(("changed", f"{words}those that are still in the input stay"))
    if plan.lost:
        n_lost = len(plan.lost)
        words = f"files of {counted(n_lost, 'live part')} are gone: they are made again"
        lines.append(("", words))
    if takeover:
        lines.insert(2, ("", takeover))
    lines[1:1] = [("first record", str(entry)) for entry in first_records]
    rows = [(name, Text(fact, "" if name else WARNING)) for name, fact in lines]
    console.print(facts(rows, NAME_COLUMNS))
    show_passed_over(console, plan)
    if _restricted(job.model_license):
        _warn(
            console,
            f"The model's licence ({job.model_license}) restricts its use; it is recorded in the "
            "output.",
        )


def _to_do(summary: Mapping[str, Any]) -> str:
    """The work of a plan in words."""
    if not summary["splits_todo"]:
        return "nothing"
    parts = f"about {counted(summary['parts_todo'], 'part')}"
    splits = counted(summary["splits_todo"], "split")
    return f"{parts} in {splits}, {human(summary['bytes_todo'])} of records"


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
        have = f"{counted(n_shards, 'shard')} {agreeing(n_shards, 'has', 'have')}"
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
        limit = f"at most {counted(job.max_tokens, 'token')}"
        if model.max_tokens != "auto" and model.max_tokens > job.max_tokens:
            limit += f" (asked {number(model.max_tokens)}; the model has {number(job.max_tokens)})"
    prompt = f"prompt {job.prompt!r}" if job.prompt else "no prompt"
    source = f" ({job.prompt_source})" if job.prompt_source else ""
    return (
        f"{model.path}{revision} ({licence}), {job.engine.pooling} pooling, {limit}, "
        f"{job.engine.dtype} on {job.engine.device}, {prompt}{source}"
    )


def headline(uri: str, snapshot: Snapshot) -> Text:
    """A snapshot in one line: what a run ends with, and all that a quiet one shows."""
    line = Text(f"snapshot {snapshot.number}", "green")
    return line.append(
        f" of {shown(uri)}: {counted(snapshot.n_rows, 'row')} from "
        f"{counted(snapshot.n_documents, 'document')} in {counted(snapshot.n_files, 'file')} "
        f"({human(snapshot.size_bytes)}), {rejects_of(snapshot)}",
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
    console.print(headline(uri, snapshot))
    console.print(Text(f"rows: {by_name(rows) or 'none'}"))
    for line in _this_run(progress):
        console.print(Text(line))
    troubles = [
        counted(progress[name], *words) for name, words in TROUBLES.items() if progress[name]
    ]
    if troubles:
        _warn(console, f"recovered from: {', '.join(troubles)}")
    if snapshot.n_duplicate_ids:
        _warn(
            console,
            f"{counted(snapshot.n_duplicate_ids, 'document id')} "
            f"{agreeing(snapshot.n_duplicate_ids, 'occurs', 'occur')} more than once; `verify` "
            f"lists {agreeing(snapshot.n_duplicate_ids, 'it', 'them')}",
        )
    show_damage(console, damaged)


def _this_run(progress: Progress) -> Iterator[str]:
    """What was done and how long it took: start-up, embedding and end apart."""
    tokens = counted(progress["n_embedded_tokens"], "token")
    yield (
        f"this run: {counted(progress['n_documents'], 'document')} and {tokens} embedded in "
        f"{duration(progress.elapsed_s)}"
        if progress["parts"]
        else f"this run: nothing to embed, {duration(progress.elapsed_s)}"
    )
    phases = {
        "start-up": progress.seconds_in(*START_UP),
        "embedding": progress.seconds_in(EMBEDDING),
        "end": progress.seconds_in(*END),
    }
    if any(phases.values()):
        words = [f"{name} {seconds:.1f} s" for name, seconds in phases.items() if seconds]
        if phases["embedding"]:
            words[-1 - bool(phases["end"])] += f" at {number(progress.tokens_per_s)} tokens/s"
        yield f"  {', '.join(words)}"
    stages = {name: seconds for name, seconds in progress.stage_seconds.items() if seconds >= 0.05}
    if stages:
        yield "  worker seconds: " + ", ".join(f"{name} {s:.1f}" for name, s in stages.items())
    if progress.busy_share is not None:
        seconds = phases.get(progress.bottleneck or "", 0.0)
        took = f", {seconds:.1f} s" if seconds else ""
        yield (
            f"  embedders busy {progress.busy_share:.0%} of their time; "
            f"bottleneck: {progress.bottleneck}{took}"
        )


def show_damage(console: Console, damaged: Sequence[DamagedShard]) -> None:
    """One line about the shards that could not be read to their end, if there are any."""
    if damaged:
        shards = counted(len(damaged), "damaged shard")
        _warn(console, f"{shards}, of which this could not be read: {named(damaged)}")


def rejects_of(snapshot: Snapshot) -> str:
    """The rejects of a snapshot: their number, then each reason with its own."""
    reasons = by_name(snapshot.reject_reasons)
    return counted(snapshot.n_rejects, "reject") + (f" ({reasons})" if reasons else "")


def _restricted(licence: str | None) -> bool:
    plain = (licence or "").lower().replace("-", "")
    return "noncommercial" in plain or "ccbync" in plain
