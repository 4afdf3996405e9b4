"""Checks of rows by themselves and against each other, for `verify`.

In: a batch of rows of one data file, and the manifest of its part. Out: findings, each with the
name of its check; and, over all batches, the keys that more than one row has. Those cost 8 bytes of
memory a row: hashes of the keys are collected, and since hashes alone prove nothing, rows whose
hashes are equal are read a second time and compared by their values. Cost of the rest: one SHA-256
over every text, vectorised comparisons.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.output import dataset
from pipeline.storage.addresses import shown
from pipeline.storage.lineage import Manifest

Mask = npt.NDArray[np.bool_]
Hashes = npt.NDArray[np.int64]


def row_findings(rows: pa.Table, manifest: Manifest) -> Iterator[tuple[str, str]]:
    """(check, finding) for each thing that is wrong in some rows. rows: one chunk per column."""
    for check, problem, is_bad in _problems(rows, manifest):
        if is_bad.any():
            doc_id = rows["doc_id"][int(np.argmax(is_bad))].as_py()
            yield check, f"{problem} in {int(is_bad.sum())} rows, first in document {doc_id}"
    shards_read = {(source.uri, source.etag) for source in manifest.sources}
    pairs = rows.group_by(["source_uri", "source_etag"], use_threads=False).aggregate([])
    for uri, etag in zip(*(pairs[name].to_pylist() for name in pairs.column_names), strict=True):
        if (uri, etag) not in shards_read:
            yield (
                "lineage",
                f"rows of {shown(uri)} with ETag {etag}, a shard that the part did not read",
            )


def _problems(rows: pa.Table, manifest: Manifest) -> Iterator[tuple[str, str, Mask]]:
    """(check, problem, (N,) mask of the rows that have it)."""
    other_part = pc.or_(
        pc.not_equal(rows["part_id"], manifest.part_id),
        pc.not_equal(rows["fingerprint"], manifest.fingerprint),
    )
    yield "lineage", f"another part than {manifest.part_id}", other_part.to_numpy()
    yield "tokens", "no tokens", pc.less_equal(rows["n_tokens"], 0).to_numpy()
    if "text" in rows.column_names:
        texts = pc.cast(rows["text"], pa.binary()).to_pylist()
        digests = pa.array([hashlib.sha256(text).hexdigest() for text in texts], pa.string())
        differs = pc.not_equal(rows["text_sha256"], digests).to_numpy()
        yield "text_hashes", "a text with another hash than text_sha256", differs
    vectors = dataset.vectors_of(rows["embedding"].chunk(0))
    if vectors.dtype == np.float32:
        yield "finite", "NaN or infinity", ~np.isfinite(vectors).all(axis=1)
    if vectors.dtype != np.uint8:  # a ubinary vector of zeros had no value above 0, which is fine
        is_zero: Mask = np.logical_not(vectors.any(axis=1))
        yield "nonzero", "a vector of zeros", is_zero
    if "embedding_scale" in rows.column_names:
        scale = rows["embedding_scale"].to_numpy()
        is_positive = np.isfinite(scale) & (scale > 0)
        yield "finite", "a scale that is not a positive number", np.logical_not(is_positive)


class RepeatedKeys:
    """Collects the hashes of a key, the values of some columns.

    first_chunks: count documents instead of rows, that is, rows with chunk 0 only.
    """

    def __init__(self, columns: Sequence[str], *, first_chunks: bool = False) -> None:
        self.columns = columns
        self._first_chunks = first_chunks
        self._hashes: list[Hashes] = [np.zeros(0, np.int64)]

    def add(self, rows: pa.Table) -> None:
        self._hashes.append(_hashes(self._selected(rows), self.columns))

    def find(self, tables: Iterable[pa.Table]) -> dict[tuple[Any, ...], int]:
        """The number of rows of each repeated key. tables: `columns` and `chunk` of all rows again;
        they are read only if hashes are equal."""
        hashes, counts = np.unique(np.concatenate(self._hashes), return_counts=True)
        repeated = hashes[counts > 1]
        if not len(repeated):
            return {}
        keys: Counter[tuple[Any, ...]] = Counter()
        for table in tables:
            rows = self._selected(table)
            suspects = rows.filter(pa.array(np.isin(_hashes(rows, self.columns), repeated)))
            keys.update(_keys(suspects, self.columns))
        return {key: count for key, count in keys.items() if count > 1}

    def _selected(self, rows: pa.Table) -> pa.Table:
        return rows.filter(pc.equal(rows["chunk"], 0)) if self._first_chunks else rows


def _keys(rows: pa.Table, columns: Sequence[str]) -> Iterable[tuple[Any, ...]]:
    return zip(*(rows[name].to_pylist() for name in columns), strict=True)


def _hashes(rows: pa.Table, columns: Sequence[str]) -> Hashes:
    """(N,) 64-bit hashes of the values of some columns; stable within this process only."""
    return np.fromiter(map(hash, _keys(rows, columns)), np.int64, rows.num_rows)
