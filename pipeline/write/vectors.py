"""Vectors as columns of a data file, in the precision of the output, and back.

In: float32. Out: one or two Arrow columns. Half precision is rounding *inside* float32: half the
bytes after compression, and readable everywhere, unlike native FLOAT16 columns (Spark refuses the
whole file). Cost: a pass or two over the vectors.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.storage import schema

_MAX_BFLOAT16 = np.array(0x7F7F0000, np.uint32).view(np.float32)


def round_vectors(vectors: npt.NDArray[np.float32], precision: str) -> npt.NDArray[np.float32]:
    """Round (N, D) finite float32 to the nearest finite float16 or bfloat16 value, still as
    float32. Other precisions leave the vectors as they are."""
    if precision == "float16":
        limit = np.float32(np.finfo(np.float16).max)
        return np.clip(vectors, -limit, limit).astype(np.float16).astype(np.float32)
    if precision == "bfloat16":
        bits = np.clip(vectors, -_MAX_BFLOAT16, _MAX_BFLOAT16).view(np.uint32)
        is_odd = (bits >> np.uint32(16)) & np.uint32(1)
        rounded = bits + np.uint32(0x7FFF) + is_odd  # ties to even
        return (rounded & np.uint32(0xFFFF0000)).view(np.float32)
    return vectors


def vector_columns(vectors: npt.NDArray[np.float32], precision: str) -> dict[str, pa.Array]:
    """The embedding column of (N, D) finite float32 vectors, and the column of their scales where
    the precision has one.

    int8: each vector is divided by its largest absolute value, so cosine similarity needs no scale;
    the scale (float32, one for each row) restores lengths. ubinary: one bit for each dimension, set
    where the value is > 0, with the first dimension in the highest bit (as sentence-transformers
    packs them).
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
    """(N, D) float32 of stored rows, from which `vector_columns` makes the very same columns."""
    stored = rows["embedding"].combine_chunks().flatten().to_numpy().reshape(rows.num_rows, -1)
    if precision == "ubinary":
        return np.unpackbits(stored, axis=1, count=dimension).astype(np.float32) * 2 - 1
    # scale * 127 / 127 is scale again: not for every float32, but for every quotient by 127
    return stored * rows["embedding_scale"].to_numpy()[:, None] if precision == "int8" else stored


def not_finite(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """The indices of the vectors (N, D) that hold NaN or infinity."""
    with np.errstate(over="ignore", invalid="ignore"):
        # (N,): not finite where a value is not; a sum can also overflow, hence the second look
        sums = vectors.sum(axis=1)
    rows = np.flatnonzero(~np.isfinite(sums))
    return rows[~np.isfinite(vectors[rows]).all(axis=1)]
