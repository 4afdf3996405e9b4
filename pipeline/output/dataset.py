"""Reading an output: the pyarrow dataset of a snapshot, and its vectors as one array.

Only files named by a snapshot are part of the output, so nothing here lists a folder: paths and
partition values come from the snapshot's file list, exact even where a Hive folder name could not
carry the value.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.fs import FSSpecHandler, LocalFileSystem, PyFileSystem

from pipeline.errors import OutputError
from pipeline.output.checks import lost_objects
from pipeline.output.snapshots import live_parts, load_generation, load_snapshot
from pipeline.storage import layout, schema
from pipeline.storage.data_rows import scan
from pipeline.storage.lineage import DataFile, Generation, Manifest, Snapshot
from pipeline.storage.store import Store

if TYPE_CHECKING:
    import pyarrow.dataset as ds

TableOrBatch = TypeVar("TableOrBatch", pa.Table, pa.RecordBatch)


def open_dataset(
    uri: str, snapshot: int | None = None, storage_options: Mapping[str, Any] | None = None
) -> ds.Dataset:
    """The rows of one snapshot (the newest by default) as a pyarrow dataset, partition columns
    included.

    Raises OutputError when there is no such snapshot or one of its files is gone or cut.
    """
    import pyarrow.dataset as ds  # imports pandas, a fifth of what a run imports before its plan

    store = Store(uri, storage_options)
    head, generation = read_head(store, snapshot)
    columns = arrow_schema(generation)
    parts = live_parts(store, head)
    paths = itertools.chain(*lost_objects(store, parts).values())
    if lost := [path for path in paths if layout.is_at(path, "data")]:
        raise OutputError(
            f"{store.shown_uri}: {len(lost)} of {head.n_files} data files of snapshot "
            f"{head.number} are gone or have another size; the first one is {lost[0]}. Restore "
            "them from a backup, or run the job again, which embeds their parts again and no "
            "others."
        )
    filesystem = LocalFileSystem() if store.local else PyFileSystem(FSSpecHandler(store.fs))
    parquet = ds.ParquetFileFormat()
    fragments = [
        parquet.make_fragment(
            store.path(file.path),
            filesystem,
            partition_expression=_partition(file.partition, columns),
        )
        for part in parts
        for file in part.data_files
    ]
    return ds.FileSystemDataset(fragments, columns, parquet, filesystem)


def read_head(store: Store, number: int | None = None) -> tuple[Snapshot, Generation]:
    """A snapshot and the facts of its generation. Raises OutputError when the output has none."""
    snapshot = load_snapshot(store, number)
    if snapshot is None:
        raise OutputError(
            f"{store.shown_uri}: this output has no snapshot yet. Run `corpus-embed run SPEC` "
            "first, or check the URI."
        )
    generation = load_generation(store, snapshot.fingerprint)
    if generation is None:
        raise OutputError(
            f"{store.shown_uri}: the generation record of fingerprint {snapshot.fingerprint} is "
            f"missing. Restore {layout.generation(snapshot.fingerprint)} from a backup."
        )
    return snapshot, generation


def arrow_schema(generation: Generation) -> pa.Schema:
    """Columns as a reader sees them; on disk, partition columns exist only in folder names.

    Raises OutputError for columns that this package does not write: the record chooses names and
    types of kept columns, and nothing else.
    """
    try:
        columns = pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(generation.arrow_schema)))
        if problem := _schema_problem(columns, generation):
            raise ValueError(problem)
    except Exception as error:  # a type that a library has registered can raise anything
        raise OutputError(
            f"generation {generation.fingerprint}: its arrow_schema is damaged: {error}. Restore "
            f"{layout.generation(generation.fingerprint)} from a backup."
        ) from error
    return columns


def _schema_problem(columns: pa.Schema, generation: Generation) -> str | None:
    """How a stored schema differs from the one that this package writes."""
    if strange := [field.name for field in columns if schema.has_extension(field.type)]:
        return f"columns {strange} have types that this package does not write"
    kept = {field.name: field.type for field in columns if field.name not in schema.RESERVED}
    if strange := [name for name in kept if kept[name] not in schema.KEPT_TYPES.values()]:
        return f"columns {strange} have types that this package does not write"
    if not 1 <= generation.dimension <= schema.MAX_DIMENSION:
        return f"vectors of dimension {generation.dimension}"
    expected = schema.rows_schema(
        kept,
        include_text="text" in columns.names,
        precision=generation.vector_precision,
        dimension=generation.dimension,
    )
    if columns.remove_metadata() != expected or not {*generation.partition_by} <= {*kept}:
        return f"other columns than for dimension {generation.dimension} and kept columns {kept}"
    return None


def read_vectors(
    uri: str, snapshot: int | None = None, storage_options: Mapping[str, Any] | None = None
) -> tuple[pa.ChunkedArray, npt.NDArray[Any]]:
    """(ids, vectors) of a snapshot: `doc_id` as a string array of length N, and an array (N, D).

    float32 for the float precisions; int8 is multiplied by its scale back to float32; ubinary stays
    packed uint8 (N, D/8). Vectors are copied once, file by file, into the array that is returned.
    """
    store = Store(uri, storage_options)
    head, generation = read_head(store, snapshot)
    scaled = generation.vector_precision == "int8"
    type_ = arrow_schema(generation).field("embedding").type
    element = np.dtype(np.uint8 if generation.vector_precision == "ubinary" else np.float32)
    parts = live_parts(store, head)
    n_rows = sum(file.n_rows for part in parts for file in part.data_files)
    try:
        vectors = np.empty((n_rows, type_.list_size), element)
    except (MemoryError, ValueError) as error:
        raise OutputError(
            f"{store.shown_uri}: {n_rows} vectors of snapshot {head.number} do not fit into the "
            f"memory of this machine: {error}. Read them in batches, with open_dataset."
        ) from error
    columns = ["doc_id", "embedding", *(["embedding_scale"] if scaled else [])]
    ids = []
    position = 0
    for _, batch in rows_of(store, generation, parts, columns):
        rows = vectors_of(batch.column("embedding"))  # (n, D)
        if scaled:
            rows = rows * batch.column("embedding_scale").to_numpy()[:, None]
        if position + len(rows) > n_rows:
            raise OutputError(
                f"{store.shown_uri}: data files of snapshot {head.number} have more rows than "
                "their manifests say. Run `corpus-embed verify`."
            )
        vectors[position : position + len(rows)] = rows
        position += len(rows)
        ids.append(batch.column("doc_id"))
    return pa.chunked_array(ids, pa.string()), vectors[:position]


def rows_of(
    store: Store, generation: Generation, parts: Sequence[Manifest], columns: Sequence[str]
) -> Iterator[tuple[DataFile, pa.RecordBatch]]:
    """The rows of some parts, at most a row group at a time, each with its data file; partition
    columns included."""
    types = arrow_schema(generation)
    files = [file for part in parts for file in part.data_files]
    stored = [name for name in columns if name not in generation.partition_by]
    for number, _, batch in scan(store, [file.path for file in files], stored, types):
        yield files[number], with_partition(batch, files[number], types).select(columns)


def with_partition(rows: TableOrBatch, file: DataFile, types: pa.Schema) -> TableOrBatch:
    """Rows of a data file with its partition columns, which on disk are text in folder names, in
    their types."""
    for name, value in file.partition.items():
        typed = pa.scalar(value, pa.string()).cast(types.field(name).type)
        rows = rows.append_column(types.field(name), pa.repeat(typed, rows.num_rows))
    return rows


def vectors_of(column: pa.FixedSizeListArray) -> npt.NDArray[Any]:
    """(N, D) view of a fixed-size-list array; no copy."""
    width = column.type.list_size
    flat = column.values.to_numpy(zero_copy_only=True)
    return flat[column.offset * width : (column.offset + len(column)) * width].reshape(-1, width)


def _partition(values: Mapping[str, str | None], schema: pa.Schema) -> pc.Expression | None:
    expression = None
    for name, value in values.items():
        typed = pa.scalar(value, pa.string()).cast(schema.field(name).type)
        equal = pc.field(name).is_null() if value is None else pc.field(name) == pc.scalar(typed)
        expression = equal if expression is None else expression & equal
    return expression if expression is not None else pc.scalar(True)
