"""Arguments and options that several commands share, and the console for their messages."""

from __future__ import annotations

import datetime
import json
from typing import Annotated, Any

import pydantic
import typer

from pipeline.cli.terminal import Terminal
from pipeline.driver.budget import Budget
from pipeline.errors import SpecError
from pipeline.job.field_types import Duration

console = Terminal(stderr=True)

MAKE = "Make an output"
LOOK = "Look at an output"
KEEP = "Keep an output in shape"
"""The groups of commands in `--help`."""

SpecPath = Annotated[
    str,
    typer.Argument(
        metavar="SPEC",
        help="job spec (YAML): `corpus-embed init` writes one, docs/spec.md has every setting",
    ),
]
Output = Annotated[str, typer.Argument(metavar="OUTPUT", help="output URI, as in output.uri")]
Overrides = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="KEY=VALUE", help="override, for instance runtime.part_bytes=1MiB"
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object")]
FullRefresh = Annotated[
    bool,
    typer.Option(
        "--full-refresh",
        help="agree to replace all that the output holds: another job's work, or other vectors",
    ),
]
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
        show_default=False,
        help="fsspec options of OUTPUT, for instance an endpoint_url",
    ),
]
SourceOptions = Annotated[
    str | None,
    typer.Option(
        "--source-options",
        metavar="JSON",
        help="fsspec options to read the sources with, {} for none: needed where only OUTPUT names "
        "their server",
    ),
]
ProgressMode = Annotated[
    str,
    typer.Option(
        "--progress",
        metavar="MODE",
        help="auto, plain, json (JSON lines in place of all other messages) or json:FILE",
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


MaxTime = Annotated[
    str | None,
    typer.Option(
        "--max-time",
        metavar="TIME",
        help="begin no part that would end after this time, for instance 2h: commit what is "
        "finished and say what is left",
    ),
]
MaxCost = Annotated[
    float | None,
    typer.Option(
        "--max-cost",
        metavar="DOLLARS",
        help="the same for money, by the prices of pipeline/driver/estimate/prices.yaml or of the "
        "file that CORPUS_EMBED_PRICES names",
    ),
]


def json_object(
    text: str,
    option: str = "--storage-options",
    example: str = '{"endpoint_url": "http://127.0.0.1:9000"}',
) -> dict[str, Any]:
    """Parse the value of an option that takes a JSON object, which is not repeated: it can hold a
    secret. Raises SpecError with an example if it is not one."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise SpecError(f"{option}: this is no JSON object; write it as {option} '{example}'")
    return value


def source_options_of(text: str | None) -> dict[str, Any] | None:
    """The value of --source-options, None where it was not given. Raises SpecError for what is no
    JSON object."""
    return None if text is None else json_object(text, "--source-options")


def as_time(text: str | None) -> datetime.datetime | None:
    """Parse a nominal time; without a zone it is UTC. Raises SpecError when it is not ISO 8601."""
    if not text:
        return None
    try:
        time = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise SpecError(
            f"--nominal-time {text}: this is no time; write it as 2026-11-23T04:00:00+09:00"
        ) from None
    return time if time.tzinfo else time.replace(tzinfo=datetime.UTC)


def quantity(kind: Any, text: str, option: str, example: str) -> Any:
    """Parse the value of an option with a unit. Raises SpecError with an example if it has none."""
    try:
        return pydantic.TypeAdapter(kind).validate_python(text)
    except pydantic.ValidationError:
        raise SpecError(f"{option} {text}: this cannot be read; write it as {example}") from None


def budget_of(max_time: str | None, max_cost: float | None) -> Budget | None:
    """The budget that two options give; None where both are left out."""
    if max_time is None and max_cost is None:
        return None
    seconds = None
    if max_time is not None:
        time: datetime.timedelta = quantity(Duration, max_time, "--max-time", "90min, 2h or 1d")
        seconds = time.total_seconds()
    return Budget(max_seconds=seconds, max_cost=max_cost)
