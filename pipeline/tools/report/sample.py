"""A seeded sample of the rows of a snapshot, with their vectors and the heads of their texts.

In: a snapshot. Out: a `Sample` of at most MAX_ROWS rows, each row of the snapshot with the same
probability. Of an output with many data files, MAX_FILES places are drawn (systematic sampling by
number of rows), and only the files there are read, so that a report of an output of any size costs
the same; rows of one file then come together. Cost: the row groups that hold the rows. Memory: one
row group, and the sample's vectors in float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.output import dataset
from pipeline.storage import data_rows, schema
from pipeline.storage.lineage import DataFile, Generation, Manifest
from pipeline.tools.loaded_snapshot import LoadedSnapshot

MAX_ROWS = 5000
MAX_FILES = 64
HEAD_CHARS = 200
"""The most characters of a text, an id or a kept value that a report holds."""
MAX_GROUPS = 7
_COLUMNS = (
    *("doc_id", "chunk", "n_tokens", "truncated", "text_sha256", "source_uri", "source_etag"),
    *("source_record", "char_start", "char_end"),
)

Vectors = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Sample:
    """rows: one mapping a row, with the columns _COLUMNS, `text` (its head; None where the output
    has no texts) and `group`. vectors: (N, D) float32; int8 is scaled back, a bit of ubinary is
    1 or -1. group_column: the column that `group` is from; None where none divides the rows.
    n_not_finite: vectors with NaN or infinity, which this package never writes; here they are
    zeros."""

    rows: Sequence[Mapping[str, Any]]
    manifests: Sequence[Manifest]
    vectors: Vectors
    group_column: str | None
    n_rows: int
    n_files_read: int
    n_files: int
    n_not_finite: int = 0

    @property
    def is_whole(self) -> bool:
        return len(self.rows) == self.n_rows


def draw_sample(loaded: LoadedSnapshot, size: int, seed: int) -> Sample:
    """Draw `size` rows of a snapshot; all of them where it has fewer."""
    files = [(part, file) for part in loaded.manifests for file in part.data_files]
    indices = row_indices([file.n_rows for _, file in files], min(size, MAX_ROWS), seed)
    generation = loaded.generation
    types = dataset.arrow_schema(generation)
    kept = _grouping_columns(generation, types)
    tables = []
    vectors = [np.zeros((0, generation.dimension), np.float32)]
    manifests: list[Manifest] = []
    for number, rows in sorted(indices.items()):
        part, file = files[number]
        table, file_vectors = _read(loaded, file, rows, types, kept)
        tables.append(table)
        vectors.append(file_vectors)
        manifests += [part] * len(table)
    table = pa.concat_tables(tables) if tables else types.empty_table()
    matrix = np.concatenate(vectors)
    is_broken = ~np.isfinite(matrix).all(axis=1)
    matrix[is_broken] = 0
    group_column, groups = _groups(table, kept)
    texts = table["text"].to_pylist() if "text" in table.column_names else [None] * len(table)
    plain = table.select(_COLUMNS).to_pylist()
    return Sample(
        rows=[
            {**row, "text": text, "group": group}
            for row, text, group in zip(plain, texts, groups, strict=True)
        ],
        manifests=manifests,
        vectors=matrix,
        group_column=group_column,
        n_rows=sum(file.n_rows for _, file in files),
        n_files_read=len(indices),
        n_files=len(files),
        n_not_finite=int(is_broken.sum()),
    )


def row_indices(n_rows: Sequence[int], size: int, seed: int) -> dict[int, npt.NDArray[np.integer]]:
    """Ascending row indices by the index of their file. n_rows: of each file.

    Method: a simple random sample where there are at most MAX_FILES files; otherwise MAX_FILES
    equidistant places with a random start, and as many rows of the file at each place.
    """
    random = np.random.default_rng(seed)
    ends = np.cumsum(np.array([0, *n_rows], np.int64))
    total = int(ends[-1])
    if size >= total:
        return {file: np.arange(count) for file, count in enumerate(n_rows) if count}
    if len(n_rows) <= MAX_FILES:
        drawn = np.sort(random.choice(total, size, replace=False))
        owners = np.searchsorted(ends, drawn, side="right") - 1
        return {int(file): drawn[owners == file] - ends[file] for file in np.unique(owners)}
    places = (np.arange(MAX_FILES) + random.random()) * (total / MAX_FILES)
    owners, hits = np.unique(np.searchsorted(ends, places, side="right") - 1, return_counts=True)
    counts = np.minimum(hits * max(1, size // MAX_FILES), np.array(n_rows)[owners])
    return {
        int(file): np.sort(random.choice(n_rows[file], count, replace=False))
        for file, count in zip(owners.tolist(), counts.tolist(), strict=True)
    }


def _read(
    loaded: LoadedSnapshot,
    file: DataFile,
    rows: npt.NDArray[np.integer],
    types: pa.Schema,
    kept: Sequence[str],
) -> tuple[pa.Table, Vectors]:
    """Rows of one file without their vectors, long values cut; and the vectors."""
    stored = [name for name in kept if name not in file.partition]
    names = [*_COLUMNS, "embedding", *stored]
    names += [name for name in ("text", "embedding_scale") if name in types.names]
    table = data_rows.rows_at(loaded.store, file.path, rows, names, types)
    vectors = _floats(table, loaded.generation)
    table = dataset.with_partition(table.drop_columns(["embedding"]), file, types)
    for name in ("doc_id", "text", *kept):
        if name in table.column_names:
            position = table.schema.get_field_index(name)
            short = pc.utf8_slice_codeunits(table[name].cast(pa.string()), 0, HEAD_CHARS)
            table = table.set_column(position, name, short)
    shown = [*_COLUMNS, *kept, *(["text"] if "text" in table.column_names else [])]
    # without what a footer says about nulls, in which files that were changed can differ
    return pa.table({name: table[name] for name in shown}), vectors


def _floats(table: pa.Table, generation: Generation) -> Vectors:
    """(N, D) float32 of stored vectors."""
    stored = dataset.vectors_of(table["embedding"].combine_chunks())
    if generation.vector_precision == "ubinary":
        bits = np.unpackbits(stored, axis=1, count=generation.dimension)
        return bits.astype(np.float32) * 2 - 1
    vectors = stored.astype(np.float32)
    if generation.vector_precision == "int8":
        vectors *= table["embedding_scale"].to_numpy()[:, None]
    return vectors


def _grouping_columns(generation: Generation, types: pa.Schema) -> list[str]:
    """The columns that could divide the rows into a few groups: partitions first."""
    kept = [field.name for field in types if field.name not in schema.RESERVED]
    texts = [name for name in kept if types.field(name).type in (pa.string(), pa.bool_())]
    return [*generation.partition_by, *(n for n in texts if n not in generation.partition_by)]


def _groups(table: pa.Table, kept: Sequence[str]) -> tuple[str | None, list[str]]:
    """The first column with a few values, and its value in each row; rare values are "other"."""
    for name in kept:
        values = ["(none)" if value is None else value for value in table[name].to_pylist()]
        counts = {value: values.count(value) for value in sorted({*values})} if _few(values) else {}
        if len(counts) > 1:
            common = sorted(counts, key=lambda value: (-counts[value], value))[:MAX_GROUPS]
            return name, [value if value in common else "other" for value in values]
    return None, ["all rows"] * len(table)


def _few(values: Sequence[str]) -> bool:
    return len({*values}) <= max(2, min(50, len(values) // 4))
