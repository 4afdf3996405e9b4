"""Parquet: only the columns that are needed, cut at row groups, read in small batches.

`source_record` is the row number in the file, `record_bytes` the length of the row's text in UTF-8. The bytes of string
columns are checked here, because Parquet readers do not. A row group that cannot be decoded gives its rows up to
the damaged page and one `damaged_shard` row at the first lost row; the row groups after it are read. Page checksums are
verified where the writer made them. A footer that cannot be read damages the whole shard.

Memory: a batch, the pages it lies on, and READ_BUFFER_BYTES a column.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as pat

from pipeline.errors import InputError, ShardDamaged
from pipeline.lineage import Shard, Span
from pipeline.read.columns import column_from_array, plain
from pipeline.read.records import (
    BATCH_BYTES,
    BATCH_RECORDS,
    ReadOptions,
    Rejects,
    damaged_table,
    records_table,
    reject,
    reject_nul,
    utf8_column,
)

READ_BUFFER_BYTES = 4 << 20
"""What is asked of the store at once; without it pyarrow reads a whole column chunk of a row group into memory."""


class ParquetReader:
    """Reads `.parquet`."""

    def spans(self, shard: Shard, open_shard: Callable[[Shard], BinaryIO], part_bytes: int) -> list[Span]:
        """Row-group ranges of about `part_bytes` of uncompressed string and binary columns (what the spec may ask for;
        numbers and vectors are rarely read). Reads the footer of a shard that is larger than `part_bytes`."""
        if shard.size_bytes <= part_bytes:
            return [Span(shard=shard)]
        with open_shard(shard) as file:
            try:
                metadata = _open(file, shard.uri).metadata
            except ShardDamaged:
                return [Span(shard=shard)]  # the read says so, as a reject
            starts, n_bytes = [0], 0
            for group in range(metadata.num_row_groups):
                if n_bytes >= part_bytes:
                    starts.append(group)
                    n_bytes = 0
                row_group = metadata.row_group(group)
                columns = (row_group.column(i) for i in range(metadata.num_columns))
                n_bytes += sum(c.total_uncompressed_size for c in columns if c.physical_type == "BYTE_ARRAY")
        stops = [*starts[1:], None]
        return [Span(shard=shard, start=a, stop=b) for a, b in zip(starts, stops, strict=True)]

    def records(self, file: BinaryIO, span: Span, options: ReadOptions) -> Iterator[pa.Table]:
        source = _Source(file)
        parquet = _open(source, span.shard.uri)
        _check_columns(parquet.schema_arrow, span.shard.uri, options)
        metadata = parquet.metadata
        row = sum(metadata.row_group(group).num_rows for group in range(span.start))
        stop = metadata.num_row_groups if span.stop is None else span.stop
        for group in range(span.start, stop):
            n_rows, n_read = metadata.row_group(group).num_rows, 0
            batch_rows = _batch_rows(metadata.row_group(group), options)
            try:
                for batch in _batches(source, span.shard.uri, group, options, batch_rows, n_rows):
                    yield _table(batch, row + n_read, options)
                    n_read += batch.num_rows
            except ShardDamaged as error:
                detail = f"row group {group}: rows {row + n_read} to {row + n_rows - 1} cannot be read: {error}"
                yield damaged_table(row + n_read, detail, options)
            row += n_rows


class _Source(io.RawIOBase):
    """The raw file, remembering its own error: pyarrow raises OSError for damage and passes on OSError of the network,
    and only the latter may be tried again."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self.error: Exception | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        try:
            return self._file.read(size)
        except Exception as error:
            self.error = error
            raise

    def seek(self, offset: int, whence: int = 0, /) -> int:
        try:
            return self._file.seek(offset, whence)
        except Exception as error:
            self.error = error
            raise

    def tell(self) -> int:
        return self._file.tell()


def _open(file: BinaryIO | _Source, uri: str) -> pq.ParquetFile:
    source = file if isinstance(file, _Source) else _Source(file)
    try:
        return pq.ParquetFile(
            pa.PythonFile(source, mode="r"), pre_buffer=False, buffer_size=READ_BUFFER_BYTES,
            page_checksum_verification=True,
        )  # fmt: skip
    except (pa.ArrowException, OSError) as error:
        raise source.error or ShardDamaged(f"{uri}: the Parquet footer cannot be read: {error}", 0) from error


def _check_columns(schema: pa.Schema, uri: str, options: ReadOptions) -> None:
    wanted = {"input.text_column": [options.text_column], "input.keep_columns": list(options.keep)}
    if options.id_column is not None:
        wanted["input.id_column"] = [options.id_column]
    for setting, names in wanted.items():
        for name in names:
            if schema.names.count(name) != 1:
                found = "found twice" if name in schema.names else "not found"
                columns = ", ".join(schema.names)
                raise InputError(f"{uri}: column {name!r} {found}; columns are {columns}. Set {setting}.")


