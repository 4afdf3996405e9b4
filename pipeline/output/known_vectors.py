"""Vectors that the output already has: look texts up by their hashes and read the vectors of those
that earlier runs embedded.

A text is looked up in the segments of the index (`pipeline/output/text_index.py`), its row is read
from the data file that the index names, and the whole hash is compared. A row that is missing,
damaged or of another text means that the text is embedded: never an error, never a wrong vector.
Cost: a binary search for each segment and text; of each data file, the row groups that hold a
matching row.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import OutputError
from pipeline.output.dataset import arrow_schema
from pipeline.output.snapshots import load_generation
from pipeline.output.text_index import keys_of, or_none
from pipeline.storage import layout
from pipeline.storage.caches import cached
from pipeline.storage.data_rows import READERS, rows_at
from pipeline.storage.lineage import Generation, content_hash
from pipeline.storage.memory_limit import within_memory
from pipeline.storage.store import Store
from pipeline.write.vectors import restored_vectors

LOCATIONS = 4
"""How many places of one text are tried in a segment: the first can be in a file that vacuum has
deleted."""
UNKNOWN = pa.Table.from_batches(  # `empty_table` imports pandas
    [],
    pa.schema(
        {"reused": pa.large_list(pa.float32()), "n_tokens": pa.int32(), "truncated": pa.bool_()}
    ),
)
"""The table that `Index.find` returns, without rows."""
_COLUMNS = ("text_sha256", "embedding", "embedding_scale", "n_tokens", "truncated")

_ENTRIES = pa.schema([("key", pa.uint64()), ("file", pa.uint32()), ("row", pa.uint32())])
_LISTS = (b"paths", b"fingerprints")
_FINGERPRINT = re.compile("[0-9a-f]{16}")


class Index:
    """Looks texts up in the segments of an index. One in a process; segments of a remote store are
    copied to this node once."""

    def __init__(self, store: Store, fingerprint: str, segments: Sequence[str]) -> None:
        self.store = store
        self._generations: dict[str, tuple[Generation, pa.Schema] | None] = {}
        opened = (or_none(functools.partial(_open, store, f"{name}.arrow")) for name in segments)
        self.segments = [segment for segment in opened if segment is not None]
        # segments of earlier releases name no fingerprints: all their files have that of the index
        for segment in self.segments:
            segment.setdefault("fingerprints", [fingerprint] * len(segment["paths"]))
        self._unreadable: set[str] = set()

    def find(self, digests: pa.ChunkedArray) -> pa.Table:
        """A row for each of N texts (SHA-256 in hex), with the columns of UNKNOWN: null where the
        text has no vector."""
        keys = keys_of(digests)
        missing = np.arange(len(digests))
        row_of = np.zeros(len(digests), np.int64)
        stored = UNKNOWN
        for segment in self.segments:
            segment_keys = segment["key"]
            start = np.searchsorted(segment_keys, keys)
            for step in range(LOCATIONS):
                at = start[missing] + step
                matches = at < len(segment_keys)
                matches[matches] = segment_keys[at[matches]] == keys[missing[matches]]
                for texts, rows in self._fetched(segment, at[matches], missing[matches], digests):
                    row_of[texts] = np.arange(rows.num_rows) + stored.num_rows
                    stored = pa.concat_tables([stored, rows])
                    missing = np.setdiff1d(missing, texts)
        return stored.take(pa.array(row_of, mask=np.isin(np.arange(len(digests)), missing)))

    def _fetched(
        self,
        segment: Mapping[str, Any],
        at: npt.NDArray[np.int64],
        texts: npt.NDArray[np.int64],
        digests: pa.ChunkedArray,
    ) -> Iterator[tuple[npt.NDArray[np.int64], pa.Table]]:
        """(indices of texts that have a vector, a row for each), file by file, for `texts` whose
        keys are those of the entries `at` of a segment."""
        files = segment["file"][at]
        rows = segment["row"][at]

        def fetch(file: int) -> tuple[npt.NDArray[np.int64], pa.Table] | None:
            of_file = files == file
            file_rows, place = np.unique(rows[of_file], return_inverse=True)
            read = or_none(
                lambda: self._rows(segment["paths"][file], segment["fingerprints"][file], file_rows)
            )
            if read is None:
                return None
            digest, row = read
            expected = digests.take(pa.array(texts[of_file]))
            same = pc.equal(digest.take(pa.array(place)), expected).to_numpy()
            return texts[of_file][same], row.take(pa.array(place[same]))

        with ThreadPoolExecutor(READERS) as pool:
            fetched = pool.map(fetch, np.unique(files).tolist())
            yield from (pair for pair in fetched if pair is not None)

    def _generation(self, fingerprint: str) -> tuple[Generation, pa.Schema] | None:
        """The facts about the files of one fingerprint, and the types of their columns."""
        if fingerprint not in self._generations:
            facts = None
            with contextlib.suppress(OutputError):  # a damaged record costs the reuse
                if generation := load_generation(self.store, fingerprint):
                    facts = (generation, arrow_schema(generation))
            self._generations[fingerprint] = facts
        return self._generations[fingerprint]

    def _rows(
        self, path: str, fingerprint: str, rows: npt.NDArray[np.uint32]
    ) -> tuple[pa.ChunkedArray, pa.Table]:
        """text_sha256 of some rows (ascending) of a data file, and the rows. Raises what or_none
        takes for a missing or damaged file."""
        if not _FINGERPRINT.fullmatch(fingerprint):
            raise ValueError(f"{fingerprint!r} is no fingerprint")
        facts = self._generation(fingerprint)
        if facts is None or path in self._unreadable:
            raise FileNotFoundError(path)
        self._unreadable.add(path)  # until it is read
        generation, types = facts
        dimension = generation.dimension
        table = rows_at(self.store, path, rows, _COLUMNS, types)
        vectors = restored_vectors(table, generation.vector_precision, dimension)
        self._unreadable.discard(path)
        offsets = pa.array(np.arange(len(vectors) + 1) * dimension)
        reused = pa.LargeListArray.from_arrays(offsets, pa.array(vectors.reshape(-1)))
        columns = [reused, table["n_tokens"], table["truncated"]]
        return table["text_sha256"], pa.table(columns, schema=UNKNOWN.schema)


def _open(store: Store, path: str) -> dict[str, Any]:
    """A segment as arrays over its memory map; in memory where this node cannot keep a copy."""
    if store.local:
        return _arrays(Path(store.path(path)))
    name = content_hash([store.uri, path])
    return cached("index", name, lambda: store.read(path), _arrays)


def _arrays(segment: Path | bytes) -> dict[str, Any]:
    is_file = isinstance(segment, Path)
    source = pa.memory_map(str(segment)) if is_file else pa.BufferReader(segment)
    n_bytes = segment.stat().st_size if isinstance(segment, Path) else len(segment)
    table = within_memory(lambda: pa.ipc.open_file(source).read_all(), n_bytes)
    if table.schema.remove_metadata() != _ENTRIES:
        raise ValueError(f"a segment has the columns {table.schema.names}")
    arrays = {name: table[name].combine_chunks().to_numpy() for name in table.column_names}
    metadata = table.schema.metadata
    lists = {name: json.loads(metadata[name]) for name in _LISTS if name in metadata}
    for values in lists.values():
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise ValueError("a segment names no files")
    if not all(layout.is_at(path, "data") for path in lists[b"paths"]):
        raise ValueError("a segment names other objects than data files")
    return {**arrays, **{name.decode(): values for name, values in lists.items()}}
