"""Which sampled texts have a vector in the output already, so that a run will not embed them.

In: the manifests whose vectors a run can reuse. Out: a lookup by the hash of a text. What the index
of texts covers is looked up there; of the other parts the hashes are read, where these are few.
Nothing is written, and no vector is read, so a file that is damaged shows only in the run. Cost:
the segments of the index, once for each node; a column of the files that are read.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.output.known_vectors import Index
from pipeline.output.text_index import keys_of, keys_of_files, used_segments
from pipeline.storage.lineage import Manifest
from pipeline.storage.store import Store
from pipeline.storage.words import counted

__all__ = ["KnownTexts"]

MAX_INDEX_ROWS = 1 << 25
"""The most rows of segments of a remote store that a plan fetches: 512 MiB."""

MAX_READ_ROWS = 1 << 20
"""The most rows of parts that no segment covers whose hashes a plan reads."""


class KnownTexts:
    """Looks texts up by their hashes. problem: why some texts may be known and are not found, as a
    sentence; None where all are."""

    def __init__(self, store: Store, fingerprint: str, parts: Sequence[Manifest]) -> None:
        self.problem: str | None = None
        self._keys: list[npt.NDArray[np.uint64]] = []
        by_id = {part.part_id: part for part in parts if part.n_rows}
        if not by_id:
            return
        segments = used_segments(store, fingerprint, by_id)
        covered = {part_id for segment in segments.values() for part_id in segment.parts}
        uncovered = [part for part_id, part in by_id.items() if part_id not in covered]
        n_index_rows = sum(segment.n_rows for segment in segments.values())
        n_unread = 0
        if store.local or n_index_rows <= MAX_INDEX_ROWS:
            index = Index(store, fingerprint, sorted(segments))
            self._keys += [segment["key"] for segment in index.segments]
        else:
            n_unread += n_index_rows
        n_rows = sum(part.n_rows for part in uncovered)
        if n_rows <= MAX_READ_ROWS:
            paths = [file.path for part in uncovered for file in part.data_files]
            self._keys += [np.sort(keys) for keys in keys_of_files(store, paths)]
        else:
            n_unread += n_rows
        if n_unread:
            self.problem = (
                f"the hashes of {counted(n_unread, 'row')} were not read, so more texts may have a "
                "vector already: the run looks each one up"
            )

    def find(self, digests: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
        """(N,) whether each text (SHA-256 in hex) has a vector."""
        is_known = np.zeros(len(digests), bool)
        if not self._keys or not len(digests):
            return is_known
        wanted = keys_of(digests)
        for keys in self._keys:
            at = np.searchsorted(keys, wanted)
            inside = at < len(keys)
            is_known[inside] |= keys[at[inside]] == wanted[inside]
        return is_known
