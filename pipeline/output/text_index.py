"""The index of texts that have a vector: hashes of texts ─► the data files and rows that hold their
vectors.

In: the parts of earlier runs under one fingerprint. Out: sorted segments under
`_meta/index/<fingerprint>/`, each over a group of parts: `<name>.arrow`, uncompressed, to be
memory-mapped, 16 bytes a row; and `<name>.json`, written last, which says what it covers. The name
is a hash of the parts, so that two processes that build a segment make the same object, and a
refresh adds segments for the parts that none covers yet. It can be built again at any time and is
never believed (`pipeline/output/known_vectors.py`). Cost: one column of each part is read once; a
worker needs the memory of one segment.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import OutputError
from pipeline.storage import layout
from pipeline.storage.data_rows import READERS, read_columns
from pipeline.storage.lineage import Manifest, content_hash
from pipeline.storage.store import Store
from pipeline.storage.stored_record import FORMAT_VERSION, Count, StoredRecord

SEGMENT_ROWS = 4 << 20
SEGMENT_PARTS = 8192
"""The most rows and parts of one segment: 64 MiB to build, to download and to map."""
MANY_SEGMENTS = 16
"""Once there are this many small segments they are merged, so that a lookup never asks hundreds of
them, one for each night."""


class IndexSegment(StoredRecord):
    """What one segment of the index covers."""

    format_version: int = FORMAT_VERSION
    parts: tuple[str, ...]
    n_rows: Count

    @property
    def is_small(self) -> bool:
        return self.n_rows < SEGMENT_ROWS // 4 and len(self.parts) < SEGMENT_PARTS // 4


def update_index(
    store: Store,
    fingerprint: str,
    parts: Sequence[Manifest],
    build: Callable[[Sequence[Sequence[Manifest]]], object] | None = None,
) -> list[str]:
    """Index those of `parts` that no segment covers yet; returns the names of the segments to look
    into, without those that larger ones have superseded.

    build: calls `build_segment` for each group of parts, for instance on workers; without it they
    are built here, one after the other.
    """
    with_rows = {part.part_id: part for part in parts if part.n_rows}
    segments = used_segments(store, fingerprint, with_rows)
    small = {name for name, segment in segments.items() if segment.is_small}
    kept = segments.keys() - small if len(small) >= MANY_SEGMENTS else segments.keys()
    covered = {part_id for name in kept for part_id in segments[name].parts}
    uncovered = [part for part_id, part in sorted(with_rows.items()) if part_id not in covered]
    groups = list(segment_groups(uncovered))
    if groups:
        if build:
            build(groups)
        else:
            for group in groups:
                build_segment(store, fingerprint, group)
        segments = used_segments(store, fingerprint, with_rows)
    return sorted(segments)


def build_segment(store: Store, fingerprint: str, parts: Sequence[Manifest]) -> None:
    """Index all rows of some parts. Files that are gone or cannot be read give no rows."""
    paths = [file.path for part in parts for file in part.data_files]
    keys = keys_of_files(store, paths)
    lengths = [len(of_file) for of_file in keys]
    key = np.concatenate(keys)
    order = np.argsort(key, kind="stable")
    columns: dict[str, npt.NDArray[Any]] = {
        "key": key,
        "file": np.repeat(np.arange(len(paths), dtype=np.uint32), lengths),
        "row": np.concatenate([np.arange(length, dtype=np.uint32) for length in lengths]),
    }
    table = pa.table({name: pa.array(values[order]) for name, values in columns.items()})
    fingerprints = [part.fingerprint for part in parts for _ in part.data_files]
    table = table.replace_schema_metadata(
        {"paths": json.dumps(paths), "fingerprints": json.dumps(fingerprints)}
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table)
    part_ids = tuple(part.part_id for part in parts)
    name = content_hash(part_ids)
    entries = sink.getvalue().to_pybytes()
    store.put_if_absent(layout.index_segment(fingerprint, name, "arrow"), entries)
    segment = IndexSegment(parts=part_ids, n_rows=len(key))
    store.put_if_absent(layout.index_segment(fingerprint, name, "json"), segment.to_json())


def used_segments(
    store: Store, fingerprint: str, part_ids: Collection[str]
) -> dict[str, IndexSegment]:
    """The segments that cover some of `part_ids`, by name. Those whose parts larger segments cover
    are left out."""
    records = {
        path: size_bytes
        for path, size_bytes in store.list(layout.index(fingerprint)).items()
        if path.endswith(".json") and layout.locate(path)
    }
    segments: dict[str, IndexSegment] = {}
    for path, data in store.read_many(records):
        # the index is never believed: a damaged segment counts as missing
        with contextlib.suppress(OutputError):
            segments[path.removesuffix(".json")] = IndexSegment.from_json(data, path)
    uncovered = set(part_ids)
    used = {}
    for name, segment in sorted(segments.items(), key=lambda item: (-item[1].n_rows, item[0])):
        if not uncovered.isdisjoint(segment.parts):
            uncovered.difference_update(segment.parts)
            used[name] = segment
    return used


def keys_of_files(store: Store, paths: Sequence[str]) -> list[npt.NDArray[np.uint64]]:
    """A key for each row of some data files; none where a file is gone or cannot be read."""

    def keys(path: str) -> npt.NDArray[np.uint64]:
        of_file = or_none(
            lambda: keys_of(read_columns(store, path, ["text_sha256"])["text_sha256"])
        )
        return np.zeros(0, np.uint64) if of_file is None else of_file

    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(keys, paths))


def keys_of(digests: pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    """The first 8 bytes of each SHA-256 (N texts, in hex) as (N,) uint64."""
    return np.frombuffer(bytes.fromhex("".join(digests.to_pylist())), ">u8")[::4].astype(np.uint64)


def or_none(read: Callable[[], Any]) -> Any:
    """The result of `read`, or None where a file is missing or damaged. An outage, a StorageError,
    is still an error."""
    try:
        return read()
    except (OutputError, OSError, ValueError, TypeError, LookupError, MemoryError):
        return None
    except pa.ArrowException:
        return None


def segment_groups(parts: Sequence[Manifest]) -> Iterator[list[Manifest]]:
    """Parts in their order, in groups that fit into a segment."""
    group: list[Manifest] = []
    n_rows = 0
    for part in parts:
        if group and (n_rows + part.n_rows > SEGMENT_ROWS or len(group) == SEGMENT_PARTS):
            yield group
            group = []
            n_rows = 0
        group.append(part)
        n_rows += part.n_rows
    if group:
        yield group
