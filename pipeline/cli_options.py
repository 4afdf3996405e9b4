"""Arguments and options that several commands share, and the console they talk through."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console

from pipeline.errors import SpecError

console = Console(stderr=True, highlight=False, soft_wrap=True, width=None if sys.stderr.isatty() else 160)

SpecPath = Annotated[str, typer.Argument(metavar="SPEC", help="job spec (YAML)")]
Output = Annotated[str, typer.Argument(metavar="OUTPUT", help="output URI, as in output.uri")]
Overrides = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="override, for instance runtime.part_bytes=1MiB"),
]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object")]
Number = Annotated[int | None, typer.Option("--snapshot", help="snapshot number; the newest by default")]
Address = Annotated[
    str | None, typer.Option("--address", help="Ray cluster; RAY_ADDRESS, or one on this machine, by default")
]
Options = Annotated[
    str,
    typer.Option("--storage-options", metavar="JSON", help="fsspec options of OUTPUT, for instance an endpoint_url"),
]
NominalTime = Annotated[
    str | None,
    typer.Option(
        "--nominal-time", metavar="TIME", help="the time this refresh stands for (ISO 8601), from the scheduler"
    ),
]


def storage_options(text: str) -> dict[str, Any]:
    """The value of --storage-options. Raises SpecError when it is not a JSON object."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise SpecError(f"--storage-options: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise SpecError("--storage-options: a JSON object is needed")
    return found
