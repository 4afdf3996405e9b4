"""The command `rejects`."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from pipeline.cli import answers
from pipeline.cli.options import (
    LOOK,
    AsJson,
    Output,
    SnapshotNumber,
    SourceOptions,
    StorageOptions,
    json_object,
    source_options_of,
)
from pipeline.storage import schema
from pipeline.storage.addresses import shown
from pipeline.storage.printable import printable
from pipeline.storage.words import agreeing, counted, number

app = typer.Typer()


@app.command(
    rich_help_panel=LOOK,
    epilog="Example: corpus-embed rejects s3://lake/vectors --reason missing_text -n 5",
)
def rejects(
    output: Output,
    reason: Annotated[
        str | None, typer.Option("--reason", metavar="REASON", help="only this reason")
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard", metavar="URI", help="only this shard: its URI, the end of it, or one with *"
        ),
    ] = None,
    n: Annotated[int, typer.Option("-n", min=0, help="number of examples for each reason")] = 3,
    snapshot: SnapshotNumber = None,
    storage_options: StorageOptions = "{}",
    source_options: SourceOptions = None,
    as_json: AsJson = False,
) -> None:
    """Count the rejected records by reason, and show examples with the beginning of their text.

    Parts of a run that was stopped count, too."""
    from pipeline.tools.rejects import Rejects
    from pipeline.tools.rejects import rejects as rejects_of

    listed: Rejects = rejects_of(
        output,
        reason=reason,
        shard=shard,
        n=n,
        snapshot=snapshot,
        source_options=source_options_of(source_options),
        storage_options=json_object(storage_options),
    )
    examples = listed.examples.to_pylist()
    if as_json:
        names = ("snapshot", "n_waiting_parts", "n_records", "n_rejects", "counts")
        answers.print_json({name: getattr(listed, name) for name in names} | {"examples": examples})
        return
    stdout = answers.stdout()
    rejected = f"{counted(listed.n_rejects, 'reject')} of {counted(listed.n_records, 'record')}"
    stdout.print(f"{_scope(listed.snapshot, listed.n_waiting_parts)}: {rejected}")
    if listed.counts:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for name in ("count", "reason", "what it says"):
            table.add_column(name, justify="right" if name == "count" else "left", overflow="fold")
        for name, count in listed.counts.items():
            table.add_row(number(count), name, schema.REASONS.get(name, ""))
        stdout.print(table)
    for row in examples:
        _show_example(row)


def _scope(snapshot: int | None, n_waiting_parts: int) -> str:
    """What was counted, in words."""
    parts = (
        f"{counted(n_waiting_parts, 'finished part')} that "
        f"{agreeing(n_waiting_parts, 'is', 'are')} in no snapshot yet"
    )
    if snapshot is None:
        return parts
    return f"snapshot {snapshot}" + (f" with {parts}" if n_waiting_parts else "")


def _show_example(row: dict[str, Any]) -> None:
    stdout = answers.stdout()
    doc_id = "no id" if row["doc_id"] is None else f"id {printable(row['doc_id'])}"
    stdout.print()
    stdout.print(Text(row["reason"], "bold"), end=" ")
    place = printable(shown(row["source_uri"]))
    stdout.print(f"{place} record {row['source_record']}, {doc_id}")
    if row["detail"]:
        stdout.print(f"  detail  {_line(row['detail'])}")
    if row["source_text"] is not None:
        stdout.print(f"  text    {_line(row['source_text']) or '(nothing that can be seen)'}")
    elif row["problem"]:
        stdout.print(f"  text    {_line(row['problem'], 400)}")


def _line(text: str, limit: int = 200) -> str:
    return printable(" ".join(text.split())[:limit])