def _columns(options: ReadOptions) -> list[str]:
    names = [options.text_column, *([options.id_column] if options.id_column else []), *options.keep]
    return list(dict.fromkeys(names))


def _batch_rows(row_group: pq.RowGroupMetaData, options: ReadOptions) -> int:
    """Rows of about BATCH_BYTES, by the average row of the row group."""
    columns = (row_group.column(i) for i in range(row_group.num_columns))
    wanted = set(_columns(options))
    n_bytes = sum(c.total_uncompressed_size for c in columns if c.path_in_schema.split(".")[0] in wanted)
    n_rows: int = BATCH_BYTES * row_group.num_rows // max(n_bytes, 1)
    return max(1, min(BATCH_RECORDS, n_rows))


def _batches(
    source: _Source, uri: str, group: int, options: ReadOptions, batch_rows: int, n_rows: int
) -> Iterator[pa.RecordBatch]:
    """The rows of one row group. Raises ShardDamaged after the last row that can be decoded."""
    n_read = 0
    try:
        for batch in _decoded(source, uri, group, options, batch_rows):
            yield batch
            n_read += batch.num_rows
    except ShardDamaged:
        # The batch that failed may begin with good rows: once more, row by row. Slow (15 us a row), and rare.
        for row, batch in enumerate(_decoded(source, uri, group, options, 1)):
            if row >= n_read:
                yield batch
        raise
    if n_read != n_rows:
        raise ShardDamaged(f"{uri}: {n_read} rows instead of {n_rows}", n_read)


def _decoded(source: _Source, uri: str, group: int, options: ReadOptions, batch_rows: int) -> Iterator[pa.RecordBatch]:
    parquet = _open(source, uri)
    batches = parquet.iter_batches(
        batch_size=batch_rows, row_groups=[group], columns=_columns(options), use_threads=False
    )
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError) as error:
            raise source.error or ShardDamaged(f"{uri}: {error}", 0) from error
        if batch is None:
            return
        yield batch


def _table(batch: pa.RecordBatch, first_row: int, options: ReadOptions) -> pa.Table:
    rejects: Rejects = {}
    text = plain(batch.column(options.text_column))
    n_bytes = np.zeros(len(text), np.int64)
    if pat.is_binary(text.type):
        n_bytes = pc.binary_length(text).fill_null(0).cast(pa.int64()).to_numpy()
    text = _text_column(text, n_bytes, options.max_record_bytes, rejects)
    reject_nul(text, rejects)
    doc_id: pa.Array = pa.nulls(len(batch), pa.string())
    if options.id_column is not None:
        doc_id = _id_column(plain(batch.column(options.id_column)), options.id_column, rejects)
    kept = [column_from_array(name, batch.column(name), type_, rejects) for name, type_ in options.keep.items()]
    return records_table(
        options, source_record=np.arange(first_row, first_row + len(batch)), record_bytes=n_bytes,
        doc_id=doc_id, text=text, kept=kept, rejects=rejects,
    )  # fmt: skip


def _text_column(array: pa.Array, n_bytes: np.ndarray, max_bytes: int, rejects: Rejects) -> pa.Array:
    if not (pat.is_binary(array.type) or pat.is_null(array.type)):
        for row in np.flatnonzero(array.is_valid().to_numpy(zero_copy_only=False)).tolist():
            reject(rejects, row, "text_not_a_string", f"the column is of type {array.type}")
        array = pa.nulls(len(array), pa.string())
    for row in np.flatnonzero(n_bytes > max_bytes).tolist():
        detail = f"{n_bytes[row]} bytes, input.max_record_bytes is {max_bytes}"
        reject(rejects, row, "record_too_large", detail)
    is_null = array.is_null()
    text, bad = utf8_column(array)
    for row in bad:
        reject(rejects, row, "invalid_utf8", "the text is not UTF-8")
    if array.null_count:
        for row in np.flatnonzero(is_null.to_numpy(zero_copy_only=False)).tolist():
            reject(rejects, row, "null_text", "the text is null")
    return text


def _id_column(array: pa.Array, name: str, rejects: Rejects) -> pa.Array:
    if pat.is_binary(array.type):
        ids, bad = utf8_column(array)
        for row in bad:
            reject(rejects, row, "invalid_id", f"{name}: not UTF-8")
    elif pat.is_integer(array.type):
        ids = array.cast(pa.string())
    else:
        ids = pa.nulls(len(array), pa.string())
    if ids.null_count:
        for row in np.flatnonzero(ids.is_null().to_numpy(zero_copy_only=False)).tolist():
            found = "null" if pat.is_binary(array.type) or pat.is_integer(array.type) else f"of type {array.type}"
            reject(rejects, row, "invalid_id", f"{name}: {found}")
    return ids
