"""Read the Parquet files this package wrote, on Python threads only, never on Arrow's; and write
small ones.

Bytes, or objects of a store, come in; tables come out. Rows of data files are read through
`pipeline/storage/data_rows.py`. No thread of Arrow must hold a Python
object, be it a file or a buffer over `bytes`: one that releases it while the interpreter ends
aborts the process with SIGABRT ("terminate called without an active exception"; measured in 5 % of
short processes, apache/arrow#33975), or hangs it. So nothing is pre-buffered or decoded by Arrow's
pools; files are read side by side by Python threads, which end before the interpreter does. Page
checksums are always checked.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import OutputError
from pipeline.storage import schema
from pipeline.storage.memory_limit import within_memory
from pipeline.storage.store import Store

GROUP_ROWS = 1 << 20
"""The most rows of a row group. A data file's groups have 32 MiB, other files have pyarrow's limit,
which is this one."""


def opened(source: bytes | BinaryIO) -> pq.ParquetFile:
    """A Parquet file whose reads happen in the caller's thread. Raises pa.ArrowException or OSError
    when its footer is damaged or says what this package does not write."""
    native = (
        pa.BufferReader(source) if isinstance(source, bytes) else pa.PythonFile(source, mode="r")
    )
    try:
        file = pq.ParquetFile(native, page_checksum_verification=True, pre_buffer=False)
        _check_footer(file.metadata)
        names = file.schema_arrow.names  # raises here if a library's type cannot be made
    except (pa.ArrowException, OSError):
        raise
    except Exception as error:
        raise pa.ArrowInvalid(f"the footer is damaged: {error}") from error
    if len({*names}) < len(names):
        raise pa.ArrowInvalid(f"columns occur twice: {names}")
    return file


def _check_footer(footer: pq.FileMetaData) -> None:
    """Raises pa.ArrowInvalid for numbers of rows that do not add up, or that no file here has."""
    counts = [footer.row_group(number).num_rows for number in range(footer.num_row_groups)]
    if sum(counts) != footer.num_rows or not all(0 <= count <= GROUP_ROWS for count in counts):
        raise pa.ArrowInvalid(
            f"the footer is damaged: {footer.num_rows} rows in groups of {counts[:3]} …"
        )


def read_table(source: bytes | pq.ParquetFile, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows: of `columns`, in that order, or of all columns. Raises pa.ArrowInvalid when a
    column is missing."""
    if not isinstance(source, bytes):
        return own_types(_read(source, columns))
    table = within_memory(lambda: _read(opened(source), columns), len(source))
    return own_types(table)


def _read(file: pq.ParquetFile, columns: Sequence[str] | None) -> pa.Table:
    table = file.read(None if columns is None else list(columns), use_threads=False)
    return table if columns is None else selected(table, columns)


def selected(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """`columns` in that order. Arrow's reader leaves out missing ones silently; here they raise
    pa.ArrowInvalid."""
    if absent := [name for name in columns if name not in table.column_names]:
        raise pa.ArrowInvalid(f"no columns {absent}; run `corpus-embed verify`")
    return table.select(columns)


def own_types(table: pa.Table) -> pa.Table:
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
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the store, not of Arrow
            raise
        raise OutputError(f"not a complete Parquet file: {str(error).strip()}") from error
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
    """The lineage in the footer of a data file in a store. Raises OutputError as `read_footer`, and
    when the file is gone."""
    try:
        with store.open(path) as source:
            return read_footer(source)[1]
    except (FileNotFoundError, OutputError) as error:
        problem = error if isinstance(error, OutputError) else "this data file is gone"
        raise OutputError(
            f"{store.shown_uri}/{path}: {problem}. Run `corpus-embed verify`."
        ) from error
