"""FAISS: `index.faiss`, and the keys of its rows in `keys.parquet`: id n of the index is row n.

Float vectors go into an index of the largest inner product, with length 1, so that scores are
cosines; bits go into one of the smallest Hamming distance. By default every vector is compared
(`Flat`) up to FLAT_ROWS rows, then those of the nearest lists (`IVF…,Flat`), with about 4·√N lists
as FAISS recommends, trained on an even sample. Memory: the index, as FAISS builds it in memory;
quantized kinds (`IVF4096,PQ64`, `IVF4096,SQ8`) need less than the vectors.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import SpecError
from pipeline.tools.export.place import KEYS, Place
from pipeline.tools.export.rows import Source

INDEX = "index.faiss"
FLAT_ROWS = 200_000
TRAINING_ROWS = 64
"""Rows of the sample for each list: FAISS warns below 39."""


def default_index(n_rows: int) -> str:
    """The kind of index for a number of rows, as `faiss.index_factory` calls it."""
    return "Flat" if n_rows <= FLAT_ROWS else f"IVF{_lists(n_rows)},Flat"


def export_faiss(source: Source, place: Place, kind: str | None = None) -> dict[str, Any]:
    """Build an index of one kind, and write it with the keys.

    kind: "flat", "ivf", or what `faiss.index_factory` takes (`index_binary_factory` for bits, where
    "Flat" becomes "BFlat" and "IVF64" becomes "BIVF64"). Raises SpecError when FAISS does not know
    it or it does not fit the dimension.
    """
    import faiss

    name = {None: default_index(source.n_rows), "flat": "Flat"}.get(kind, kind) or ""
    if name == "ivf":
        name = f"IVF{_lists(source.n_rows)},Flat"
    index = _created(source, name)
    if not index.is_trained:
        index.train(_sample(source, max(256, getattr(index, "nlist", 256)) * TRAINING_ROWS))
    with place.writing_table(KEYS, source.column_schema()) as keys:
        for rows, vectors in source.batches():
            index.add(_normalized(vectors))
            keys.write_table(pa.Table.from_batches([rows]).cast(source.column_schema()))
    write = faiss.write_index_binary if source.is_binary else faiss.write_index
    with tempfile.TemporaryDirectory(dir=place.local) as folder:
        path = Path(folder, INDEX)
        write(index, str(path))
        place.put(path, INDEX)
    metric = "hamming" if source.is_binary else "inner product of vectors of length 1 (cosine)"
    return {"files": [INDEX, KEYS], "index": name, "metric": metric}


def _lists(n_rows: int) -> int:
    """A power of two near 4·√N, with enough rows to train each."""
    lists = min(4 * math.sqrt(n_rows), n_rows / 39)
    return int(2 ** max(0, round(math.log2(max(1.0, lists)) - 0.01)))


def _created(source: Source, name: str) -> Any:
    import faiss

    try:
        if source.is_binary:
            binary = name.partition(",")[0]
            binary = binary if binary.startswith("B") else f"B{binary}"
            return faiss.index_binary_factory(8 * source.width, binary)
        return faiss.index_factory(source.width, name, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        words = " ".join(str(error).split()).rpartition(": ")[2][:200]
        raise SpecError(
            f"--index {name}: FAISS does not make it for vectors of {source.width} "
            f"{'bytes' if source.is_binary else 'values'} ({words}). Examples: flat, ivf, HNSW32, "
            "IVF1024,SQ8"
        ) from error


def _sample(source: Source, n_rows: int) -> npt.NDArray[Any]:
    """At most `n_rows` vectors, evenly spread over the rows."""
    n_rows = min(n_rows, source.n_rows)
    positions = np.arange(n_rows) * source.n_rows // n_rows
    sample = np.empty((n_rows, source.width), source.element)
    first = 0
    for _, vectors in source.batches():
        inside = (positions >= first) & (positions < first + len(vectors))
        sample[inside] = vectors[positions[inside] - first]
        first += len(vectors)
    return _normalized(sample)


def _normalized(vectors: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Float vectors with length 1; bits, and a vector of zeros, as they are."""
    if vectors.dtype == np.uint8:
        return vectors
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))[:, None]
    scaled = np.divide(vectors, lengths, out=np.zeros(vectors.shape), where=lengths > 0)
    return scaled.astype(np.float32)
