"""Parquet: only the columns that are needed, cut at row groups, read in small batches.

`source_record` is the row number in the file, `record_bytes` the length of the row's text in UTF-8.
The bytes of string columns are checked here, because Parquet readers do not check them. A row group
that cannot be decoded gives its rows up to the damaged page and one `damaged_shard` row at the
first lost row; the row groups after it are read. A footer that cannot be read damages the whole
shard.

Decoding, its memory and its limit: `row_groups`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import InputError, ShardDamaged
from pipeline.job.input_spec import InputSpec
from pipeline.read.columns import column_from_array, fits
from pipeline.read.records import (
    Rejects,
    check_columns,
    damaged_table,
    records_table,
    reject_large,
    reject_nul,
    utf8_column,
)
from pipeline.read.row_groups import ParquetShard
from pipeline.read.values.ids import ids_of_column, is_id_type
from pipeline.read.values.nested import array_at, column_to_read, nested_names, type_at
from pipeline.read.values.texts import bytes_of, filled, is_text_type, text_of_column
from pipeline.storage.lineage import Shard, Span

PAGES_BYTES = 512 << 20
"""How many bytes the process may grow by while Arrow decodes one batch, in addition to four times
`input.max_record_bytes`."""


class ParquetReader:
    """Reads `.parquet`."""

    def spans(
        self, shard: Shard, open_shard: Callable[[Shard], BinaryIO], part_bytes: int
    ) -> list[Span]:
        """Ranges of row groups of about `part_bytes` before compression. Reads the footer of a
        shard that is larger."""
        if shard.size_bytes <= part_bytes:
            return [Span(shard=shard)]
        with open_shard(shard) as file:
            try:
                metadata = ParquetShard(file, shard.uri).metadata
            except ShardDamaged:
                return [Span(shard=shard)]  # reading it reports the damage, as a reject
            starts = [0]
            n_bytes = 0
            for group in range(metadata.num_row_groups):
                if n_bytes >= part_bytes:
                    starts.append(group)
                    n_bytes = 0
                n_bytes += max(0, metadata.row_group(group).total_byte_size)
        bounds = itertools.pairwise([*starts, None])
        return [Span(shard=shard, start=start or 0, stop=stop) for start, stop in bounds]

    def records(self, file: BinaryIO, span: Span, spec: InputSpec) -> Iterator[pa.Table]:
        parquet = ParquetShard(file, span.shard.uri)
        columns = _checked_columns(parquet.schema, span.shard.uri, spec)
        row_counts = [
            parquet.metadata.row_group(group).num_rows
            for group in range(parquet.metadata.num_row_groups)
        ]
        row = sum(row_counts[: span.start])
        max_bytes = PAGES_BYTES + 4 * spec.max_record_bytes
        for group in range(len(row_counts))[span.start : span.stop]:
            end = row + row_counts[group]
            try:
                for batch in parquet.batches(group, columns, max_bytes):
                    yield _table(batch, row, spec)
                    row += batch.num_rows
            except ShardDamaged as error:
                cause = str(error).removeprefix(f"{span.shard.uri}: ")
                lost = f"row group {group}: rows {row} to {end - 1} cannot be read: {cause}"
                lost_bytes = span.shard.size_bytes * (end - row) // max(1, sum(row_counts))
                yield damaged_table(row, lost, spec, lost_bytes)
            row = end


def first_fields(file: BinaryIO, span: Span, spec: InputSpec) -> list[str]:
    """The columns of a shard and the leaves inside of them, for a preview."""
    schema = ParquetShard(file, span.shard.uri).schema
    return [*schema.names, *nested_names(schema)]


def _checked_columns(schema: pa.Schema, uri: str, spec: InputSpec) -> list[str]:
    """The columns to read from the file. Raises InputError for one that is missing, or whose type
    can hold no text, no identifier or no value of the declared type."""
    names = check_columns([*schema.names, *nested_names(schema)], uri, spec)
    types = {name: type_at(schema, name) for name in names}
    is_template = spec.template is not None
    for name in spec.text_fields:
        if not is_text_type(types[name], in_template=is_template):
            texts = ", ".join(_names_of_texts(schema)) or "none"
            raise InputError(
                f"{uri}: column {name!r} is of type {types[name]} and not a text; columns of text "
                f"are {texts}. Set input.{spec.text_setting}."
            )
    if spec.id_column is not None and not is_id_type(types[spec.id_column]):
        raise InputError(
            f"{uri}: column {spec.id_column!r} is of type {types[spec.id_column]}, whose values "
            "have no exact text for an id. Set input.id_column."
        )
    for name, declared in spec.keep.items():
        if not fits(types[name], declared):
            raise InputError(
                f"{uri}: column {name!r} is of type {types[name]} and not {declared}. Set its type "
                "in input.keep_columns."
            )
    return list(dict.fromkeys(column_to_read(schema, name) for name in names))


def _names_of_texts(schema: pa.Schema) -> list[str]:
    names = [*schema.names, *nested_names(schema)]
    types = [(name, type_at(schema, name)) for name in names]
    return [name for name, type_ in types if type_ is not None and is_text_type(type_)]


def _table(batch: pa.RecordBatch, first_row: int, spec: InputSpec) -> pa.Table:
    rejects: Rejects = {}
    fields = [bytes_of(array_at(batch, name)) for name in spec.text_fields]
    n_bytes = sum(
        pc.binary_length(field).fill_null(0).cast(pa.int64()).to_numpy() for field in fields
    )
    reject_large(n_bytes, spec, rejects)
    if spec.template is None:
        text = text_of_column(fields[0], rejects)
    else:
        detail = "a field of the template is not UTF-8"
        strings = [utf8_column(field, rejects, "invalid_utf8", detail) for field in fields]
        text = filled(spec.template, strings, rejects)
    reject_nul(text, rejects)
    doc_id = None
    if spec.id_column is not None:
        doc_id = ids_of_column(array_at(batch, spec.id_column), spec.id_column, rejects)
    kept = [
        column_from_array(name, array_at(batch, name), type_, rejects)
        for name, type_ in spec.keep.items()
    ]
    return records_table(
        spec,
        source_record=np.arange(first_row, first_row + len(batch)),
        record_bytes=n_bytes,
        doc_id=doc_id,
        text=text,
        kept=kept,
        rejects=rejects,
    )
