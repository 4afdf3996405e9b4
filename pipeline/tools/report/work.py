"""The sections on the runs: snapshots, throughput, where the time went, estimate against truth."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.observe.progress import TROUBLES
from pipeline.storage.words import counted, duration, number
from pipeline.tools.report.attempts import Attempt, Version
from pipeline.tools.report.blocks import (
    NOTHING,
    Block,
    Column,
    Facts,
    Plot,
    Section,
    Table,
    Text,
)
from pipeline.tools.report.findings import Findings, is_number

KINDS = ("carried", "reused", "embedded", "removed")


def snapshots(f: Findings) -> Section:
    return Section("snapshots", "Snapshots", list(_snapshots(f)))


def _snapshots(f: Findings) -> Iterator[Block]:
    yield Text(
        "Carried rows are in parts that stayed as they were. Reused rows were read again and took "
        "the vector of an earlier run with the same text. Only embedded rows went through the "
        "model."
    )
    recorded = [version for version in f.versions if version.attempt]
    if recorded:
        newest = recorded[0]
        yield Plot(
            "versions",
            f"Rows of {counted(len(recorded), 'snapshot')} by where they came from.",
            f"Stacked bars for each snapshot. Snapshot {newest.snapshot.number}: "
            + ", ".join(f"{_count(newest, kind)} {kind}" for kind in KINDS[:3]),
            draw=lambda plots: plots.versions_plot(f.versions),
        )
    columns = ["snapshot", "scheduled for", *KINDS, "rejected", "rows", "took", "tokens/s"]
    yield Table(
        "Kept snapshots, the newest first. Without a record of a run (a compaction, or a snapshot "
        "of an unfinished run), only the number of rows is known.",
        [
            Column(columns[0]),
            Column(columns[1]),
            *(Column(name, numeric=True) for name in columns[2:]),
        ],
        [_row(version) for version in f.versions],
    )


def _row(version: Version) -> list[str]:
    head = version.snapshot
    attempt = version.attempt
    time = head.nominal_time
    return [
        f"{head.number}{'' if head.complete else ' (partial)'}",
        time.strftime("%Y-%m-%d %H:%M") if time else NOTHING,
        *(_count(version, kind) for kind in KINDS),
        number(head.n_rejects),
        number(head.n_rows),
        duration(attempt.counts.elapsed_s) if attempt else NOTHING,
        number(attempt.counts.tokens_per_s) if attempt else NOTHING,
    ]


def _count(version: Version, kind: str) -> str:
    count = version.rows(kind)
    return NOTHING if count is None else number(count)


def throughput(f: Findings) -> Section:
    return Section("throughput", "Throughput over time", list(_throughput(f)))


def _throughput(f: Findings) -> Iterator[Block]:
    version = f.embedding
    if version is None or version.attempt is None:
        yield Text("No kept snapshot has a record of a run that embedded anything.", "muted")
        return
    counts = version.attempt.counts
    embedding = counts.embedding_tokens_per_s
    yield Text(
        f"The run of snapshot {version.snapshot.number} put "
        f"{counted(counts.n_embedded_tokens, 'token')} through the model in "
        f"{duration(counts.elapsed_s)}: {number(counts.tokens_per_s)} tokens a second, start-up "
        f"and end included{f'; {number(embedding)} a second while embedding' if embedding else ''}."
    )
    line = f.timeline
    if line is None:
        yield Text("When its parts were finished is not known any more.", "muted")
        return
    yield Plot(
        "timeline",
        f"Tokens embedded by {counted(line.n_parts, 'part')} of that run, by the time at which the "
        "store says that each was finished. The steeper the line, the higher the throughput. A "
        "copied output has the times of its copy.",
        "A rising line: " + "; ".join(f"{duration(s)} {name}" for name, s in line.stretches),
        draw=lambda plots: plots.timeline_plot(line),
    )
    between = line.stretches[1][1]
    rows = [(f"{name[0].upper()}{name[1:]}", duration(s)) for name, s in line.stretches]
    later = line.points[-1][1] - (line.points[1][1] if len(line.points) > 1 else 0)
    if between > 0 and later:
        rows.append(("Between these parts", f"{number(later / between)} tokens a second"))
    yield Facts(rows)


def time_by_stage(f: Findings) -> Section:
    return Section("time", "Where the time went", list(_time(f)))


def _time(f: Findings) -> Iterator[Block]:
    version = f.embedding
    if version is None or version.attempt is None:
        yield Text("No kept snapshot has a record of a run that embedded anything.", "muted")
        return
    yield Facts(_run_facts(version.attempt))
    if f.stages:
        yield from _stages(f, version)


def _stages(f: Findings, version: Version) -> Iterator[Block]:
    total = sum(stage.seconds for stage in f.stages) or 1.0
    busiest = max(f.stages, key=lambda stage: stage.seconds)
    yield Text(
        f"Seconds of all workers of the run of snapshot {version.snapshot.number} together, so "
        "they add up to more than the wall time where several worked side by side. Loading the "
        "model and starting workers is in none of them."
    )
    yield Plot(
        "stages",
        f"Most of the workers' time went into {busiest.name.replace('_', ' ')}. Grey bars are "
        "waits.",
        "Bars: " + ", ".join(f"{s.name} {s.seconds:,.1f} seconds" for s in f.stages),
        draw=lambda plots: plots.stages_plot(f.stages),
    )
    yield Table(
        "Worker seconds by stage.",
        [
            Column("stage"),
            Column("seconds", numeric=True),
            Column("share", numeric=True),
            Column("what"),
        ],
        [
            [s.name.replace("_", " "), f"{s.seconds:,.1f}", f"{s.seconds / total:.1%}", s.meaning]
            for s in f.stages
        ],
    )


def _run_facts(attempt: Attempt) -> list[tuple[str, str]]:
    counts = attempt.counts
    hardware = attempt.hardware
    facts = [("Wall time", duration(counts.elapsed_s))]
    phases = {
        "Start-up": counts.start_up_s,
        "Embedding": counts.embedding_s,
        "End": counts.end_s,
    }
    facts += [(name, duration(s)) for name, s in phases.items() if s is not None]
    if counts.busy_share is not None:
        facts.append(("Embedders busy", f"{counts.busy_share:.0%} of their time"))
    if counts.bottleneck:
        facts.append(("Bottleneck", counts.bottleneck))
    parts = [f"device {hardware['device']}"] if "device" in hardware else []
    for name in ("CPU", "GPU"):
        if is_number(hardware.get(name)):
            parts.append(counted(int(hardware[name]), name))
    facts.append(("Hardware", ", ".join(parts) or NOTHING))
    troubles = [
        f"{number(n)} {words}" for name, words in TROUBLES.items() if (n := getattr(counts, name))
    ]
    facts.append(("Recovered from", "; ".join(troubles) or "nothing: there was no trouble"))
    names = ("corpus-embed", "ray", "torch", "transformers", "sentence-transformers")
    versions = [f"{name} {attempt.versions[name]}" for name in names if attempt.versions.get(name)]
    facts.append(("Versions", ", ".join(versions) or NOTHING))
    return facts


def estimate(f: Findings) -> Section | None:
    """None where the run recorded no estimate."""
    if not f.compared:
        return None
    rows = [
        [one.name.replace("_", " "), _value(one.estimate), _value(one.truth), _error(one.error)]
        for one in f.compared
    ]
    columns = [
        Column("figure"),
        *(Column(n, numeric=True) for n in ("estimate", "truth", "off by")),
    ]
    caption = "What was estimated before the newest run, and what it came to."
    return Section("estimate", "Estimate and truth", [Table(caption, columns, rows)])


def _value(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return number(value) if abs(value) >= 100 or value == int(value) else f"{value:,.2f}"


def _error(error: float | None) -> str:
    return NOTHING if error is None else f"{error:+.0%}"
