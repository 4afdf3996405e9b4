"""What ended a command early, in words: an exception comes in, a message on standard error and an
exit code come out."""

from __future__ import annotations

import dataclasses
import os
import sys
import traceback
from typing import Any, cast

import pydantic
import typer

from pipeline.cli import answers
from pipeline.cli.options import console
from pipeline.cli.stopping import INTERRUPTED, LAST_WORDS, TERMINATED
from pipeline.errors import CorpusEmbedError, InternalError, SpecError
from pipeline.storage.accepted import shown_value

# typer 0.29 carries its own click and does not export its UsageError
_USAGE_ERROR = cast(type[Exception], typer.BadParameter.__mro__[1])
_LONGEST_LINE = 400
_TAKEN = {
    "int": "a whole number, for instance 10",
    "float": "a number, for instance 0.5",
    "bool": "true or false",
}


@dataclasses.dataclass(frozen=True)
class Failure:
    """How a command ended. kind: the class of the error, for machines; prefix: what stands before
    the message, for people."""

    exit_code: int
    kind: str
    message: str
    prefix: str = ""


def describe(error: BaseException, stopped: int | None = None) -> Failure:
    """The exit code and the message of an exception: an InternalError where it is of no class that
    the command line knows. stopped: the exit code of a signal that came before it; whatever is
    raised after that is a consequence."""
    name = type(error).__name__
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        words = str(error) or "Stopped. Run the same command again."
        return Failure(INTERRUPTED, "Stopped", words)
    if stopped == TERMINATED or (isinstance(error, SystemExit) and error.code == TERMINATED):
        return Failure(TERMINATED, "Terminated", LAST_WORDS)
    if stopped is not None:
        return Failure(stopped, "Stopped", "Stopped. Run the same command again.")
    if isinstance(error, CorpusEmbedError):
        return Failure(error.exit_code, name, str(error), name)
    if isinstance(error, _USAGE_ERROR):
        return Failure(SpecError.exit_code, "UsageError", _usage(error))
    if isinstance(error, BrokenPipeError):  # `corpus-embed search … | head` has all it wants
        return Failure(1, name, "")
    kind = InternalError.__name__
    if isinstance(error, ModuleNotFoundError):
        words = f"the Python package '{error.name}' is missing. Install this package again."
        return Failure(InternalError.exit_code, kind, words, kind)
    words = (
        f"{name}: {_one_line(str(error))}. This is a fault of this program. Run again with --debug "
        "for the trace, and report it."
    )
    return Failure(InternalError.exit_code, kind, words, kind)


def show(failure: Failure, *, as_json: bool, trace: BaseException | None) -> None:
    """Print what ended a command: the message to standard error, below the trace where one is
    asked for, and with `as_json` an object to standard output."""
    if failure.kind == BrokenPipeError.__name__:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    console.quiet = False
    if trace is not None:
        traceback.print_exception(trace)
    if failure.prefix:
        console.print(failure.prefix, style="red", end="")
        console.print(": ", end="")
    if failure.message:
        console.print(failure.message, markup=False)
    if as_json:
        answers.print_json(
            {"error": failure.message, "type": failure.kind, "exit_code": failure.exit_code}
        )


def _usage(error: Any) -> str:
    """What is wrong on the command line, and where help is. Without a command, typer has printed
    the whole help already."""
    message = str(error.format_message()).strip()
    # typer 0.29 parses values with pydantic and passes on its words
    if isinstance(mistake := error.__cause__, pydantic.ValidationError):
        detail = mistake.errors()[0]
        takes = next((words for kind, words in _TAKEN.items() if kind in detail["type"]), "")
        least = detail.get("ctx", {}).get("ge")
        takes = takes or ("another value" if least is None else f"a number from {least}")
        name = message.removeprefix("Invalid value for ").partition(":")[0].strip("'")
        message = f"{name}: found {shown_value(detail['input'])}; it takes {takes}"
    if error.ctx is None or not message:
        return message
    path = error.ctx.command_path
    return f"{message}\n{error.ctx.get_usage()}\nTry '{path} --help' for help."


def _one_line(text: str) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip()), "no message")
    return line.rstrip(".")[:_LONGEST_LINE]
