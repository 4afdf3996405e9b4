"""Reading Parquet files of ours: bytes or objects of a store in, tables out, on threads of Python's
alone.

None of Arrow's threads may hold a Python object, be it a file or a buffer over `bytes`: one that
lets go of it while the interpreter ends takes the process down with SIGABRT ("terminate called
without an active exception"; measured at 5 % of short processes, apache/arrow#33975), or hangs it.
So nothing is pre-buffered or decoded by Arrow's pools; what goes on side by side are threads of
Python's, which end before the interpreter does. Page checksums are always checked.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import OutputError
from pipeline.storage import schema
from pipeline.storage.addresses import shown
from pipeline.storage.retry import retried
from pipeline.storage.store import Store

SMALL_BYTES = 4 << 20
"""Of an object that costs no more whole than a few ranges of it."""

READERS = 4
"""Files that one process reads at once."""


def opened(source: bytes | BinaryIO) -> pq.ParquetFile:
    """A Parquet file to read from the caller's thread. Raises pa.ArrowException or OSError when its
    footer is damaged."""
    native = (
        pa.BufferReader(source) if isinstance(source, bytes) else pa.PythonFile(source, mode="r")
    )
    return pq.ParquetFile(native, page_checksum_verification=True, pre_buffer=False)


@contextlib.contextmanager
def _open_file(store: Store, path: str) -> Iterator[pq.ParquetFile]:
    """A data file in a store. Small remote ones come whole: otherwise each column of a row group is
    a request."""
    with store.open(path) as source:
        is_small = not store.local and getattr(source, "size", SMALL_BYTES + 1) <= SMALL_BYTES
        data = store.read(path) if is_small else source
        yield retried(lambda: opened(data), f"read {shown(store.uri)}/{path}")


def read_table(source: bytes | pq.ParquetFile, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows, of all columns or of some in the order asked. Raises pa.ArrowInvalid when a column
    is not there."""
    return _of_own_types(_read(opened(source) if isinstance(source, bytes) else source, columns))


def _read(file: pq.ParquetFile, columns: Sequence[str] | None) -> pa.Table:
    table = file.read(None if columns is None else list(columns), use_threads=False)
    return table if columns is None else _selected(table, columns)


def _selected(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """Columns in the order asked: Arrow leaves those out without a word that a file does not have."""
    if absent := [name for name in columns if name not in table.column_names]:
        raise pa.ArrowInvalid(f"no columns {absent}; run `corpus-embed verify`")
    return table.select(columns)


def _of_own_types(table: pa.Table) -> pa.Table:
    """The table, if no value of it could be unpickled on its way to Python: see
    schema.has_extension."""
    if strange := [field.name for field in table.schema if schema.has_extension(field.type)]:
        raise pa.ArrowInvalid(
            f"columns {strange} have types this package does not write; run `corpus-embed verify`"
        )
    return table


def read_text(data: bytes, *names: str) -> dict[str, list[str]]:
    """Text columns of a file. They are made strings before Python sees them: schema.has_extension."""
    table = _read(opened(data), names)
    return {name: pc.fill_null(table[name].cast(pa.string()), "").to_pylist() for name in names}


def read_footer(source: bytes | BinaryIO) -> tuple[int, dict[str, Any]]:
    """(number of rows, lineage) of a data file. Raises OutputError when it is not a whole Parquet
    file or its lineage is damaged."""
    try:
        footer = opened(source).metadata
    except pa.ArrowException as error:
        raise OutputError(f"not a complete Parquet file: {error}") from error
    return footer.num_rows, lineage_of(footer)


def lineage_of(footer: pq.FileMetaData) -> dict[str, Any]:
    """What a footer says about where the rows came from; {} when it says nothing. Raises
    OutputError when that is damaged."""
    try:
        lineage = json.loads((footer.metadata or {}).get(schema.FOOTER_KEY, b"{}"))
    except ValueError as error:
        raise OutputError(f"the lineage in its footer is not JSON: {error}") from error
    if not isinstance(lineage, dict):
        raise OutputError("the lineage in its footer is not a JSON object")
    return lineage


def read_lineage(store: Store, path: str) -> dict[str, Any]:
    """The lineage in the footer of a data file in a store. Raises OutputError as `read_footer`."""
    with store.open(path) as source:
        try:
            return read_footer(source)[1]
        except OutputError as error:
            raise OutputError(
                f"{shown(store.uri)}/{path}: {error}. Run `corpus-embed verify`."
            ) from error


def read_rows(
    file: pq.ParquetFile, rows: npt.NDArray[np.integer], columns: Sequence[str]
) -> pa.Table:
    """Some rows (by number, ascending) of a file, of those `columns` that it has: only their row
    groups are read."""
    footer = file.metadata
    ends = np.cumsum([footer.row_group(number).num_rows for number in range(footer.num_row_groups)])
    groups = np.searchsorted(ends, rows, side="right")
    names = [name for name in columns if name in file.schema_arrow.names]
    tables = []
    for group in np.unique(groups).tolist():
        first = ends[group] - footer.row_group(group).num_rows
        found = file.read_row_group(group, names, use_threads=False)
        tables.append(found.take(pa.array(rows[groups == group] - first)))
    return _of_own_types(pa.concat_tables(tables))


def read_columns(store: Store, path: str, columns: Sequence[str]) -> pa.Table:
    """Some columns of one data file, tried again while the store is away."""
    return _from_file(store, path, lambda file: read_table(file, columns))


def rows_at(
    store: Store, path: str, rows: npt.NDArray[np.integer], columns: Sequence[str]
) -> pa.Table:
    """`read_rows` of one data file, tried again while the store is away."""
    return _from_file(store, path, lambda file: read_rows(file, rows, columns))


def _from_file(store: Store, path: str, read: Callable[[pq.ParquetFile], pa.Table]) -> pa.Table:
    def opened_and_read() -> pa.Table:
        with _open_file(store, path) as file:
            return read(file)

    return retried(opened_and_read, f"read {shown(store.uri)}/{path}")


class Rows(NamedTuple):
    """Rows of a data file that lie one after another."""

    file: int
    first_row: int
    batch: pa.RecordBatch


def scan(store: Store, paths: Sequence[str], columns: Sequence[str]) -> Iterator[Rows]:
    """Some columns of some data files, in order, at most a row group at a time; what comes next is
    read meanwhile."""

    def started(file: int) -> tuple[Iterator[Rows], Rows | None]:
        rows = _rows(store, file, paths[file], columns)
        return rows, next(rows, None)

    waiting: deque[Future[tuple[Iterator[Rows], Rows | None]]] = deque()
    with ThreadPoolExecutor(READERS) as pool:
        for done in range(len(paths)):
            for file in range(done + len(waiting), min(done + READERS, len(paths))):
                waiting.append(pool.submit(started, file))
            rows, found = waiting.popleft().result()
            while found is not None:
                ahead = pool.submit(next, rows, None)
                yield found
                found = ahead.result()


def _rows(store: Store, file: int, path: str, columns: Sequence[str]) -> Iterator[Rows]:
    what, first_row = f"read {shown(store.uri)}/{path}", 0
    with _open_file(store, path) as parquet:
        for group in range(parquet.num_row_groups):
            read = functools.partial(
                parquet.read_row_group, group, list(columns), use_threads=False
            )
            for batch in _of_own_types(_selected(retried(read, what), columns)).to_batches():
                yield Rows(file, first_row, batch)
                first_row += len(batch)
