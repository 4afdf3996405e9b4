"""The command `export`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from pipeline.cli import answers
from pipeline.cli.options import KEEP, AsJson, Output, SnapshotNumber, StorageOptions, json_object
from pipeline.storage.words import counted

app = typer.Typer()


@app.command(
    rich_help_panel=KEEP,
    epilog="Example: corpus-embed export s3://lake/vectors --to faiss -o vectors.faiss",
)
def export(
    output: Output,
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="npy, faiss or lance")],
    destination: Annotated[
        str, typer.Option("-o", metavar="DEST", help="a new folder, on a disk or a store")
    ],
    columns: Annotated[
        list[str],
        typer.Option(
            "--columns", metavar="NAME", help="also write this column; can be given several times"
        ),
    ] = [],
    index: Annotated[
        str | None,
        typer.Option(
            "--index",
            metavar="KIND",
            help="FAISS: flat, ivf, or what faiss.index_factory takes, for instance IVF1024,SQ8; "
            "by default flat up to 200,000 rows, then ivf",
        ),
    ] = None,
    snapshot: SnapshotNumber = None,
    destination_options: Annotated[
        str,
        typer.Option("--dest-options", metavar="JSON", help="fsspec options of DEST"),
    ] = "{}",
    storage_options: StorageOptions = "{}",
    as_json: AsJson = False,
) -> None:
    """Write the vectors of a snapshot for another library: NumPy, FAISS or Lance."""
    from pipeline.tools.export.run import export as export_output

    exported = export_output(
        output,
        destination,
        to=to,
        columns=columns,
        index=index,
        snapshot=snapshot,
        destination_options=json_object(destination_options, "--dest-options"),
        storage_options=json_object(storage_options),
    )
    if as_json:
        answers.print_json(dataclasses.asdict(exported))
        return
    files = ", ".join(exported.facts["files"])
    answers.stdout().print(
        f"{counted(exported.n_rows, 'row')} of snapshot {exported.snapshot} to "
        f"{exported.destination}" + (f": {files}" if files else ""),
        markup=False,
    )
