"""Rows of data files in a store: some columns, some rows, or a scan of many files.

Paths come in; tables and batches come out, in the types that the output's generation states, or an
OutputError that says which file is gone or damaged and what to do. Files are read side by side by
Python threads, which end before the interpreter does (`pipeline/storage/data_files.py` says why).
"""

from __future__ import annotations

import contextlib
import functools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import OutputError
from pipeline.storage.data_files import opened, own_types, read_table, selected
from pipeline.storage.retry import retried
from pipeline.storage.store import Store

SMALL_BYTES = 4 << 20
"""The size up to which an object is read whole: that costs no more than a few of its ranges."""

READERS = 4
"""The number of files that one process reads at the same time."""


@contextlib.contextmanager
def _open_file(store: Store, path: str) -> Iterator[pq.ParquetFile]:
    """A data file in a store. A small remote one is read whole: otherwise each column of a row
    group is a request."""
    with store.open(path) as source:
        is_small = not store.local and getattr(source, "size", SMALL_BYTES + 1) <= SMALL_BYTES
        data = store.read(path) if is_small else source
        yield retried(lambda: opened(data), f"read {store.shown_uri}/{path}", store.endpoint)


def read_rows(
    file: pq.ParquetFile, row_indices: npt.NDArray[np.integer], columns: Sequence[str]
) -> pa.Table:
    """The rows at `row_indices` (ascending) of a file, with those of `columns` that it has. Only
    their row groups are read. Raises pa.ArrowInvalid where the file has fewer rows."""
    footer = file.metadata
    if len(row_indices) and row_indices[-1] >= footer.num_rows:
        raise pa.ArrowInvalid(f"it has only {footer.num_rows} rows; its manifest says more")
    ends = np.cumsum([footer.row_group(number).num_rows for number in range(footer.num_row_groups)])
    groups = np.searchsorted(ends, row_indices, side="right")
    names = [name for name in columns if name in file.schema_arrow.names]
    tables = []
    for group in np.unique(groups).tolist():
        first_row = ends[group] - footer.row_group(group).num_rows
        table = file.read_row_group(group, names, use_threads=False)
        tables.append(table.take(pa.array(row_indices[groups == group] - first_row)))
    return own_types(pa.concat_tables(tables))


def read_columns(
    store: Store, path: str, columns: Sequence[str], types: pa.Schema | None = None
) -> pa.Table:
    """Some columns of one data file, tried again while the store fails. types: what the columns
    must be, as in `scan`, which raises the same errors."""
    return _from_file(store, path, columns, types, lambda file: read_table(file, columns))


def rows_at(
    store: Store,
    path: str,
    row_indices: npt.NDArray[np.integer],
    columns: Sequence[str],
    types: pa.Schema | None = None,
) -> pa.Table:
    """`read_rows` of one data file, tried again while the store fails. types: as in `scan`."""
    read = functools.partial(read_rows, row_indices=row_indices, columns=columns)
    return _from_file(store, path, columns, types, read)


def _from_file(
    store: Store,
    path: str,
    columns: Sequence[str],
    types: pa.Schema | None,
    read: Callable[[pq.ParquetFile], pa.Table],
) -> pa.Table:
    def open_and_read() -> pa.Table:
        with _open_file(store, path) as file:
            return _of_types(read(file), columns, types)

    with _as_output_errors(store, path):
        return retried(open_and_read, f"read {store.shown_uri}/{path}", store.endpoint)


@contextlib.contextmanager
def _as_output_errors(store: Store, path: str) -> Iterator[None]:
    """Turn what a missing or damaged file raises into OutputError."""
    try:
        yield
    except FileNotFoundError as error:
        problem = "this data file is gone"
        cause: Exception = error
    except (pa.ArrowException, OSError, MemoryError) as error:
        problem = f"this data file is damaged: {error}"
        cause = error
    else:
        return
    raise OutputError(
        f"{store.shown_uri}/{path}: {problem}. Restore it from a backup, or delete what is left of "
        "it and run the job again, which embeds its part again and no other. `corpus-embed verify` "
        "lists all damage."
    ) from cause


def _of_types(table: pa.Table, columns: Sequence[str], types: pa.Schema | None) -> pa.Table:
    """The table. Raises pa.ArrowInvalid for a column of another type, or with a null where none can
    be, and for one of `columns` that is missing and has no nulls: what follows does its arithmetic
    on them. Partition columns, which have nulls, are in no file."""
    if types is None:
        return table
    required = {field.name for field in types if field.name in columns and not field.nullable}
    if absent := sorted(required - {*table.column_names}):
        raise pa.ArrowInvalid(f"columns {absent} are missing")
    for field in table.schema:
        if field.name not in types.names:
            raise pa.ArrowInvalid(f"column {field.name} is none of this output")
        expected = types.field(field.name)
        if field.type != expected.type:
            raise pa.ArrowInvalid(f"column {field.name} is {field.type}, not {expected.type}")
        if not expected.nullable and table[field.name].null_count:
            raise pa.ArrowInvalid(f"column {field.name} has nulls")
    return table


class ScannedBatch(NamedTuple):
    """Consecutive rows of one file of a scan: `file` is its index in the paths, `first_row` the
    index of the batch's first row in it."""

    file: int
    first_row: int
    batch: pa.RecordBatch


def scan(
    store: Store, paths: Sequence[str], columns: Sequence[str], types: pa.Schema | None = None
) -> Iterator[ScannedBatch]:
    """Some columns of some data files, in order. A batch is at most a row group; the next ones are
    read meanwhile, from READERS files.

    types: what the columns must be, and which have no nulls. Raises OutputError for a file that is
    gone, damaged or of other types.
    """

    def started(file: int) -> tuple[Iterator[ScannedBatch], ScannedBatch | None]:
        batches = _batches(store, file, paths[file], columns, types)
        return batches, next(batches, None)

    waiting: deque[Future[tuple[Iterator[ScannedBatch], ScannedBatch | None]]] = deque()
    with ThreadPoolExecutor(READERS) as pool:
        for n_done in range(len(paths)):
            for file in range(n_done + len(waiting), min(n_done + READERS, len(paths))):
                waiting.append(pool.submit(started, file))
            batches, batch = waiting.popleft().result()
            while batch is not None:
                next_batch = pool.submit(next, batches, None)
                yield batch
                batch = next_batch.result()


def _batches(
    store: Store, file: int, path: str, columns: Sequence[str], types: pa.Schema | None
) -> Iterator[ScannedBatch]:
    action = f"read {store.shown_uri}/{path}"
    first_row = 0
    with _as_output_errors(store, path), _open_file(store, path) as parquet:
        for group in range(parquet.num_row_groups):
            read = functools.partial(
                parquet.read_row_group, group, list(columns), use_threads=False
            )
            table = own_types(selected(retried(read, action, store.endpoint), columns))
            for batch in _of_types(table, columns, types).to_batches():
                yield ScannedBatch(file, first_row, batch)
                first_row += len(batch)
