"""Commands that clean up, rewrite or export an output: vacuum, compact, diff, publish."""

from __future__ import annotations

import dataclasses
import datetime
from typing import Annotated

import pydantic
import typer

from pipeline.cli import answers
from pipeline.cli.options import (
    KEEP,
    LOOK,
    AsJson,
    Output,
    StorageOptions,
    console,
    json_object,
    quantity,
)
from pipeline.errors import CorpusEmbedError, SpecError
from pipeline.job.field_types import Duration
from pipeline.job.sections import PublishSpec
from pipeline.job.spec_mistakes import explain_all
from pipeline.output.table_records import forget_table
from pipeline.storage.addresses import shown
from pipeline.storage.printable import printable
from pipeline.storage.store import Store
from pipeline.storage.words import counted

app = typer.Typer()


@app.command(
    rich_help_panel=KEEP,
    epilog="Example: corpus-embed vacuum s3://lake/vectors --older-than 7d --delete",
)
def vacuum(
    output: Output,
    keep: Annotated[int, typer.Option(min=1, help="complete snapshots to keep")] = 2,
    older_than: Annotated[
        str,
        typer.Option(
            "--older-than", help="grace period by the store's clock, for instance 90min, 24h or 7d"
        ),
    ] = "24h",
    delete: Annotated[bool, typer.Option("--delete", help="delete; without it, only list")] = False,
    storage_options: StorageOptions = "{}",
    as_json: AsJson = False,
) -> None:
    """List (or, with --delete, remove) what the kept snapshots do not need."""
    from pipeline.tools.vacuum import vacuum as vacuum_output

    grace: datetime.timedelta = quantity(Duration, older_than, "--older-than", "90min, 24h or 7d")
    leftovers = vacuum_output(
        output,
        keep_snapshots=keep,
        older_than=grace,
        delete=delete,
        storage_options=json_object(storage_options),
    )
    if as_json:
        answers.print_json({**dataclasses.asdict(leftovers), "sizes": None})
    else:
        answers.show_vacuum(leftovers)


@app.command(
    rich_help_panel=KEEP,
    epilog="Example: corpus-embed compact s3://lake/vectors --target-bytes 256MiB",
)
def compact(
    output: Output,
    target_bytes: Annotated[
        str, typer.Option("--target-bytes", help="size that counts as large")
    ] = "128MiB",
    storage_options: StorageOptions = "{}",
    as_json: AsJson = False,
) -> None:
    """Join small data files into large ones as a new snapshot, without embedding."""
    from pipeline.tools.compact import compact as compact_output

    n_bytes = int(quantity(pydantic.ByteSize, target_bytes, "--target-bytes", "128MiB"))
    compaction = compact_output(
        output, target_bytes=n_bytes, storage_options=json_object(storage_options)
    )
    answers.show_fields(compaction, as_json)
    if not as_json and compaction.n_parts_joined:
        answers.stdout().print(answers.old_files(compaction.n_old_files))


@app.command(
    rich_help_panel=LOOK,
    epilog="Example: corpus-embed diff s3://lake/vectors 3 4 --rows",
)
def diff(
    output: Output,
    since: Annotated[
        str, typer.Argument(metavar="A", help="snapshot number or cursor; 0: the empty store")
    ],
    until: Annotated[int, typer.Argument(min=0, metavar="B", help="snapshot number")],
    list_keys: Annotated[
        bool, typer.Option("--rows", help="also list the keys (doc_id, chunk)")
    ] = False,
    storage_options: StorageOptions = "{}",
    as_json: AsJson = False,
) -> None:
    """Show what to put (+) and to delete (-) to go from snapshot A to snapshot B."""
    from pipeline.tools.diff import diff as diff_output

    if not since.partition("-")[0].isdecimal():
        raise SpecError(f"A: found '{since}'; it takes a whole number, or the cursor of a diff")
    difference = diff_output(
        output, since, until, keys=list_keys, storage_options=json_object(storage_options)
    )
    keys = {
        name: table.to_pylist()
        for name in ("upserts", "deletes")
        if (table := getattr(difference, name)) is not None
    }
    if as_json:
        counts = ("since", "until", "cursor", "n_upserts", "n_deletes")
        answers.print_json({name: getattr(difference, name) for name in counts} | keys)
        return
    stdout = answers.stdout()
    upserts = counted(difference.n_upserts, "upsert")
    stdout.print(f"{upserts}, {counted(difference.n_deletes, 'delete')}")
    for sign, name in (("+", "upserts"), ("-", "deletes")):
        for key in keys.get(name, []):
            stdout.print(f"{sign} {printable(key['doc_id'])} {key['chunk']}", markup=False)


@app.command(
    rich_help_panel=KEEP,
    epilog="Example: corpus-embed publish s3://lake/vectors --iceberg lake.vectors",
)
def publish(
    output: Output,
    iceberg: Annotated[
        str | None, typer.Option("--iceberg", metavar="TABLE", help="Iceberg table: namespace.name")
    ] = None,
    catalog: Annotated[
        str,
        typer.Option(
            "--catalog",
            metavar="JSON",
            help="pyiceberg properties of its catalog; by default a SQLite file in OUTPUT",
        ),
    ] = "{}",
    location: Annotated[
        str | None, typer.Option("--location", help="where a new Iceberg table keeps its metadata")
    ] = None,
    delta: Annotated[bool, typer.Option("--delta", help="a Delta table at OUTPUT")] = False,
    forget: Annotated[
        str | None,
        typer.Option(
            "--forget",
            metavar="TABLE",
            help="stop publishing to a table: `delta`, or the name of an Iceberg table",
        ),
    ] = None,
    storage_options: StorageOptions = "{}",
    as_json: AsJson = False,
) -> None:
    """Bring tables up to the newest snapshot: those named here, or all that OUTPUT was published to
    before; or forget one."""
    from pipeline.output import lake

    store = Store(output, json_object(storage_options))
    if forget:
        for name in forget_table(store, forget):
            answers.stdout().print(printable(f"{name}: forgotten; the table stays as it is"))
        return
    behind: list[CorpusEmbedError] = []
    if iceberg or delta:
        properties = json_object(
            catalog, "--catalog", '{"type": "rest", "uri": "http://127.0.0.1:8181"}'
        )
        named = {"table": iceberg, "catalog": properties, "location": location} if iceberg else None
        try:
            tables = PublishSpec.model_validate({"iceberg": named, "delta": delta})
        except pydantic.ValidationError as error:
            mistakes = "; ".join(explain_all(error, PublishSpec))
            for key, name in _TABLE_OPTIONS.items():
                mistakes = mistakes.replace(f"{key}:", f"{name}:")
            raise SpecError(mistakes) from None
        snapshot_of = lake.publish(store, tables)
    else:
        snapshot_of, behind = lake.publish_recorded(store)
        if not snapshot_of and not behind:
            raise SpecError(
                f"{shown(output)} has not been published to any table yet. "
                "Name one with --iceberg or --delta."
            )
    if as_json:
        answers.print_json({"tables": snapshot_of})
    else:
        for name, number in snapshot_of.items():
            answers.stdout().print(f"{name}: snapshot {number}", markup=False)
    for other in behind[1:]:
        console.print(str(other), markup=False)
    if behind:
        raise behind[0]


_TABLE_OPTIONS = {
    "publish.iceberg.catalog": "--catalog",
    "iceberg.table": "--iceberg",
    "iceberg.catalog": "--catalog",
    "iceberg.location": "--location",
}
"""The options that stand for settings of `publish` in a spec."""
