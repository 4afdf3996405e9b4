"""The sections on the input: shards by state, lengths and padding, rejects with examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.storage.addresses import shown
from pipeline.storage.schema import REASONS
from pipeline.storage.words import agreeing, counted, human, number
from pipeline.tools.report.blocks import (
    NOTHING,
    Block,
    Column,
    Facts,
    Heading,
    Plot,
    Section,
    Table,
    Text,
    bars,
    cell,
)
from pipeline.tools.report.findings import Findings
from pipeline.tools.report.sample import HEAD_CHARS

MAX_DAMAGED = 20


def shards(f: Findings) -> Section:
    return Section("shards", "Shards", list(_shards(f)))


def _shards(f: Findings) -> Iterator[Block]:
    before = f.shards.compared_with
    yield Text(
        "No earlier snapshot of another run is kept, so every shard counts as new."
        if before is None
        else f"Compared with snapshot {before}, the newest earlier one of another run."
    )
    columns = ["state", "shards", "stored size", "what", "the first of them"]
    yield Table(
        "Shards of the input by state.",
        [
            Column(name, name in ("shards", "stored size"), is_text=name == columns[-1])
            for name in columns
        ],
        [
            [
                s.name,
                number(s.count),
                human(s.size_bytes),
                s.meaning,
                ", ".join(s.examples) or NOTHING,
            ]
            for s in f.shards.states
        ],
    )
    damaged = f.shards.damaged
    if damaged:
        yield Table(
            f"{counted(len(damaged), 'shard')} could not be read to the end.",
            [
                Column("damaged shard", is_text=True),
                Column("stored size", True),
                Column("lost", True),
            ],
            [
                [
                    shown(shard.uri),
                    human(shard.size_bytes),
                    human(shard.lost_bytes) if shard.lost_bytes else "unknown",
                ]
                for shard in damaged[:MAX_DAMAGED]
            ],
        )
    else:
        yield Text("No shard is damaged.", "good")
    latest = f.versions[0].attempt
    if latest and latest.shards.passed_over:
        passed = ", ".join(f"{number(n)} {why}" for why, n in latest.shards.passed_over.items())
        yield Text(f"The listing passed over: {passed}.", "muted")


def lengths(f: Findings) -> Section:
    return Section("lengths", "Lengths and padding", list(_lengths(f)))


def _lengths(f: Findings) -> Iterator[Block]:
    head = f.loaded.snapshot
    truncated = f.totals["n_truncated"]
    mean = head.n_tokens / head.n_rows if head.n_rows else 0
    yield Facts(
        [
            ("Tokens a row", f"{mean:,.1f} on average, at most {number(f.model.max_tokens)}"),
            (
                "Cut texts",
                f"{counted(truncated, 'row')} ({truncated / max(1, head.n_rows):.1%}) had more "
                "tokens than the model was given",
            ),
            ("Padding", _padding(f)),
        ]
    )
    if f.sample.rows:
        form = "{:,.0f}".format
        yield Plot(
            "lengths",
            f"Tokens of {_of_sample(f)}, special tokens and prompt included.",
            "A histogram; the table of the Markdown report has its figures.",
            draw=lambda plots: plots.histogram_plot(f.lengths, "tokens", "rows", "0,0"),
            bars=bars(f.lengths, "tokens", "rows", form, whole=True),
        )


def _padding(f: Findings) -> str:
    if f.padding_share is None:
        return "not recorded"
    tokens = counted(f.totals["n_embedded_tokens"], "token")
    reused = counted(f.totals["n_reused"], "row")
    share = f"{f.padding_share:.2%} of all" if f.padding_share else "none"
    return f"{share}, with {tokens} through the model; {reused} took a stored vector"


def _of_sample(f: Findings) -> str:
    n_rows = len(f.sample.rows)
    whole = "all " if f.sample.is_whole else "a sample of "
    return whole + counted(n_rows, "row")


def rejects(f: Findings) -> Section:
    return Section("rejects", "Rejects", list(_rejects(f)))


def _rejects(f: Findings) -> Iterator[Block]:
    head = f.loaded.snapshot
    if not head.n_rejects:
        yield Text(f"None: all {counted(head.n_records, 'record')} became rows.", "good")
        return
    yield Text(
        f"{counted(head.n_rejects, 'record')} of {number(head.n_records)} "
        f"({head.n_rejects / head.n_records:.2%}) {agreeing(head.n_rejects, 'is', 'are')} in the "
        "rejects and not in the data. Nothing is dropped silently."
    )
    yield Table(
        "Rejected records by reason.",
        [Column("reason"), Column("records", True), Column("share", True), Column("meaning")],
        [
            [name, number(count), f"{count / head.n_rejects:.1%}", REASONS[name]]
            for name, count in f.rejects.counts.items()
        ],
    )
    yield Heading("Examples")
    columns = [Column("reason"), Column("record", is_text=True), Column("detail", is_text=True)]
    examples = f.rejects.examples.to_pylist()
    yield Table(
        "The first rejects of each reason, with the beginning of the text, or of the line without "
        "one, where the source could be read.",
        [*columns, Column("text", is_text=True)],
        [_example(row) for row in examples],
    )
    yield from unread(Counter(row["problem"] for row in examples if row["problem"]), "record")


def _example(row: Mapping[str, Any]) -> list[str]:
    place = f"{shown(row['source_uri'])}, record {number(row['source_record'])}"
    named = f"{_cut(row['doc_id'])}: {place}" if row["doc_id"] else place
    text = row["source_text"]
    if text is not None and not text.strip():
        text = f"({counted(len(text), 'character')}, none of them visible)" if text else None
    return [row["reason"], named, cell(_cut(row["detail"])), cell(_cut(text))]


def _cut(text: str | None) -> str | None:
    return None if text is None else text[:HEAD_CHARS]


def unread(problems: Mapping[str, int], noun: str) -> Iterator[Block]:
    """A sentence for each reason why texts could not be read from the sources."""
    for reason, count in sorted(problems.items()):
        yield Text(f"The source text of {counted(count, noun)} is not shown: {reason}.", "muted")
