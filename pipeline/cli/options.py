"""Arguments and options that several commands share, and the console for their messages."""

from __future__ import annotations

import datetime
import json
from typing import Annotated, Any

import typer

from pipeline.cli.terminal import Terminal
from pipeline.errors import SpecError

console = Terminal(stderr=True)

SpecPath = Annotated[str, typer.Argument(metavar="SPEC", help="job spec (YAML)")]
Output = Annotated[str, typer.Argument(metavar="OUTPUT", help="output URI, as in output.uri")]
Overrides = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="KEY=VALUE", help="override, for instance runtime.part_bytes=1MiB"
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object")]
SnapshotNumber = Annotated[
    int | None, typer.Option("--snapshot", help="snapshot number; the newest by default")
]
Address = Annotated[
    str | None,
    typer.Option("--address", help="Ray cluster; by default RAY_ADDRESS, or one on this machine"),
]
StorageOptions = Annotated[
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
        help="scheduled time that this run stands for (ISO 8601)",
    ),
]


def json_object(text: str, option: str = "--storage-options") -> dict[str, Any]:
    """Parse the value of an option that takes a JSON object. Raises SpecError if it is not one."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise SpecError(f"{option}: the value is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise SpecError(f"{option}: a JSON object is needed, not {type(value).__name__}")
    return value


def as_time(text: str | None) -> datetime.datetime | None:
    """Parse a nominal time; without a zone it is UTC. Raises SpecError when it is not ISO 8601."""
    if not text:
        return None
    try:
        time = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise SpecError(
            f"--nominal-time {text}: {error}. Write it as 2026-11-23T04:00:00+09:00."
        ) from error
    return time if time.tzinfo else time.replace(tzinfo=datetime.UTC)
