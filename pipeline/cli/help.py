"""How `--help` looks: one rule for all commands.

The commands as typer makes them come in; the same commands go out with their docstrings unwrapped,
in one order, with capitals for what an option takes, nothing for what a flag takes, and the exit
codes at the end of each command's help.
"""

from __future__ import annotations

import inspect
from typing import Any

ORDER = [
    *("init", "plan", "run", "refresh", "submit"),
    *("status", "report", "files", "rejects", "verify", "trace", "search", "diff", "schema"),
    *("compact", "vacuum", "publish", "export"),
]
"""The commands as help lists them; one that is not here stands at the end of its group."""

HELP_OPTIONS = ["-h", "--help"]

EXIT_CODES = {
    0: "done",
    1: "failed",
    2: "mistake in the spec, the model or the command line; nothing was started",
    3: "more rejects, damage or partitions than the spec allows",
    4: "another run committed first",
    5: "too many documents would go, or --full-refresh is needed",
    6: "another refresh holds the output",
    130: "stopped by Ctrl-C",
    143: "stopped by SIGTERM",
}
"""What the exit codes of `pipeline/errors.py` and of signals mean."""

_CODES_OF = {
    "plan": (0, 1, 2, 5),
    "run": (0, 1, 2, 3, 4, 5, 130, 143),
    "refresh": (0, 1, 2, 3, 4, 5, 6, 130, 143),
    "submit": (0, 1, 2, 3, 4, 5, 6, 130, 143),
    "compact": (0, 1, 2, 4),
    "publish": (0, 1, 2, 4),
}
"""The exit codes of commands that have others than done, failed and mistake."""

_TYPES = {"str": "TEXT", "int": "NUMBER", "float": "NUMBER", "path": "PATH"}


def tidy(group: Any) -> Any:
    """Put the commands of a typer group in order and make their help readable, in place."""
    rank = {name: place for place, name in enumerate(ORDER)}
    names = sorted(group.commands, key=lambda name: rank.get(name, len(ORDER)))
    group.commands = {name: group.commands[name] for name in names}
    with group.make_context("corpus-embed", [], resilient_parsing=True) as context:
        for command in (group, *group.commands.values()):
            command.help = _unwrapped(command.help or "")
            help_option = command.get_help_option(context)
            help_option.help = "show this help"
            for parameter in (*command.params, help_option):
                _tidy_parameter(parameter)
    for name, command in group.commands.items():
        codes = " · ".join(f"{code} {EXIT_CODES[code]}" for code in _CODES_OF.get(name, (0, 1, 2)))
        command.epilog = "\n\n".join(filter(None, (command.epilog, f"Exit codes: {codes}")))
    return group


def _unwrapped(text: str) -> str:
    """Text whose paragraphs are lines: in a docstring they are wrapped by hand, and a terminal has
    its own width."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _tidy_parameter(parameter: Any) -> None:
    if getattr(parameter, "is_flag", False):
        parameter.metavar = ""
    elif parameter.param_type_name == "argument":
        parameter.metavar = parameter.metavar or parameter.name.upper()
        parameter.display_type_rich = lambda ctx: None  # typer 0.29 shows <str> in any case
    elif parameter.metavar is None:
        parameter.metavar = _TYPES.get(parameter.bare_type(), "TEXT")
