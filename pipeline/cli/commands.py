"""All commands, and the options that stand before a command.

Each command is one function that calls the function that does the work: `jobs.py` holds the
commands on a job spec, `inspection.py` those that only look at an output, `outputs.py` those that
change or export one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

import pipeline
from pipeline.cli import export, files, help, init, inspection, jobs, outputs, rejects, report
from pipeline.cli.options import console
from pipeline.storage.notes import listen_to_notes
from pipeline.storage.retry import PROMPT_SECONDS, patience

PROGRAM = "corpus-embed"
COMPLETION = "_CORPUS_EMBED_COMPLETE"
"""The variable by which the completion of a shell, as typer writes it, asks."""

app = typer.Typer(
    help="Embed a corpus into searchable Parquet files that record where every row came from.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": help.HELP_OPTIONS},
    epilog="A job begins with `corpus-embed init PATH`, which writes its spec. "
    "`corpus-embed COMMAND --help` shows an example and the exit codes of a command.",
)
COMMANDS = (init, jobs, inspection, report, files, rejects, outputs, export)
for part in COMMANDS:
    app.add_typer(part.app)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        sys.stdout.write(f"corpus-embed {pipeline.__version__}\n")
        raise typer.Exit


@app.callback()
def before_the_command(
    version: Annotated[
        bool,
        typer.Option("--version", help="show the version", callback=_show_version, is_eager=True),
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option("--quiet", help="show errors and the last line only; also after the command"),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", help="show the trace of an error; also after the command"),
    ] = False,
) -> None:
    """`main` reads --debug and --quiet itself: an error can come before any option is read."""


def commands() -> Any:
    """All commands as one typer group."""
    return help.tidy(typer.main.get_command(app))


def invoke(arguments: Sequence[str], *, is_quiet: bool = False) -> int:
    """Run one command; returns its exit code. Raises whatever ends it early: typer's own `main`
    would turn Ctrl-C into an exit code without a word. is_quiet: whether messages are left out."""
    console.quiet = is_quiet
    listen_to_notes(lambda note: console.print(note, markup=False))
    group = commands()
    try:
        if COMPLETION in os.environ:  # a shell asks how a line goes on
            group.main(prog_name=PROGRAM)
        with (
            patience(PROMPT_SECONDS),
            group.make_context(PROGRAM, list(arguments)) as context,
        ):
            return int(group.invoke(context) or 0)
    except typer.Exit as ending:
        return ending.exit_code
    except SystemExit as ending:
        if ending.code:
            raise
        return 0  # of an option that ends the command, such as --show-completion
