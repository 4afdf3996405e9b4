"""The `input.csv` section of a job spec: how CSV and TSV are written."""

from __future__ import annotations

from typing import Annotated, Self

import pydantic
import pydantic_core

from pipeline.job.field_types import Names, Section, takes


def _character(value: str) -> str:
    if value not in ("auto", "none") and (len(value) != 1 or value in "\r\n\0"):
        raise pydantic_core.PydanticCustomError("character", "not one character")
    return value


_ASCII = bytes({*range(32, 127), *b"\t\r\n"} - set(b"\\~"))
"""What every charset of lines keeps; JIS X 0201 has other characters in two places."""


def _encoding(value: str) -> str:
    try:
        if _ASCII.decode(value) == _ASCII.decode():
            return value
    except (LookupError, UnicodeError):
        pass
    raise pydantic_core.PydanticCustomError("encoding", "no charset of lines")


Encoding = Annotated[
    str,
    pydantic.AfterValidator(_encoding),
    takes(
        "a charset by its name in Python that contains ASCII (UTF-16 does not), "
        "for instance cp932 or gb18030"
    ),
]
Character = Annotated[
    str,
    pydantic.AfterValidator(_character),
    takes("auto, none or one character, a tab as \"\\t\" in double quotes, for instance ';'"),
]


class CsvSpec(Section):
    """The dialect of CSV files. What is auto is found in the first rows of each shard."""

    delimiter: Character = "auto"
    """The character between two fields. `auto` is a tab in `.tsv`, otherwise a comma, or `;`, `|`
    or a tab where only so the header has the columns of the spec."""

    quote: Character = "auto"
    """The character round a field that holds delimiters or line breaks. `auto` is `"`, and none in
    `.tsv`."""

    escape: Character = "auto"
    """The character that makes a quote part of a quoted field, beside doubling it. `auto` is none,
    or a backslash where the first rows cannot be read without."""

    encoding: Encoding = "utf-8"
    """The charset of the files, by its name in Python. UTF-8 unless they say otherwise."""

    columns: Annotated[Names, pydantic.Field(min_length=1)] | None = None
    """The names of the columns, for files without a header row; null takes them from the first
    row."""

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
