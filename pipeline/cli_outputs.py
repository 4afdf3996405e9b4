"""Commands on the snapshots of an output that is there: vacuum, diff."""

from __future__ import annotations

import datetime
from typing import Annotated, Any

import typer

from pipeline import display
from pipeline.cli_options import AsJson, Options, Output, storage_options

app = typer.Typer()


@app.command()
def vacuum(
    output: Output, keep: Annotated[int, typer.Option(min=1, help="complete snapshots to keep")] = 2,
    older_than_hours: Annotated[float, typer.Option(min=0, help="grace period by the store's clock")] = 24.0,
    delete: Annotated[bool, typer.Option("--delete", help="really delete; without it only listed")] = False,
    options: Options = "{}", as_json: AsJson = False,
) -> None:  # fmt: skip
    """List (or with --delete remove) what the kept snapshots do not need."""
    from pipeline.vacuum import vacuum as vacuum_output

    grace = datetime.timedelta(hours=older_than_hours)
    found = vacuum_output(output, storage_options(options), keep_snapshots=keep, older_than=grace, delete=delete)
    display.show_fields(found, as_json)


@app.command()
def diff(
    output: Output, since: Annotated[int, typer.Argument(metavar="A", help="snapshot number; 0: nothing")],
    until: Annotated[int, typer.Argument(metavar="B", help="snapshot number")],
    rows: Annotated[bool, typer.Option("--rows", help="also the keys (doc_id, chunk)")] = False,
    options: Options = "{}", as_json: AsJson = False,
) -> None:  # fmt: skip
    """What has to be put (+) and deleted (-) to go from snapshot A to snapshot B."""
    from pipeline.feed import KEY, changes

    found = changes(output, since, until, storage_options(options))
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
