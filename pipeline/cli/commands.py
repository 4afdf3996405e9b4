"""All commands, and the options that stand before a command.

Each command is one function that calls the function that does the work: `jobs.py` holds the
commands on a job spec, `inspection.py` those that only look at an output, `outputs.py` those that
change or export one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from pipeline.cli import inspection, jobs, outputs
from pipeline.cli.options import console
from pipeline.storage.notes import listen_to_notes
from pipeline.storage.retry import PROMPT_SECONDS, patience

app = typer.Typer(
    help="Embed a corpus into searchable Parquet files that record where every row came from.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for commands in (jobs.app, inspection.app, outputs.app):
    app.add_typer(commands)


@app.callback()
def before_the_command(
    debug: Annotated[bool, typer.Option("--debug", help="show the trace of an error")] = False,
) -> None:
    """`main` reads --debug itself, since an error can come before any option is read."""


def invoke(arguments: Sequence[str]) -> int:
    """Run one command; returns its exit code. Raises whatever ends it early: typer's own `main`
    would turn Ctrl-C into an exit code without a word."""
    listen_to_notes(lambda note: console.print(note, markup=False))
    group: Any = typer.main.get_command(app)
    try:
        with (
            patience(PROMPT_SECONDS),
            group.make_context("corpus-embed", list(arguments)) as context,
        ):
            return int(group.invoke(context) or 0)
    except typer.Exit as ending:
        return ending.exit_code
