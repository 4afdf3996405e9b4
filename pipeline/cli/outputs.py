"""Commands on the snapshots of an output that is there: vacuum, compact, diff, publish."""

from __future__ import annotations

import datetime
from typing import Annotated, Any

import pydantic
import typer

from pipeline.cli import display
from pipeline.cli.options import AsJson, Options, Output, json_object
from pipeline.errors import SpecError
from pipeline.job.field_types import Duration
from pipeline.job.spec import PublishSpec
from pipeline.storage.addresses import shown
from pipeline.storage.store import Store

app = typer.Typer()


@app.command()
def vacuum(
    output: Output,
    keep: Annotated[int, typer.Option(min=1, help="complete snapshots to keep")] = 2,
    older_than: Annotated[
        str,
        typer.Option("--older-than", help="grace period by the store's clock, as 90min, 24h, 7d"),
    ] = "24h",
    delete: Annotated[
        bool, typer.Option("--delete", help="really delete; without it only listed")
    ] = False,
    options: Options = "{}",
    as_json: AsJson = False,
) -> None:
    """List (or with --delete remove) what the kept snapshots do not need."""
    from pipeline.tools.vacuum import vacuum as vacuum_output

    grace: datetime.timedelta = _quantity(Duration, older_than, "--older-than", "90min, 24h or 7d")
    found = vacuum_output(
        output, json_object(options), keep_snapshots=keep, older_than=grace, delete=delete
    )
    display.show_fields(found, as_json)


@app.command()
def compact(
    output: Output,
    target_bytes: Annotated[
        str, typer.Option("--target-bytes", help="size from which a file is large")
    ] = "128MiB",
    options: Options = "{}",
    as_json: AsJson = False,
) -> None:
    """Join small data files into large ones, as a new snapshot; nothing is embedded."""
    from pipeline.tools.compact import compact as compact_output

    n_bytes = int(_quantity(pydantic.ByteSize, target_bytes, "--target-bytes", "128MiB"))
    display.show_fields(compact_output(output, json_object(options), target_bytes=n_bytes), as_json)


@app.command()
def diff(
    output: Output,
    since: Annotated[int, typer.Argument(metavar="A", help="snapshot number; 0: nothing")],
    until: Annotated[int, typer.Argument(metavar="B", help="snapshot number")],
    rows: Annotated[bool, typer.Option("--rows", help="also the keys (doc_id, chunk)")] = False,
    options: Options = "{}",
    as_json: AsJson = False,
) -> None:
    """What has to be put (+) and deleted (-) to go from snapshot A to snapshot B."""
    from pipeline.output.change_feed import KEY, changes

    found = changes(output, since, until, json_object(options))
    facts: dict[str, Any] = {"since": since, "until": until}
    for name, batches in (("upserts", found.upserts(KEY)), ("deletes", found.deletes())):
        keys = [key for batch in batches for key in (batch.to_pylist() if rows else [len(batch)])]
        facts |= {f"n_{name}": len(keys), name: keys} if rows else {f"n_{name}": sum(keys)}
    if as_json:
        display.print_json(facts)
        return
    stdout = display.stdout()
    stdout.print(f"{facts['n_upserts']} upserts, {facts['n_deletes']} deletes")
    for sign, name in (("+", "upserts"), ("-", "deletes")):
        for key in facts.get(name, []):
            stdout.print(f"{sign} {key['doc_id']} {key['chunk']}", markup=False)


@app.command()
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
            help="pyiceberg properties of its catalog; by default SQLite in OUTPUT",
        ),
    ] = "{}",
    location: Annotated[
        str | None, typer.Option("--location", help="where a new Iceberg table keeps its metadata")
    ] = None,
    delta: Annotated[bool, typer.Option("--delta", help="a Delta table at OUTPUT")] = False,
    options: Options = "{}",
    as_json: AsJson = False,
) -> None:
    """Bring tables up to the newest snapshot: those named, or all that OUTPUT was ever published
    to."""
    from pipeline.output import lake

    store = Store(output, json_object(options))
    if iceberg or delta:
        properties = json_object(catalog, "--catalog")
        named = {"table": iceberg, "catalog": properties, "location": location} if iceberg else None
        try:
            wanted = [PublishSpec.model_validate({"iceberg": named, "delta": delta})]
        except pydantic.ValidationError as error:
            raise SpecError("; ".join(detail["msg"] for detail in error.errors())) from None
    else:
        wanted = lake.published(store)
    if not wanted:
        raise SpecError(
            f"{shown(output)}: was published to no table yet. Name one with --iceberg or --delta."
        )
    held = {
        name: number for tables in wanted for name, number in lake.publish(store, tables).items()
    }
    if as_json:
        display.print_json({"tables": held})
        return
    for name, number in held.items():
        display.stdout().print(f"{name}: snapshot {number}", markup=False)


def _quantity(kind: Any, text: str, option: str, example: str) -> Any:
    """The value of an option with a unit. Raises SpecError, which shows an example, when it is
    none."""
    try:
        return pydantic.TypeAdapter(kind).validate_python(text)
    except pydantic.ValidationError as error:
        raise SpecError(f"{option} {text}: write it as {example}") from error
