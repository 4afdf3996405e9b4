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
import pyarrow.types as pat

from pipeline.errors import ShardDamaged
from pipeline.job.input_spec import InputSpec
from pipeline.read.columns import column_from_array, plain
from pipeline.read.records import (
    Rejects,
    check_columns,
    damaged_table,
    records_table,
    reject_all,
    reject_large,
    reject_nul,
    rows_where,
    utf8_column,
)
from pipeline.read.row_groups import ParquetShard
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
        columns = check_columns(parquet.column_names, span.shard.uri, spec)
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
                lost = f"row group {group}: rows {row} to {end - 1} cannot be read: {error}"
                lost_bytes = span.shard.size_bytes * (end - row) // max(1, sum(row_counts))
                yield damaged_table(row, lost, spec, lost_bytes)
            row = end


def first_fields(file: BinaryIO, span: Span, spec: InputSpec) -> list[str]:
    """The columns of a shard, for a preview."""
    return ParquetShard(file, span.shard.uri).column_names


def _table(batch: pa.RecordBatch, first_row: int, spec: InputSpec) -> pa.Table:
    rejects: Rejects = {}
    text = plain(batch.column(spec.text_column))
    n_bytes = np.zeros(len(text), np.int64)
    if pat.is_binary(text.type):
        n_bytes = pc.binary_length(text).fill_null(0).cast(pa.int64()).to_numpy()
    reject_large(n_bytes, spec, rejects)
    text = _text_column(text, rejects)
    reject_nul(text, rejects)
    doc_id = None
    if spec.id_column is not None:
        doc_id = _id_column(plain(batch.column(spec.id_column)), spec.id_column, rejects)
    kept = [
        column_from_array(name, batch.column(name), type_, rejects)
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


def _text_column(array: pa.Array, rejects: Rejects) -> pa.Array:
    if not (pat.is_binary(array.type) or pat.is_null(array.type)):
        detail = f"the column is of type {array.type}"
        reject_all(rejects, rows_where(array.is_valid()), "text_not_a_string", detail)
        array = pa.nulls(len(array), pa.string())
    reject_all(rejects, rows_where(array.is_null()), "null_text", "the text is null")
    return utf8_column(array, rejects, "invalid_utf8", "the text is not UTF-8")


def _id_column(array: pa.Array, name: str, rejects: Rejects) -> pa.Array:
    cause = "null"
    if pat.is_binary(array.type):
        ids = utf8_column(array, rejects, "invalid_id", f"{name}: not UTF-8")
    elif pat.is_integer(array.type):
        ids = array.cast(pa.string())
    else:
        ids = pa.nulls(len(array), pa.string())
        cause = f"of type {array.type}"
    reject_all(rejects, rows_where(ids.is_null()), "invalid_id", f"{name}: {cause}")
    return ids
