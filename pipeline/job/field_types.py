"""The types of spec fields that pydantic does not have. A value as YAML holds it comes in; a
checked value comes out."""

from __future__ import annotations

import datetime
import re
from typing import Annotated, Any, Literal

import pydantic

from pipeline.storage.addresses import problem_of, problem_of_options


class Section(pydantic.BaseModel):
    """A mapping of a job spec: frozen, and closed to unknown keys."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", validate_default=True)


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _as_kept(value: Any) -> Any:
    """A name or a list of names stands for string columns; a mapping gives each column its type."""
    value = _as_tuple(value)
    if not isinstance(value, list | tuple):
        return value
    if not all(isinstance(name, str) for name in value):
        raise ValueError(
            "write names, such as [lang, source], or names with types, such as {year: int64} "
            f"(found {value!r:.80})"
        )
    return dict.fromkeys(value, "string")


def _as_duration(value: Any) -> Any:
    units = {"s": "seconds", "min": "minutes", "h": "hours", "d": "days"}
    match = (
        re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|min|h|d)\s*", value)
        if isinstance(value, str)
        else None
    )
    return datetime.timedelta(**{units[match[2]]: float(match[1])}) if match else value


def _allowed_uri(uri: str) -> str:
    if problem := problem_of(uri):
        raise ValueError(problem)
    return uri


def _allowed_options(options: dict[str, Any]) -> dict[str, Any]:
    if problem := problem_of_options(options):
        raise ValueError(problem)
    return options


MOST_BYTES = 512 << 20
"""The largest `part_bytes` and the largest `max_record_bytes`. A part is at most the sum of both;
its texts must fit into one Arrow column of 2 GiB, also when normalised, and each stage holds a part
in memory several times over."""


def _part_bytes(size: Auto | pydantic.ByteSize) -> Auto | pydantic.ByteSize:
    """The bounds are checked on the union, not on its branch: pydantic's error would name the
    branches."""
    if size != "auto" and not 1024 <= size <= MOST_BYTES:
        bound = (
            "less than or equal to 512MiB" if size > MOST_BYTES else "greater than or equal to 1024"
        )
        raise ValueError(f"Input should be {bound}")
    return size


Auto = Literal["auto"]
RecordSize = Annotated[pydantic.ByteSize, pydantic.Field(ge=1, le=MOST_BYTES)]
PartSize = Annotated[Auto | pydantic.ByteSize, pydantic.AfterValidator(_part_bytes)]
Name = Annotated[str, pydantic.Field(min_length=1)]
Uri = Annotated[Name, pydantic.AfterValidator(_allowed_uri)]
Uris = Annotated[tuple[Uri, ...], pydantic.BeforeValidator(_as_tuple), pydantic.Field(min_length=1)]
Names = Annotated[tuple[Name, ...], pydantic.BeforeValidator(_as_tuple)]
KeptColumns = Annotated[dict[Name, str], pydantic.BeforeValidator(_as_kept)]
Count = Annotated[int, pydantic.Field(ge=1)]
Options = Annotated[dict[str, Any], pydantic.AfterValidator(_allowed_options)]
Duration = Annotated[datetime.timedelta, pydantic.BeforeValidator(_as_duration)]
