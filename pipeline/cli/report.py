"""The command `report`: a page about an output, written to a file."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

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
from pipeline.storage.printable import printable
from pipeline.storage.words import human

app = typer.Typer()


@app.command(
    rich_help_panel=LOOK,
    epilog="Example: corpus-embed report s3://lake/vectors -o vectors.html",
)
def report(
    output: Output,
    file: Annotated[
        str | None,
        typer.Option(
            "-o", metavar="FILE", help="file to write, report.html by default; - is standard output"
        ),
    ] = None,
    form: Annotated[
        Literal["html", "md"] | None,
        typer.Option("--format", metavar="HTML|MD", help="by default what the suffix of FILE says"),
    ] = None,
    sample: Annotated[
        int, typer.Option(min=0, help="number of rows whose vectors are compared and mapped")
    ] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="what the sample is drawn by")] = 0,
    near: Annotated[
        float, typer.Option(help="cosine from which two rows are near duplicates")
    ] = 0.95,
    sources: Annotated[
        bool,
        typer.Option(
            "--sources/--no-sources",
            help="read texts that OUTPUT does not hold from the sources: of rejects, and of rows "
            "where output.include_text is false",
        ),
    ] = True,
    snapshot: SnapshotNumber = None,
    storage_options: StorageOptions = "{}",
    source_options: SourceOptions = None,
    as_json: AsJson = False,
) -> None:
    """Write a page about OUTPUT: what it holds, how it was made, where the time went, rejects,
    a map of the vectors, near duplicates, licences, and how to read it.

    The page holds everything it needs and makes no request. It shows texts of the corpus.
    """
    from pipeline.tools.report.report import format_of, writable
    from pipeline.tools.report.report import report as report_on

    form = form or format_of(file)
    path = file or f"report.{form}"
    writable(path)
    result = report_on(
        output,
        format=form,
        snapshot=snapshot,
        sample=sample,
        seed=seed,
        near=near,
        read_sources=sources,
        source_options=source_options_of(source_options),
        storage_options=json_object(storage_options),
    )
    n_bytes = result.write(path)
    if path == "-":
        return
    if as_json:
        answers.print_json({"file": path, "bytes": n_bytes, **result.figures})
    else:
        answers.stdout().print(f"{printable(path)}: {human(n_bytes)}", markup=False)
