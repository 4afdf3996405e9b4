"""Row groups of a Parquet shard, decoded a few rows at a time under a memory limit, for `parquet`.

A row group that cannot be decoded gives its rows up to the damaged page and then `ShardDamaged`.
Page checksums are verified where the writer made them.

Memory: a batch, the pages it lies on, and READ_BUFFER_BYTES per column. Page headers can claim 2
GiB each, which Arrow allocates at once, so it decodes under a limit that the caller sets: rows that
need more count as damaged.

pyarrow's `RowGroupMetaData.column` is never called: for a footer with sizes that do not fit, it
kills the process (pyarrow 26, a C++ exception through a function that declares none). Row groups
are sized by their totals.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ShardDamaged
from pipeline.read.containers import other_kind
from pipeline.read.records import BATCH_RECORDS, batched
from pipeline.storage.memory_limit import limited

DECODED_ROWS = 64
"""How many rows Arrow decodes at once; they are combined into batches afterwards. Behind a
dictionary, or next to many short rows, 4,096 rows of a few kilobytes in the file can be gigabytes
of text."""

READ_BUFFER_BYTES = 4 << 20
"""How many bytes are requested from the store at once. Without a buffer pyarrow reads a whole
column chunk of a row group into memory."""

_HEAD_BYTES = 64

_MAX_ROWS = 1 << 62
"""Positions of rows are int64."""


class ParquetShard:
    """An open Parquet shard. Raises ShardDamaged when its footer cannot be read.

    metadata: the footer. schema: the columns as Arrow has them.
    """

    def __init__(self, file: BinaryIO, uri: str) -> None:
        self._source = _Source(file)
        self._uri = uri
        try:
            parquet = self._open()
            self.metadata = parquet.metadata
            self.schema: pa.Schema = parquet.schema_arrow
            _check_row_counts(self.metadata)
        # UnicodeError: names of columns
        except (pa.ArrowException, OSError, UnicodeError) as error:
            cause = f"the Parquet footer cannot be read: {error}"
            if self._source.error is None:
                file.seek(0)
                problem = other_kind(file.read(_HEAD_BYTES))
                cause = f"the shard {problem}" if problem and "Parquet" not in problem else cause
            raise self._source.error or ShardDamaged(f"{uri}: {cause}", 0) from error

    def batches(self, group: int, columns: list[str], max_bytes: int) -> Iterator[pa.RecordBatch]:
        """The rows of one row group, while the process grows by at most `max_bytes` for a batch.

        Raises ShardDamaged after the last row that can be decoded.
        """
        n_rows = self.metadata.row_group(group).num_rows
        n_read = 0
        steps = self._decoded(group, columns, DECODED_ROWS)
        try:
            grouped = batched(steps, lambda batch: batch.nbytes, BATCH_RECORDS // DECODED_ROWS)
            for batches in limited(grouped, max_bytes):
                yield from pa.Table.from_batches(batches).combine_chunks().to_batches()
                n_read += sum(map(len, batches))
        except ShardDamaged:
            # The rows that failed together may begin with good ones: decode again, row by row. This
            # is slow (15 us a row) and rare.
            single_rows = limited(self._decoded(group, columns, 1), max_bytes)
            for row, batch in enumerate(single_rows):
                if row >= n_read:
                    yield batch
            raise
        if n_read != n_rows:
            raise ShardDamaged(f"{self._uri}: {n_read} rows instead of {n_rows}", n_read)

    def _decoded(self, group: int, columns: list[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        try:
            yield from self._open(self.metadata).iter_batches(
                batch_size=batch_rows, row_groups=[group], columns=columns, use_threads=False
            )
        except MemoryError as error:
            raise ShardDamaged(
                f"{self._uri}: decoding takes too much memory ({error}). Write smaller pages.", 0
            ) from error
        except (pa.ArrowException, OSError) as error:
            raise self._source.error or ShardDamaged(f"{self._uri}: {error}", 0) from error

    def _open(self, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
        """metadata: from the first opening, so that the footer is read only once."""
        return pq.ParquetFile(
            pa.PythonFile(self._source, mode="r"),
            pre_buffer=False,
            buffer_size=READ_BUFFER_BYTES,
            page_checksum_verification=True,
            metadata=metadata,
        )


def _check_row_counts(metadata: pq.FileMetaData) -> None:
    counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    if min(counts, default=0) < 0 or sum(counts) > _MAX_ROWS:
        raise OSError(f"row groups of {min(counts)} to {max(counts)} rows")


class _Source(io.RawIOBase):
    """The raw file, which remembers its own error: pyarrow raises OSError for damage and passes on
    OSError of the network, and only the latter may be retried."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self.error: Exception | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        with self._remembering():
            return self._file.read(size)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        with self._remembering():
            return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    @contextlib.contextmanager
    def _remembering(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.error = error
            raise
