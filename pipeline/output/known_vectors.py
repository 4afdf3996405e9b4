"""Vectors that are there already: the hashes of a part's texts in, the stored vectors of those
known before out.

A text is looked up in the runs of the index (`pipeline/output/text_index.py`), its row fetched from
the data file that the index names, and the whole hash compared: what is gone, damaged or another
text is embedded, never an error and never a wrong vector. Cost: a binary search a run and text; of
each data file the row groups that hold wanted rows.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.output.snapshots import load_generation
from pipeline.output.text_index import keys_of, or_none
from pipeline.storage.caches import cache_folder, write_whole
from pipeline.storage.data_files import READERS, rows_at
from pipeline.storage.lineage import content_hash
from pipeline.storage.store import Store
from pipeline.write.vectors import restored_vectors

LOCATIONS = 4
"""Places that one run is asked for one text: the first may be in a file that was vacuumed."""
UNKNOWN = pa.schema(
    {"reused": pa.large_list(pa.float32()), "n_tokens": pa.int32(), "truncated": pa.bool_()}
).empty_table()
"""What `find` gives, without rows."""
_COLUMNS = ("text_sha256", "embedding", "embedding_scale", "n_tokens", "truncated")


class Index:
    """Looks texts up in runs of an index. One a process; runs of a remote store are copied to this
    node once."""

    def __init__(self, store: Store, fingerprint: str, runs: Sequence[str]) -> None:
        self.store = store
        self.generation = load_generation(store, fingerprint)
        opened = (or_none(functools.partial(_open, store, f"{name}.arrow")) for name in runs)
        self.runs = [run for run in opened if run is not None]
        self._gone: set[str] = set()

    def find(self, digests: pa.ChunkedArray) -> pa.Table:
        """A row for each of N texts (by SHA-256 in hex), with the columns of UNKNOWN: null where
        the text has no vector."""
        keys, missing = keys_of(digests), np.arange(len(digests))
        row_of, stored = np.zeros(len(digests), np.int64), UNKNOWN
        for run in self.runs:
            run_keys = run["key"]
            start = np.searchsorted(run_keys, keys)
            for step in range(LOCATIONS):
                at = start[missing] + step
                there = at < len(run_keys)
                there[there] = run_keys[at[there]] == keys[missing[there]]
                for texts, rows in self._fetched(run, at[there], missing[there], digests):
                    row_of[texts] = np.arange(rows.num_rows) + stored.num_rows
                    stored = pa.concat_tables([stored, rows])
                    missing = np.setdiff1d(missing, texts)
        return stored.take(pa.array(row_of, mask=np.isin(np.arange(len(digests)), missing)))

    def _fetched(
        self,
        run: Mapping[str, Any],
        at: npt.NDArray[np.int64],
        texts: npt.NDArray[np.int64],
        digests: pa.ChunkedArray,
    ) -> Iterator[tuple[npt.NDArray[np.int64], pa.Table]]:
        """(texts that were found, a row for each) for texts that may be at the positions `at` of a
        run, file by file."""
        files, rows = run["file"][at], run["row"][at]

        def fetch(file: int) -> tuple[npt.NDArray[np.int64], pa.Table] | None:
            here = files == file
            wanted, place = np.unique(rows[here], return_inverse=True)
            found = or_none(lambda: self._rows(run["paths"][file], wanted))
            if found is None:
                return None
            digest, row = found
            same = pc.equal(
                digest.take(pa.array(place)), digests.take(pa.array(texts[here]))
            ).to_numpy()
            return texts[here][same], row.take(pa.array(place[same]))

        with ThreadPoolExecutor(READERS) as pool:
            yield from (
                found for found in pool.map(fetch, np.unique(files).tolist()) if found is not None
            )

    def _rows(self, path: str, rows: npt.NDArray[np.uint32]) -> tuple[pa.ChunkedArray, pa.Table]:
        """text_sha256 of some rows (ascending) of a data file, and the rows. Raises what or_none
        knows."""
        if self.generation is None or path in self._gone:
            raise FileNotFoundError(path)
        self._gone.add(path)  # until it is read
        precision, dimension = self.generation.vector_precision, self.generation.dimension
        table = rows_at(self.store, path, rows, _COLUMNS)
        vectors = restored_vectors(table, precision, dimension)
        self._gone.discard(path)
        offsets = pa.array(np.arange(len(vectors) + 1) * dimension)
        reused = pa.LargeListArray.from_arrays(offsets, pa.array(vectors.reshape(-1)))
        columns = [reused, table["n_tokens"], table["truncated"]]
        return table["text_sha256"], pa.table(columns, schema=UNKNOWN.schema)


def _open(store: Store, path: str) -> dict[str, Any]:
    """A run as arrays over its memory map."""
    local = Path(store.path(path))
    if not store.local:
        local = cache_folder("index") / content_hash([store.uri, path])
        if not local.exists():
            write_whole(local, store.read(path))
    table = pa.ipc.open_file(pa.memory_map(str(local))).read_all()
    arrays = {name: table[name].combine_chunks().to_numpy() for name in table.column_names}
    return {**arrays, "paths": json.loads(table.schema.metadata[b"paths"])}
