"""Parquet: only the columns that are needed, cut at row groups, read in small batches.

`source_record` is the row number in the file, `record_bytes` the length of the row's text in UTF-8.
The bytes of string columns are checked here, because Parquet readers do not. A row group that
cannot be decoded gives its rows up to the damaged page and one `damaged_shard` row at the first
lost row; the row groups after it are read. Page checksums are verified where the writer made them.
A footer that cannot be read damages the whole shard.

Memory: a batch, the pages it lies on, and READ_BUFFER_BYTES a column. Page headers may claim 2 GiB
each, which Arrow allocates at once, so it decodes under a limit (PAGES_BYTES): rows that need more
count as damaged.

pyarrow's `RowGroupMetaData.column` is never called: of a footer with sizes that do not fit it kills
the process (pyarrow 26, C++ exception through a function that declares none). Row groups are sized
by their totals.
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

from pipeline.errors import ShardDamaged
from pipeline.job.spec import InputSpec
from pipeline.read.columns import column_from_array, plain
from pipeline.read.memory_limit import limited
from pipeline.read.records import (
    BATCH_RECORDS,
    Rejects,
    batched,
    check_columns,
    damaged_table,
    records_table,
    reject_all,
    reject_large,
    reject_nul,
    rows_where,
    utf8_column,
)
from pipeline.storage.lineage import Shard, Span

DECODED_ROWS = 64
"""Rows that Arrow decodes at once. They are put together to batches afterwards: behind a
dictionary, or beside many short ones, 4,096 rows of a few kilobytes in the file can be gigabytes
of text."""

READ_BUFFER_BYTES = 4 << 20
"""What is asked of the store at once; without it pyarrow reads a whole column chunk of a row group
into memory."""

PAGES_BYTES = 512 << 20
"""What the process may grow by while Arrow decodes one batch, besides four times the largest
record."""

_MOST_ROWS = 1 << 62  # positions are int64


class ParquetReader:
    """Reads `.parquet`."""

    def spans(
        self, shard: Shard, open_shard: Callable[[Shard], BinaryIO], part_bytes: int
    ) -> list[Span]:
        """Row-group ranges of about `part_bytes` before compression. Reads the footer of a shard
        that is larger."""
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
                n_bytes += max(0, metadata.row_group(group).total_byte_size)
        stops = [*starts[1:], None]
        return [Span(shard=shard, start=a, stop=b) for a, b in zip(starts, stops, strict=True)]

    def records(self, file: BinaryIO, span: Span, spec: InputSpec) -> Iterator[pa.Table]:
        source = _Source(file)
        parquet = _open(source, span.shard.uri)
        names = check_columns(parquet.schema_arrow.names, span.shard.uri, spec)
        metadata = parquet.metadata
        row = sum(metadata.row_group(group).num_rows for group in range(span.start))
        stop = metadata.num_row_groups if span.stop is None else span.stop
        most_bytes = PAGES_BYTES + 4 * spec.max_record_bytes
        for group in range(span.start, stop):
            n_rows, n_read = metadata.row_group(group).num_rows, 0
            try:
                for batch in _batches(source, span.shard.uri, metadata, group, names, most_bytes):
                    yield _table(batch, row + n_read, spec)
                    n_read += batch.num_rows
            except ShardDamaged as error:
                detail = f"row group {group}: rows {row + n_read} to {row + n_rows - 1} cannot be read: {error}"
                yield damaged_table(row + n_read, detail, spec)
            row += n_rows


class _Source(io.RawIOBase):
    """The raw file, remembering its own error: pyarrow raises OSError for damage and passes on
    OSError of the network, and only the latter may be tried again."""

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


def _open(
    file: BinaryIO | _Source, uri: str, metadata: pq.FileMetaData | None = None
) -> pq.ParquetFile:
    """metadata: from the first opening, so that each further one costs nothing."""
    source = file if isinstance(file, _Source) else _Source(file)
    try:
        parquet = pq.ParquetFile(
            pa.PythonFile(source, mode="r"),
            pre_buffer=False,
            buffer_size=READ_BUFFER_BYTES,
            page_checksum_verification=True,
            metadata=metadata,
        )
        found = parquet.metadata
        n_rows = (
            [0] if metadata else [found.row_group(n).num_rows for n in range(found.num_row_groups)]
        )
        if min(n_rows, default=0) < 0 or sum(n_rows) > _MOST_ROWS:
            raise OSError(f"row groups of {min(n_rows)} to {max(n_rows)} rows")
        _ = parquet.schema_arrow.names
        return parquet
    except (pa.ArrowException, OSError, UnicodeError) as error:  # UnicodeError: names of columns
        raise source.error or ShardDamaged(
            f"{uri}: the Parquet footer cannot be read: {error}", 0
        ) from error


def _batches(
    source: _Source,
    uri: str,
    metadata: pq.FileMetaData,
    group: int,
    names: list[str],
    most_bytes: int,
) -> Iterator[pa.RecordBatch]:
    """The rows of one row group. Raises ShardDamaged after the last row that can be decoded."""
    n_rows, n_read = metadata.row_group(group).num_rows, 0
    steps = _decoded(source, uri, metadata, group, names, DECODED_ROWS)
    try:
        grouped = batched(steps, lambda batch: batch.nbytes, BATCH_RECORDS // DECODED_ROWS)
        for batches in limited(grouped, most_bytes):
            yield from pa.Table.from_batches(batches).combine_chunks().to_batches()
            n_read += sum(map(len, batches))
    except ShardDamaged:
        # The rows that failed together may begin with good ones: once more, row by row. Slow (15 us
        # a row), and rare.
        for row, batch in enumerate(
            limited(_decoded(source, uri, metadata, group, names, 1), most_bytes)
        ):
            if row >= n_read:
                yield batch
        raise
    if n_read != n_rows:
        raise ShardDamaged(f"{uri}: {n_read} rows instead of {n_rows}", n_read)


def _decoded(
    source: _Source,
    uri: str,
    metadata: pq.FileMetaData,
    group: int,
    names: list[str],
    batch_rows: int,
) -> Iterator[pa.RecordBatch]:
    parquet = _open(source, uri, metadata)
    batches = parquet.iter_batches(
        batch_size=batch_rows, row_groups=[group], columns=names, use_threads=False
    )
    while True:
        try:
            batch = next(batches, None)
        except MemoryError as error:
            raise ShardDamaged(
                f"{uri}: decoding takes too much memory ({error}). Write smaller pages.", 0
            ) from error
        except (pa.ArrowException, OSError) as error:
            raise source.error or ShardDamaged(f"{uri}: {error}", 0) from error
        if batch is None:
            return
        yield batch


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
        reject_all(
            rejects,
            rows_where(array.is_valid()),
            "text_not_a_string",
            f"the column is of type {array.type}",
        )
        array = pa.nulls(len(array), pa.string())
    if array.null_count:
        reject_all(rejects, rows_where(array.is_null()), "null_text", "the text is null")
    return utf8_column(array, rejects, "invalid_utf8", "the text is not UTF-8")


def _id_column(array: pa.Array, name: str, rejects: Rejects) -> pa.Array:
    if pat.is_binary(array.type):
        ids = utf8_column(array, rejects, "invalid_id", f"{name}: not UTF-8")
    elif pat.is_integer(array.type):
        ids = array.cast(pa.string())
    else:
        ids = pa.nulls(len(array), pa.string())
    if ids.null_count:
        found = (
            "null"
            if pat.is_binary(array.type) or pat.is_integer(array.type)
            else f"of type {array.type}"
        )
        reject_all(rejects, rows_where(ids.is_null()), "invalid_id", f"{name}: {found}")
    return ids
