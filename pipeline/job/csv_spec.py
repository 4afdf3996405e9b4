"""The `input.csv` section of a job spec: how CSV and TSV are written."""

from __future__ import annotations

from typing import Annotated, Self

import pydantic
import pydantic_core

from pipeline.job.field_types import Name, Section


def _character(value: str) -> str:
    if value not in ("auto", "none") and (len(value) != 1 or value in "\r\n\0"):
        raise pydantic_core.PydanticCustomError("character", "not one character")
    return value


Character = Annotated[
    str,
    pydantic.AfterValidator(_character),
    pydantic.Field(
        description='auto, none or one character, a tab as "\\t" in double quotes, '
        "for instance ';'"
    ),
]


class CsvSpec(Section):
    """The dialect of CSV files. What is auto is found in the first rows of each shard.

    delimiter: auto is a tab in `.tsv`, otherwise a comma, or `;`, `|` or a tab where only so the
    header has the columns of the spec. quote: auto is `"`, in `.tsv` none. escape: the character
    that makes a quote part of a quoted field, beside doubling it; auto is none, or a backslash
    where the first rows cannot be read without. columns: the names, for files without a header row.
    """

    delimiter: Character = "auto"
    quote: Character = "auto"
    escape: Character = "auto"
    columns: Annotated[tuple[Name, ...], pydantic.Field(min_length=1)] | None = None

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.delimiter == "none":
            raise ValueError("input.csv.delimiter: none is for formats without fields: use text")
        chosen = [
            character
            for character in (self.delimiter, self.quote, self.escape)
            if character not in ("auto", "none")
        ]
        if len(set(chosen)) < len(chosen):
            raise ValueError("input.csv: delimiter, quote and escape are three characters")
        return self
