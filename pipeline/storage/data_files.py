"""Read the Parquet files this package wrote, on Python threads only, never on Arrow's; and write
small ones.

Bytes, or objects of a store, come in; tables come out. No thread of Arrow must hold a Python
object, be it a file or a buffer over `bytes`: one that releases it while the interpreter ends
aborts the process with SIGABRT ("terminate called without an active exception"; measured in 5 % of
short processes, apache/arrow#33975), or hangs it. So nothing is pre-buffered or decoded by Arrow's
pools; files are read side by side by Python threads, which end before the interpreter does. Page
checksums are always checked.
"""

from __future__ import annotations

import contextlib
import functools
import io
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
from pipeline.storage.memory_limit import within_memory
from pipeline.storage.retry import retried
from pipeline.storage.store import Store

SMALL_BYTES = 4 << 20
"""The size up to which an object is read whole: that costs no more than a few of its ranges."""

GROUP_ROWS = 1 << 20
"""The most rows of a row group. A data file's groups have 32 MiB, other files have pyarrow's limit,
which is this one."""

READERS = 4
"""The number of files that one process reads at the same time."""


def opened(source: bytes | BinaryIO) -> pq.ParquetFile:
    """A Parquet file whose reads happen in the caller's thread. Raises pa.ArrowException or OSError
    when its footer is damaged or says what this package does not write."""
    native = (
        pa.BufferReader(source) if isinstance(source, bytes) else pa.PythonFile(source, mode="r")
    )
    try:
        file = pq.ParquetFile(native, page_checksum_verification=True, pre_buffer=False)
        _check_footer(file.metadata)
        _ = file.schema_arrow  # here, since it can name a type that a library has registered
    except (pa.ArrowException, OSError):
        raise
    except Exception as error:
        raise pa.ArrowInvalid(f"the footer is damaged: {error}") from error
    return file


def _check_footer(footer: pq.FileMetaData) -> None:
    """Raises pa.ArrowInvalid for numbers of rows that do not add up, or that no file here has."""
    counts = [footer.row_group(number).num_rows for number in range(footer.num_row_groups)]
    if sum(counts) != footer.num_rows or not all(0 <= count <= GROUP_ROWS for count in counts):
        raise pa.ArrowInvalid(
            f"the footer is damaged: {footer.num_rows} rows in groups of {counts[:3]} …"
        )


@contextlib.contextmanager
def _open_file(store: Store, path: str) -> Iterator[pq.ParquetFile]:
    """A data file in a store. A small remote one is read whole: otherwise each column of a row
    group is a request."""
    with store.open(path) as source:
        is_small = not store.local and getattr(source, "size", SMALL_BYTES + 1) <= SMALL_BYTES
        data = store.read(path) if is_small else source
        yield retried(lambda: opened(data), f"read {store.shown_uri}/{path}")


def read_table(source: bytes | pq.ParquetFile, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows: of `columns`, in that order, or of all columns. Raises pa.ArrowInvalid when a
    column is missing."""
    if not isinstance(source, bytes):
        return _of_own_types(_read(source, columns))
    table = within_memory(lambda: _read(opened(source), columns), len(source))
    return _of_own_types(table)


def _read(file: pq.ParquetFile, columns: Sequence[str] | None) -> pa.Table:
    table = file.read(None if columns is None else list(columns), use_threads=False)
    return table if columns is None else _selected(table, columns)


def _selected(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """`columns` in that order. Arrow's reader leaves out missing ones silently; here they raise
    pa.ArrowInvalid."""
    if absent := [name for name in columns if name not in table.column_names]:
        raise pa.ArrowInvalid(f"no columns {absent}; run `corpus-embed verify`")
    return table.select(columns)


def _of_own_types(table: pa.Table) -> pa.Table:
    """The table. Raises pa.ArrowInvalid for a column whose values could be unpickled on their way
    to Python: see schema.has_extension."""
    if foreign := [field.name for field in table.schema if schema.has_extension(field.type)]:
        raise pa.ArrowInvalid(
            f"columns {foreign} have types this package does not write; run `corpus-embed verify`"
        )
    return table


def encoded(table: pa.Table, *, compression: str = "zstd", dictionaries: bool = True) -> bytes:
    """A table that is no data file, as a Parquet file with page checksums."""
    sink = io.BytesIO()
    pq.write_table(
        table,
        sink,
        compression=compression,
        use_dictionary=dictionaries,
        write_page_checksum=True,
    )
    return sink.getvalue()


def read_text(data: bytes, *names: str) -> dict[str, list[str]]:
    """Text columns of a file, null as "". They become strings before any value reaches Python: see
    schema.has_extension."""
    table = within_memory(lambda: _read(opened(data), names), len(data))
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
    """The lineage of the rows as a footer states it; {} when it states none. Raises OutputError
    when it is damaged."""
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
                f"{store.shown_uri}/{path}: {error}. Run `corpus-embed verify`."
            ) from error


def read_rows(
    file: pq.ParquetFile, row_indices: npt.NDArray[np.integer], columns: Sequence[str]
) -> pa.Table:
    """The rows at `row_indices` (ascending) of a file, with those of `columns` that it has. Only
    their row groups are read."""
    footer = file.metadata
    ends = np.cumsum([footer.row_group(number).num_rows for number in range(footer.num_row_groups)])
    groups = np.searchsorted(ends, row_indices, side="right")
    names = [name for name in columns if name in file.schema_arrow.names]
    tables = []
    for group in np.unique(groups).tolist():
        first_row = ends[group] - footer.row_group(group).num_rows
        table = file.read_row_group(group, names, use_threads=False)
        tables.append(table.take(pa.array(row_indices[groups == group] - first_row)))
    return _of_own_types(pa.concat_tables(tables))


def read_columns(store: Store, path: str, columns: Sequence[str]) -> pa.Table:
    """Some columns of one data file, tried again while the store fails."""
    return _from_file(store, path, lambda file: read_table(file, columns))


def rows_at(
    store: Store, path: str, row_indices: npt.NDArray[np.integer], columns: Sequence[str]
) -> pa.Table:
    """`read_rows` of one data file, tried again while the store fails."""
    return _from_file(store, path, lambda file: read_rows(file, row_indices, columns))


def _from_file(store: Store, path: str, read: Callable[[pq.ParquetFile], pa.Table]) -> pa.Table:
    def open_and_read() -> pa.Table:
        with _open_file(store, path) as file:
            return read(file)

    return retried(open_and_read, f"read {store.shown_uri}/{path}")


class ScannedBatch(NamedTuple):
    """Consecutive rows of one file of a scan: `file` is its index in the paths, `first_row` the
    index of the batch's first row in it."""

    file: int
    first_row: int
    batch: pa.RecordBatch


def scan(store: Store, paths: Sequence[str], columns: Sequence[str]) -> Iterator[ScannedBatch]:
    """Some columns of some data files, in order. A batch is at most a row group; the next ones are
    read meanwhile, from READERS files."""

    def started(file: int) -> tuple[Iterator[ScannedBatch], ScannedBatch | None]:
        batches = _batches(store, file, paths[file], columns)
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


def _batches(store: Store, file: int, path: str, columns: Sequence[str]) -> Iterator[ScannedBatch]:
    action = f"read {store.shown_uri}/{path}"
    first_row = 0
    with _open_file(store, path) as parquet:
        for group in range(parquet.num_row_groups):
            read = functools.partial(
                parquet.read_row_group, group, list(columns), use_threads=False
            )
            table = _of_own_types(_selected(retried(read, action), columns))
            for batch in table.to_batches():
                yield ScannedBatch(file, first_row, batch)
                first_row += len(batch)
