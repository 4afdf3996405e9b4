"""The index of texts that have a vector: hashes of texts ─► the data files and rows that hold their vectors.

In: the parts of earlier runs under one fingerprint. Out: sorted runs under
`_meta/index/<fingerprint>/`, each over a group of parts: `<name>.arrow`, uncompressed, to be
memory-mapped, 16 bytes a row; and `<name>.json`, written last, which says what it covers. The name
is a hash of the parts, so whoever builds a run makes the same object, and a refresh adds runs for
the parts that none covers yet. It can be built again at any time and is never believed
(`pipeline/output/known_vectors.py`). Cost: one column of each part is read once; memory is that of
one run a worker.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.storage import layout
from pipeline.storage.data_files import READERS, read_columns
from pipeline.storage.lineage import FORMAT_VERSION, Manifest, StoredRecord, content_hash
from pipeline.storage.store import Store

RUN_ROWS, RUN_PARTS = 4 << 20, 8192
"""Most rows and parts of one run: 64 MiB to build, to download and to map."""
MANY_RUNS = 16
"""So many runs below a quarter of that are built anew as one, so that a lookup never asks hundreds
of nightly ones."""


class IndexRun(StoredRecord):
    """What one run of the index covers."""

    format_version: int = FORMAT_VERSION
    parts: tuple[str, ...]
    n_rows: int

    @property
    def is_small(self) -> bool:
        return self.n_rows < RUN_ROWS // 4 and len(self.parts) < RUN_PARTS // 4


def update_index(
    store: Store,
    fingerprint: str,
    parts: Sequence[Manifest],
    build: Callable[[Sequence[Sequence[Manifest]]], object] | None = None,
) -> list[str]:
    """Index those of `parts` that no run covers yet; returns the names of the runs to look into,
    superseded ones left out.

    build: makes `build_run` happen for each group of parts; without it they are built here, one
    after the other.
    """
    wanted = {part.part_id: part for part in parts if part.n_rows}
    runs = used_runs(store, fingerprint, wanted)
    small = {name for name, run in runs.items() if run.is_small}
    kept = runs.keys() - small if len(small) >= MANY_RUNS else runs.keys()
    covered = {part_id for name in kept for part_id in runs[name].parts}
    groups = list(
        _groups([part for part_id, part in sorted(wanted.items()) if part_id not in covered])
    )
    if groups:
        if build:
            build(groups)
        else:
            for group in groups:
                build_run(store, fingerprint, group)
        runs = used_runs(store, fingerprint, wanted)
    return sorted(runs)


def build_run(store: Store, fingerprint: str, parts: Sequence[Manifest]) -> None:
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
    table = table.replace_schema_metadata({"paths": json.dumps(paths)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table)
    part_ids = tuple(part.part_id for part in parts)
    name = content_hash(part_ids)
    store.put_if_absent(
        layout.index_segment(fingerprint, name, "arrow"), sink.getvalue().to_pybytes()
    )
    store.put_if_absent(
        layout.index_segment(fingerprint, name, "json"),
        IndexRun(parts=part_ids, n_rows=len(key)).to_json(),
    )


def used_runs(store: Store, fingerprint: str, part_ids: Collection[str]) -> dict[str, IndexRun]:
    """The runs of an index that cover some of `part_ids`, by name. What larger runs cover
    altogether is left out."""
    records = [path for path in store.list(layout.index(fingerprint)) if path.endswith(".json")]
    runs = {
        path.removesuffix(".json"): IndexRun.from_json(data, path)
        for path, data in store.read_many(records)
    }
    left, used = set(part_ids), {}
    for name, run in sorted(runs.items(), key=lambda item: (-item[1].n_rows, item[0])):
        if not left.isdisjoint(run.parts):
            left.difference_update(run.parts)
            used[name] = run
    return used


def keys_of_files(store: Store, paths: Sequence[str]) -> list[npt.NDArray[np.uint64]]:
    """A key for each row of some data files; none where a file is gone or cannot be read."""

    def keys(path: str) -> npt.NDArray[np.uint64]:
        found = or_none(lambda: keys_of(read_columns(store, path, ["text_sha256"])["text_sha256"]))
        return np.zeros(0, np.uint64) if found is None else found

    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(keys, paths))


def keys_of(digests: pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    """First 8 bytes of each SHA-256, given in hex."""
    return np.frombuffer(bytes.fromhex("".join(digests.to_pylist())), ">u8")[::4].astype(np.uint64)


def or_none(read: Callable[[], Any]) -> Any:
    """What `read` gives, or None where a file is gone, or is not what it was. An outage is still an
    error."""
    try:
        return read()
    except (OSError, ValueError, KeyError, IndexError, pa.ArrowException):
        return None


def _groups(parts: Sequence[Manifest]) -> Iterator[list[Manifest]]:
    group: list[Manifest] = []
    n_rows = 0
    for part in parts:
        if group and (n_rows + part.n_rows > RUN_ROWS or len(group) == RUN_PARTS):
            yield group
            group, n_rows = [], 0
        group.append(part)
        n_rows += part.n_rows
    if group:
        yield group
