"""Commands that only look: status, verify, trace, search, schema."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from pipeline.cli import answers
from pipeline.cli.live import show_live_runs
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
from pipeline.errors import OutputError
from pipeline.job.spec import JobSpec
from pipeline.job.spec_reference import reference
from pipeline.observe.live_record import live_runs
from pipeline.output.snapshots import (
    count_waiting_parts,
    live_parts,
    load_snapshot,
    snapshot_numbers,
)
from pipeline.output.table_records import table_statuses
from pipeline.storage import layout
from pipeline.storage.store import Store

app = typer.Typer()
ModelPath = Annotated[
    str | None, typer.Option("--model", help="where the model is now, if it has moved")
]


@app.command(
    rich_help_panel=LOOK,
    epilog="Example: corpus-embed status s3://lake/vectors",
)
def status(output: Output, storage_options: StorageOptions = "{}", as_json: AsJson = False) -> None:
    """Show the runs that work on an output now, its snapshots, how many finished parts are in no
    snapshot yet, and what the tables show that it is published to."""
    store = Store(output, json_object(storage_options))
    head = load_snapshot(store)
    if head is None and not store.list(layout.META):
        raise OutputError(
            f"{store.shown_uri}: nothing is there. Check the URI, which is output.uri of the spec."
        )
    n_waiting = count_waiting_parts(store, live_parts(store, head))
    numbers = snapshot_numbers(store)
    tables = table_statuses(store)
    runs = live_runs(store)
    if as_json:
        answers.print_json(
            {
                "runs": [run._asdict() for run in runs],
                "head": head.model_dump(mode="json") if head else None,
                "snapshots": numbers,
                "parts_not_in_head": n_waiting,
                "tables": [table._asdict() for table in tables],
            }
        )
        return
    show_live_runs(answers.stdout(), runs)
    answers.show_status(head, numbers, n_waiting)
    answers.show_tables(tables)


@app.command(
    rich_help_panel=LOOK,
    epilog="Example: corpus-embed verify s3://lake/vectors --sample 100",
)
def verify(
    output: Output,
    sample: Annotated[
        int, typer.Option(min=0, help="number of rows to embed again from their source")
    ] = 32,
    model_path: ModelPath = None,
    snapshot: SnapshotNumber = None,
    storage_options: StorageOptions = "{}",
    source_options: SourceOptions = None,
    as_json: AsJson = False,
) -> None:
    """Check an output against its manifests and, for a sample, against its sources."""
    from pipeline.tools.verify.verification import verify as verify_output

    verification = verify_output(
        output,
        snapshot=snapshot,
        sample=sample,
        model_path=model_path,
        need_model=model_path is not None,
        source_options=source_options_of(source_options),
        storage_options=json_object(storage_options),
    )
    if as_json:
        answers.print_json(dataclasses.asdict(verification) | {"ok": verification.ok})
    else:
        answers.show_checks(verification.checks)
    if not verification.ok:
        raise typer.Exit(1)


@app.command(
    rich_help_panel=LOOK,
    epilog="Example: corpus-embed trace s3://lake/vectors wiki-42#3",
)
def trace(
    output: Output,
    row: Annotated[str, typer.Argument(metavar="ROW", help="doc_id, or doc_id#chunk")],
    snapshot: SnapshotNumber = None,
    storage_options: StorageOptions = "{}",
    source_options: SourceOptions = None,
    as_json: AsJson = False,
) -> None:
    """Trace one row back to its shard, record and bytes, and check the hash of its source text."""
    from pipeline.tools.trace import trace as trace_row

    origin = trace_row(
        output,
        row,
        snapshot=snapshot,
        source_options=source_options_of(source_options),
        storage_options=json_object(storage_options),
    )
    if as_json:
        answers.print_json(dataclasses.asdict(origin) | {"ok": origin.ok})
    else:
        for line in origin.lines():
            answers.stdout().print(line, markup=False)
    if not origin.ok:
        raise typer.Exit(1)


@app.command(
    rich_help_panel=LOOK,
    epilog="Example: corpus-embed search s3://lake/vectors 'a city in Kyushu' -k 5",
)
def search(
    output: Output,
    text: Annotated[str, typer.Argument(help="the text to search for")],
    k: Annotated[int, typer.Option("-k", min=1, help="number of hits")] = 10,
    prompt: Annotated[
        str | None,
        typer.Option(help="text in front of the query, '' for none; the model's own by default"),
    ] = None,
    prompt_name: Annotated[
        str | None, typer.Option(help="a prompt that the model registers, by its name")
    ] = None,
    model_path: ModelPath = None,
    snapshot: SnapshotNumber = None,
    storage_options: StorageOptions = "{}",
    as_json: AsJson = False,
) -> None:
    """Find the k rows nearest to a text, by exact comparison with every row of the snapshot."""
    from pipeline.tools.search import search as search_output

    hits = search_output(
        output,
        text,
        k=k,
        snapshot=snapshot,
        prompt=prompt,
        prompt_name=prompt_name,
        model_path=model_path,
        storage_options=json_object(storage_options),
    )
    if as_json:
        answers.print_json({"hits": [dataclasses.asdict(hit) for hit in hits]})
        return
    answers.show_hits(hits)


@app.command(
    rich_help_panel=LOOK,
    epilog="Example: corpus-embed schema > corpus-embed.schema.json",
)
def schema(
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="print the reference of all settings as Markdown")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", hidden=True)] = True,
) -> None:
    """Print the JSON Schema of a job spec, for editors and checks."""
    if as_markdown:
        answers.stdout().print(reference(JobSpec), markup=False, end="")
    else:
        answers.print_json(JobSpec.model_json_schema())
