"""The `input` section of a job spec: where documents come from, which fields matter."""

from __future__ import annotations

import functools
from typing import Self

import pyarrow as pa
import pydantic

from pipeline.job.field_types import KeptColumns, Name, Options, RecordSize, Section, Uris
from pipeline.storage import schema

FORMATS = ("jsonl", "parquet", "text", "csv", "warc")
"""Formats of shards; each has its reader in `pipeline/read/`."""


class InputSpec(Section):
    """Where documents come from and which fields of a record matter."""

    uri: Uris
    format: str = "auto"
    text_column: Name = "text"
    id_column: Name | None = None
    keep_columns: KeptColumns = {}
    max_record_bytes: RecordSize = pydantic.ByteSize(16 << 20)
    storage_options: Options = {}

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.format not in {"auto", *FORMATS}:
            raise ValueError(
                f"input.format '{self.format}' is not one of auto, {', '.join(FORMATS)}"
            )
        for name, type_name in self.keep_columns.items():
            if name in schema.RESERVED:
                raise ValueError(
                    f"input.keep_columns: '{name}' is a column of the output; "
                    "rename it in the source"
                )
            if type_name not in schema.KEPT_TYPES:
                raise ValueError(
                    f"input.keep_columns.{name}: type '{type_name}' is not one of "
                    f"{', '.join(schema.KEPT_TYPES)}"
                )
        return self

    @functools.cached_property
    def keep(self) -> dict[str, pa.DataType]:
        """The Arrow type of each kept column, in the order of the spec."""
        return {name: schema.KEPT_TYPES[type_name] for name, type_name in self.keep_columns.items()}
