"""Vectors and rows to the bytes of a Parquet file, whole in memory, and the Hive folders they go into.

Physical form (measured, docs/design.md): `fixed_size_list<float32>[D]`, BYTE_STREAM_SPLIT and zstd-1, no dictionary on
float vectors, page checksums. Half precision is rounding *inside* float32: half the bytes after compression, and every
reader understands it, which native FLOAT16 columns do not (Spark refuses the whole file).
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.errors import OutputError

ROW_GROUP_BYTES = 32 << 20
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
MAX_PARTITION_STEP = 255
"""Bytes of one `name=value` folder: what local file systems allow for a name."""

_MAX_BFLOAT16 = np.array(0x7F7F0000, np.uint32).view(np.float32)
_PLAIN = ("doc_id", "text", "embedding", "embedding_scale", "text_sha256")


def round_vectors(vectors: npt.NDArray[np.float32], precision: str) -> npt.NDArray[np.float32]:
    """Round (N, D) finite float32 to the nearest finite float16 or bfloat16 value, still as float32.

    Other precisions pass.
    """
    if precision == "float16":
        limit = np.float32(np.finfo(np.float16).max)
        return np.clip(vectors, -limit, limit).astype(np.float16).astype(np.float32)
    if precision == "bfloat16":
        bits = np.clip(vectors, -_MAX_BFLOAT16, _MAX_BFLOAT16).view(np.uint32)
        rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))  # ties to even
        return (rounded & np.uint32(0xFFFF0000)).view(np.float32)
    return vectors


def vector_columns(vectors: npt.NDArray[np.float32], precision: str) -> dict[str, pa.Array]:
    """The embedding column of (N, D) finite float32 vectors, and its scale where the precision has one.

    int8: each vector is divided by its largest absolute value, so cosine similarity needs no scale; the scale
    (float32, per row) restores lengths. ubinary: one bit a dimension, set where the value is > 0, first dimension in
    the highest bit (as sentence-transformers packs them).
    """
    dimension = vectors.shape[1]
    columns: dict[str, pa.Array] = {}
    if precision == "int8":
        largest = np.abs(vectors).max(axis=1, initial=0.0)
        scale = (largest / 127.0).astype(np.float32)
        scale[scale == 0] = 1.0  # a zero vector, or one so small that its scale is not a float32
        values = np.rint(vectors / scale[:, None]).astype(np.int8)
        columns["embedding_scale"] = pa.array(scale)
    elif precision == "ubinary":
        values = np.packbits(vectors > 0, axis=1)
    else:
        values = round_vectors(vectors, precision)
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    type_ = schema.vector_type(precision, dimension)
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, type=type_)
    return columns


def restored_vectors(rows: pa.Table, precision: str, dimension: int) -> npt.NDArray[np.float32]:
    """(N, D) float32 of stored rows, such that `vector_columns` gives the very same columns again."""
    stored = rows["embedding"].combine_chunks().flatten().to_numpy().reshape(rows.num_rows, -1)
    if precision == "ubinary":
        return np.unpackbits(stored, axis=1, count=dimension).astype(np.float32) * 2 - 1
    # scale * 127 / 127 is scale again, although not for every float32: for all that are the quotient of one and 127
    return stored * rows["embedding_scale"].to_numpy()[:, None] if precision == "int8" else stored


def partition_step(name: str, value: str | None) -> str:
    """One Hive folder `name=value`, percent-encoded, so that no value can leave the folder above it."""
    escaped = NULL_PARTITION if value is None else _quoted(value)
    if value == NULL_PARTITION:
        escaped = "%5F" + NULL_PARTITION[1:]
    return f"{_quoted(name)}={escaped}"


def _quoted(text: str) -> str:
    """Percent-encoded but for printable characters outside ASCII: Spark 4.3 takes %E6%BC%A2 for three characters."""
    return "".join(sign if sign > "\x7f" and sign.isprintable() else quote(sign, safe="") for sign in text)


def partitions(table: pa.Table, by: Sequence[str]) -> Iterator[tuple[dict[str, str | None], str, pa.Table]]:
    """Split rows by the values of the columns `by`: (values as text, folder, rows without these columns).

    Order of rows is kept inside each. Without `by`, or without rows, everything is one partition with folder ''.
    """
    if not by:
        yield {}, "", table
        return
    if not table.num_rows:
        return
    as_text = pa.table({name: pc.cast(table[name], pa.string()) for name in by})
    keys = as_text.group_by(by, use_threads=False).aggregate([]).to_pylist()
    rest = table.drop_columns(list(by))
    for key in keys:
        mask = None
        for name, value in key.items():
            same = pc.is_null(as_text[name]) if value is None else pc.fill_null(pc.equal(as_text[name], value), False)
            mask = same if mask is None else pc.and_(mask, same)
        yield key, "/".join(partition_step(name, key[name]) for name in by), rest.filter(mask)


def encode(table: pa.Table, metadata: Mapping[str, object]) -> bytes:
    """A complete Parquet file with lineage in its key-value metadata, checked by reading its footer back.

    Raises OutputError if the footer does not say what was written.
    """
    return encode_all([table], table.schema, metadata)


def encode_all(tables: Iterable[pa.Table], arrow_schema: pa.Schema, metadata: Mapping[str, object]) -> bytes:
    """As `encode`, of rows that come in several tables; each becomes one row group or more."""
    sink, n_rows = io.BytesIO(), 0
    vectors = arrow_schema.field("embedding").type if "embedding" in arrow_schema.names else None
    split_floats = vectors is not None and pa.types.is_float32(vectors.value_type)
    dictionaries = [name for name in arrow_schema.names if name not in _PLAIN]
    if vectors is not None and not split_floats:
        # Parquet stores int8 as 32-bit integers: plain takes 0.35 of raw float32, with a dictionary 0.235 (measured)
        dictionaries.append("embedding.list.element")
    with pq.ParquetWriter(
        sink,
        arrow_schema.with_metadata(schema.footer(metadata)),
        compression="zstd",
        compression_level=1,
        use_dictionary=dictionaries,
        column_encoding={"embedding.list.element": "BYTE_STREAM_SPLIT"} if split_floats else None,
        write_page_checksum=True,
        write_page_index=True,
        store_schema=True,
    ) as writer:
        for table in tables:
            n_rows += table.num_rows
            writer.write_table(
                table, row_group_size=max(1, ROW_GROUP_BYTES * max(table.num_rows, 1) // max(table.nbytes, 1))
            )
    data = sink.getvalue()
    found = pq.read_metadata(pa.BufferReader(data))
    if found.num_rows != n_rows:
        raise OutputError(f"a data file was encoded with {found.num_rows} rows instead of {n_rows}; report this")
    return data
