"""The command `files`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from pipeline.cli import answers
from pipeline.cli.options import (
    LOOK,
    AsJson,
    Output,
    SnapshotNumber,
    StorageOptions,
    console,
    json_object,
)
from pipeline.storage.printable import printable
from pipeline.storage.words import human, number

app = typer.Typer()


@app.command(
    rich_help_panel=LOOK,
    epilog="Example: corpus-embed files s3://lake/vectors --sql duckdb",
)
def files(
    output: Output,
    long: Annotated[
        bool, typer.Option("-l", help="also show rows, size and partition of each file")
    ] = False,
    relative: Annotated[
        bool, typer.Option("--relative", help="show paths relative to OUTPUT")
    ] = False,
    sql: Annotated[
        str | None,
        typer.Option(
            "--sql",
            metavar="ENGINE",
            help="print the lines that read the files: duckdb (SQL), polars or spark (Python)",
        ),
    ] = None,
    snapshot: SnapshotNumber = None,
    storage_options: StorageOptions = "{}",
    as_json: AsJson = False,
) -> None:
    """List the data files of the newest snapshot, or print the lines that read exactly these.

    A glob over data/ also finds files that a compaction or a refresh has replaced."""
    from pipeline.tools.files import files as files_of

    live = files_of(output, snapshot=snapshot, storage_options=json_object(storage_options))
    stdout = answers.stdout()
    if sql is not None:
        code = live.code(sql)
        if as_json:
            answers.print_json({"snapshot": live.snapshot, "engine": sql, "code": code})
        else:
            stdout.print(code, markup=False)
        return
    if as_json:
        facts = {name: getattr(live, name) for name in ("snapshot", "n_rows", "size_bytes")}
        listed = [dataclasses.asdict(file) for file in live.files]
        answers.print_json({**facts, "n_other_files": live.n_other, "files": listed})
        return
    shown = [(file, printable(file.path if relative else file.uri)) for file in live.files]
    if long:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for name in ("rows", "size", "partition", "file"):
            right = name in ("rows", "size")
            table.add_column(name, justify="right" if right else "left", overflow="fold")
        for file, path in shown:
            values = ", ".join(
                f"{key}={'null' if value is None else value}"
                for key, value in file.partition.items()
            )
            cells = (Text(printable(values)), Text(path))
            table.add_row(number(file.n_rows), human(file.size_bytes), *cells)
        stdout.print(table)
    else:
        for _, path in shown:
            stdout.print(path, markup=False)
    if live.n_other:
        console.print(answers.old_files(live.n_other))
