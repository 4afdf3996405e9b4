"""The index of document ids: which ids the parts of an output hold, as hashes, so that a commit
counts ids that documents share without reading what has not changed.

Comes in: the parts of a snapshot to be. Goes out: the number of shared ids, and segments under
`_meta/ids/<fingerprint>/<name>.parquet`, one row for each part: a hash of its files' SHA-256, and
the BLAKE2b hashes of its document ids, 16 bytes each, one after the other. Two ids with the same
hash would count as shared: for 50 million ids the odds are below 1 in 10^23. Segments can be built
again at any time, and a part whose segment is missing or damaged is read; `verify` counts from the
rows. Cost: two columns of each part that no segment covers, and 16 bytes for every other document.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.output.text_index import MANY_SEGMENTS, SEGMENT_ROWS, or_none, segment_groups
from pipeline.storage import layout
from pipeline.storage.data_files import encoded
from pipeline.storage.data_rows import read_columns
from pipeline.storage.lineage import DataFile, Manifest, content_hash
from pipeline.storage.store import Store

COUNTED_IDS = 50_000_000
"""The most documents among which a commit counts shared ids, since it holds their hashes in memory;
larger outputs leave it to verify."""
HASH_BYTES = 16
_KEY = pa.schema(
    [pa.field("doc_id", pa.string(), nullable=False), pa.field("chunk", pa.int32(), nullable=False)]
)
_SEGMENT = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("ids", pa.large_binary(), nullable=False),
    ]
)
_READERS = 32
"""Data files that are read at once: the requests are small, and follow each other in a file."""


def count_duplicate_ids(store: Store, parts: Sequence[Manifest]) -> int | None:
    """How many ids several documents of `parts` share; None above COUNTED_IDS documents.

    Writes segments for parts that have none, and merges segments once there are many small ones.
    """
    if sum(part.n_documents for part in parts) > COUNTED_IDS:
        return None
    by_key = {_key(part): part for part in parts if part.data_files}
    fingerprint = parts[0].fingerprint if parts else ""
    segments = _read_segments(store, fingerprint, by_key)
    hashes = {key: ids for segment in segments for key, ids in segment.items()}
    unindexed = [part for key, part in by_key.items() if key not in hashes]
    hashes |= _read_hashes(store, unindexed)
    small = [segment for segment in segments if _is_small(segment)]
    if len(small) >= MANY_SEGMENTS:
        unindexed += [by_key[key] for segment in small for key in segment]
    for group in segment_groups(sorted(unindexed, key=lambda part: part.part_id)):
        _create_segment(store, fingerprint, {_key(part): hashes[_key(part)] for part in group})
    data = b"".join(hashes[key] for key in by_key)
    ids = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(HASH_BYTES), len(data) // HASH_BYTES, [None, pa.py_buffer(data)]
    )
    counts = pa.table({"id": ids}).group_by("id").aggregate([([], "count_all")])["count_all"]
    return pc.sum(pc.greater(counts, 1)).as_py() or 0


def used_id_segments(store: Store, fingerprint: str, parts: Iterable[Manifest]) -> list[str]:
    """Paths of the segments that cover some of `parts`. Those whose parts larger segments cover are
    left out."""
    covered: dict[str, list[str]] = {}
    for path in store.list(layout.ids(fingerprint)):
        table = or_none(functools.partial(read_columns, store, path, ["key"], _SEGMENT))
        covered[path] = [] if table is None else table["key"].to_pylist()
    uncovered = {_key(part) for part in parts}
    used = []
    for path in sorted(covered, key=lambda path: (-len(covered[path]), path)):
        if not uncovered.isdisjoint(covered[path]):
            uncovered.difference_update(covered[path])
            used.append(path)
    return used


def _key(part: Manifest) -> str:
    """A name for the content of a part."""
    return content_hash([file.sha256 for file in part.data_files])


def _read_segments(
    store: Store, fingerprint: str, parts: Mapping[str, Manifest]
) -> list[dict[str, bytes]]:
    """For each segment that covers some of `parts` (by their keys), the hashes of ids by the keys
    of the parts that it covers; no part twice."""
    segments: list[dict[str, bytes]] = []
    uncovered = set(parts)
    for path in used_id_segments(store, fingerprint, parts.values()):
        table = or_none(functools.partial(read_columns, store, path, _SEGMENT.names, _SEGMENT))
        if table is not None:
            rows = zip(table["key"].to_pylist(), table["ids"].to_pylist(), strict=True)
            segments.append({key: ids for key, ids in rows if key in uncovered})
            uncovered -= segments[-1].keys()
    return segments


def _is_small(segment: Mapping[str, bytes]) -> bool:
    return sum(map(len, segment.values())) < HASH_BYTES * SEGMENT_ROWS // 4


def _create_segment(store: Store, fingerprint: str, hashes: Mapping[str, bytes]) -> None:
    table = pa.table({"key": [*hashes], "ids": pa.array([*hashes.values()], pa.large_binary())})
    path = layout.ids_segment(fingerprint, content_hash([*hashes]))
    store.put_if_absent(path, encoded(table, compression="none", dictionaries=False))


def _read_hashes(store: Store, parts: Sequence[Manifest]) -> dict[str, bytes]:
    """The hashes of each part's document ids, read from its data files."""

    def of_file(file: DataFile) -> bytes:
        table = read_columns(store, file.path, _KEY.names, _KEY)
        ids = table.filter(pc.equal(table["chunk"], 0))["doc_id"].to_pylist()
        return b"".join(
            hashlib.blake2b(doc_id.encode(), digest_size=HASH_BYTES).digest() for doc_id in ids
        )

    with ThreadPoolExecutor(_READERS) as pool:
        pieces = iter(list(pool.map(of_file, [file for part in parts for file in part.data_files])))
    return {_key(part): b"".join(next(pieces) for _ in part.data_files) for part in parts}
