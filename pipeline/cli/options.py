"""Arguments and options that several commands share, and the console they talk through."""

from __future__ import annotations

import datetime
import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console

from pipeline.errors import SpecError

console = Console(
    stderr=True, highlight=False, soft_wrap=True, width=None if sys.stderr.isatty() else 160
)

SpecPath = Annotated[str, typer.Argument(metavar="SPEC", help="job spec (YAML)")]
Output = Annotated[str, typer.Argument(metavar="OUTPUT", help="output URI, as in output.uri")]
Overrides = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="KEY=VALUE", help="override, for instance runtime.part_bytes=1MiB"
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object")]
Number = Annotated[
    int | None, typer.Option("--snapshot", help="snapshot number; the newest by default")
]
Address = Annotated[
    str | None,
    typer.Option("--address", help="Ray cluster; RAY_ADDRESS, or one on this machine, by default"),
]
Options = Annotated[
    str,
    typer.Option(
        "--storage-options",
        metavar="JSON",
        help="fsspec options of OUTPUT, for instance an endpoint_url",
    ),
]
NominalTime = Annotated[
    str | None,
    typer.Option(
        "--nominal-time",
        metavar="TIME",
        help="the time this refresh stands for (ISO 8601), from the scheduler",
    ),
]


def json_object(text: str, option: str = "--storage-options") -> dict[str, Any]:
    """The value of an option that takes a JSON object. Raises SpecError when it is none."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise SpecError(f"{option}: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise SpecError(f"{option}: a JSON object is needed")
    return found


def as_time(text: str | None) -> datetime.datetime | None:
    """A nominal time; without a zone it is UTC. Raises SpecError when it is not ISO 8601."""
    try:
        found = datetime.datetime.fromisoformat(text) if text else None
    except ValueError as error:
        raise SpecError(
            f"--nominal-time {text}: write it as 2026-11-23T04:00:00+09:00: {error}"
        ) from error
    return found.replace(tzinfo=datetime.UTC) if found and not found.tzinfo else found
