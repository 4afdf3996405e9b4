"""The command line: collects the commands, and turns errors into a message and an exit code.

Each command is one function that calls the function that does the work: `jobs.py` holds the
commands on a job spec, `inspection.py` those that only look at an output, `outputs.py` those that
change or export one. Exit codes: 0 done, else those of `pipeline/errors.py`; 130 and 143: stopped
by a signal. `--json` prints one JSON object to standard output and nothing else.
"""

from __future__ import annotations

import signal
import sys
from typing import Any, NoReturn, cast

import typer
import typer.core

from pipeline.cli import inspection, jobs, outputs
from pipeline.cli.options import console
from pipeline.cli.terminal import accept_any_text
from pipeline.errors import CorpusEmbedError, SpecError


class _Commands(typer.core.TyperGroup):
    """All commands. typer 0.29 turns Ctrl-C into a silent exit code 130; this says what is kept."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            console.print("Stopped. Finished parts are kept; run the same command again to resume.")
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Commands,
    help="Embed a corpus into searchable Parquet files that record where every row came from.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for commands in (jobs.app, inspection.app, outputs.app):
    app.add_typer(commands)
# typer 0.29 carries its own click and does not export its UsageError
_USAGE_ERROR = cast(type[Exception], typer.BadParameter.__mro__[1])


def main() -> NoReturn:
    """Run one command and exit; an error of `pipeline.errors` becomes a message and its code."""
    accept_any_text()
    signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        code = int(app(standalone_mode=False) or 0)  # typer returns the code of a typer.Exit here
    except CorpusEmbedError as error:
        console.print(f"[red]{type(error).__name__}[/red]: ", end="")
        console.print(str(error), markup=False)
        code = error.exit_code
    except _USAGE_ERROR as error:
        console.print(str(error), markup=False)
        code = SpecError.exit_code
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


def _on_sigterm(*_: Any) -> None:
    console.print("Terminated. Finished parts are kept; run the same command again to resume.")
    sys.exit(143)
