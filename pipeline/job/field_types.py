"""The types of spec fields that pydantic does not have. A value as YAML holds it comes in; a
checked value comes out."""

from __future__ import annotations

import datetime
import re
from typing import Annotated, Any, Literal, get_args

import pydantic
import pydantic_core

from pipeline.storage.addresses import problem_of, problem_of_options


class Section(pydantic.BaseModel):
    """A mapping of a job spec: frozen, and closed to unknown keys."""

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True
    )

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _no_number_for_a_truth_value(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        """pydantic, like Python, takes true for 1 and 0 for false."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        takes_truth = bool in (annotation, *get_args(annotation))
        if (
            isinstance(value, int | float)
            and isinstance(value, bool) != takes_truth
            and (takes_truth or isinstance(value, bool))
        ):
            raise pydantic_core.PydanticCustomError("truth_value", "a number for a truth value")
        return value


def takes(words: str) -> Any:
    """What a type takes, in words with an example, where its schema does not say it well. It stands
    beside the description of a field, which says what the field is for."""
    return pydantic.Field(json_schema_extra={"takes": words})


_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _as_kept(value: Any) -> Any:
    """A name or a list of names stands for string columns; a mapping gives each column its type."""
    names = _as_tuple(value)
    is_list = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return dict.fromkeys(names, "string") if is_list else value


def _as_duration(value: Any) -> Any:
    """Text with a unit, ISO 8601, or a zero, which needs no unit."""
    if isinstance(value, datetime.timedelta) or str(value).strip() == "0":
        return datetime.timedelta(0) if not isinstance(value, datetime.timedelta) else value
    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*(s|min|h|d)\s*", str(value))
    if match:
        return datetime.timedelta(seconds=float(match[1]) * _SECONDS[match[2]])
    if isinstance(value, str) and value.strip().startswith("P"):
        return value
    raise pydantic_core.PydanticCustomError("duration", "a duration has a unit")


def _allowed_uri(uri: str) -> str:
    if problem := problem_of(uri):
        raise ValueError(problem)
    return uri


def _allowed_options(options: dict[str, Any]) -> dict[str, Any]:
    if problem := problem_of_options(options):
        raise ValueError(problem)
    return options


MOST = 2**31 - 1
"""The largest count."""

MOST_BYTES = 512 << 20
"""The largest `part_bytes` and the largest `max_record_bytes`. A part is at most the sum of both;
its texts must fit into one Arrow column of 2 GiB, also when normalised, and each stage holds a part
in memory several times over."""


def _part_bytes(size: Auto | pydantic.ByteSize) -> Auto | pydantic.ByteSize:
    if size != "auto" and not 1024 <= size <= MOST_BYTES:
        raise pydantic_core.PydanticCustomError("part_bytes", "outside the bounds")
    return size


Auto = Literal["auto"]
RecordSize = Annotated[
    pydantic.ByteSize,
    pydantic.Field(ge=1, le=MOST_BYTES),
    takes("a size up to 512MiB, for instance 16MiB"),
]
PartSize = Annotated[
    Auto | pydantic.ByteSize,
    pydantic.AfterValidator(_part_bytes),
    takes("auto, or a size from 1KiB to 512MiB, for instance 4MiB"),
]
Name = Annotated[str, pydantic.Field(min_length=1)]
PromptName = Annotated[
    Name,
    pydantic.BeforeValidator(
        lambda value: "auto" if value is None else value, json_schema_input_type=Name | None
    ),
    takes("auto, or the name of a prompt of the model, for instance passage"),
]
Names = Annotated[
    tuple[Name, ...],
    pydantic.BeforeValidator(_as_tuple, json_schema_input_type=Name | tuple[Name, ...]),
    takes("a name or a list of names, for instance [lang]"),
]
Languages = Annotated[
    tuple[Annotated[str, pydantic.Field(pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]{1,8})*$")], ...],
    pydantic.BeforeValidator(_as_tuple),
    takes("a language code or a list of them, for instance [ja, en]"),
]
Uri = Annotated[
    Name,
    pydantic.AfterValidator(_allowed_uri),
    takes("a path or a URI, for instance data/a.jsonl.gz or s3://bucket/a"),
]
Uris = Annotated[
    tuple[Uri, ...],
    pydantic.Field(min_length=1),
    pydantic.BeforeValidator(_as_tuple, json_schema_input_type=Name | tuple[Name, ...]),
    takes("a path or a URI, or a list of them, for instance s3://bucket/a/*.jsonl.gz"),
]
KeptColumns = Annotated[
    dict[Name, str],
    pydantic.BeforeValidator(
        _as_kept, json_schema_input_type=Name | tuple[Name, ...] | dict[Name, str]
    ),
    takes(
        "a name, a list of names, or a mapping of names to types, "
        "for instance [lang] or {year: int64}"
    ),
]
Count = Annotated[int, pydantic.Field(ge=1, le=MOST)]
Options = Annotated[
    dict[str, Any],
    pydantic.AfterValidator(_allowed_options),
    takes("a mapping, for instance {endpoint_url: http://127.0.0.1:9000}"),
]
Duration = Annotated[
    datetime.timedelta,
    pydantic.BeforeValidator(_as_duration, json_schema_input_type=str | Literal[0]),
    pydantic.Field(ge=datetime.timedelta(0)),
    takes("a duration with its unit, for instance 90s, 10min, 2h or 1d"),
]
