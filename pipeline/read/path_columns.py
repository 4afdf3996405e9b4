"""Kept columns that the path of a shard holds: `lang=ja/part-0.jsonl` has the column `lang`.

Spark, Hive and this package write such folders, and Spark, DuckDB, Polars and Arrow read them so:
the value of the folder is the value of every record below it, also where the record has a field of
that name. The name and the value are percent-decoded, and `__HIVE_DEFAULT_PARTITION__` is null. No
reader knows of it. Cost: one value a shard, repeated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.job.input_spec import InputSpec
from pipeline.read.columns import column_from_values
from pipeline.read.compression import path_of
from pipeline.read.records import Rejects
from pipeline.storage import layout
from pipeline.storage.schema import records_schema


def path_columns(uri: str, spec: InputSpec) -> dict[str, str | None]:
    """The kept columns that the path of a shard holds, with their values as text."""
    values = layout.partition_values(path_of(uri)) if spec.keep_columns else {}
    return {name: values[name] for name in spec.keep_columns if name in values}


def without_path_columns(spec: InputSpec, columns: Mapping[str, str | None]) -> InputSpec:
    """The spec for the reader, which does not look for these columns."""
    keep = {name: type_ for name, type_ in spec.keep_columns.items() if name not in columns}
    copy = spec.model_copy(update={"keep_columns": keep})
    copy.__dict__.pop("keep", None)  # pydantic copies what cached_property has computed
    return copy


def with_path_columns(
    tables: Iterable[pa.Table], spec: InputSpec, columns: Mapping[str, str | None]
) -> Iterator[pa.Table]:
    """Tables of a reader with the columns of the path, each value cast to the declared type. A
    value that does not fit it rejects every record of the shard."""
    rejects: Rejects = {}
    values = {
        name: column_from_values(name, [value], spec.keep[name], rejects)[0]
        for name, value in columns.items()
    }
    schema = records_schema(spec.keep)
    for table in tables:
        arrays = {name: table[name] for name in table.column_names}
        for name, value in values.items():
            arrays[name] = pa.repeat(value, table.num_rows)
        for reason, detail in rejects.values():
            is_new = pc.is_null(table["reason"])
            arrays["reason"] = pc.if_else(is_new, reason, table["reason"])
            arrays["detail"] = pc.if_else(is_new, detail, table["detail"])
            arrays["text"] = pa.nulls(table.num_rows, pa.string())
        yield pa.Table.from_arrays([arrays[name] for name in schema.names], schema=schema)
