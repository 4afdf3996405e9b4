"""Many small data files become a few large ones: a new snapshot of the same rows, and nothing is
embedded.

In: the newest snapshot. Whole splits are joined, in the order of their shards, until the largest
file of the joined part has `target_bytes`; larger splits stay as they are. A joined part is the one
part of the split of all their spans, so planning carries it over, verify and trace treat it as any
other, and one changed shard makes all of it be read again. Every object is created once, under a
name from its content: a compaction that was killed goes on where it stopped. Cost: a read and a
write of what is joined. Memory: one joined file (less than twice target_bytes), one row group.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.errors import OutputError
from pipeline.output import dataset
from pipeline.output.run_folder import copy_run
from pipeline.output.snapshots import commit_snapshot, live_parts
from pipeline.storage import data_files, layout
from pipeline.storage.addresses import shown
from pipeline.storage.lineage import (
    DataFile,
    Manifest,
    Source,
    Split,
    by_split,
    content_hash,
    part_id,
)
from pipeline.storage.store import Store
from pipeline.write import parquet
from pipeline.write.create import create_data_file, create_manifest, create_rejects
from pipeline.write.part import FOOTER_SOURCES

TARGET_BYTES = 128 << 20
BATCH_ROWS = 8192
UNBOUNDED = 1 << 62
"""Bytes and records of a joined part: whatever its split gives is one part."""
_NO_SUMS = {"format_version", "index"}
"""Numbers of a manifest that do not add up."""


@dataclasses.dataclass(frozen=True)
class Compaction:
    """What became of it: the snapshot that is live now, its data files, and those of the snapshot
    before."""

    snapshot: int
    n_files_before: int
    n_files: int
    n_parts_joined: int


def compact(
    store_uri: str, storage_options: Mapping[str, Any] | None, *, target_bytes: int = TARGET_BYTES
) -> Compaction:
    """Join small data files of the newest snapshot; nothing is written where there are none to
    join.

    Raises OutputError when the snapshot is not complete or a file is damaged, CommitConflict when a
    run committed first.
    """
    store = Store(store_uri, storage_options)
    head, _ = dataset.read_head(store)
    if not head.complete:
        raise OutputError(
            f"{shown(store_uri)}: snapshot {head.number} is of a run that has not ended. Let it end, then compact."
        )
    live = live_parts(store, head)
    groups = list(_groups(live, target_bytes))
    joined = {part.part_id for group in groups for part in group}
    if not groups:
        return Compaction(head.number, head.n_files, head.n_files, 0)
    splits = [_joined_split(group) for group in groups]
    kept = [part for part in live if part.part_id not in joined]
    targets = sorted({split.split_id for split in [*splits, *(part.split for part in kept)]})
    run_id = content_hash(["compact", head.fingerprint, targets], 16)
    copy_run(store, run_id, head.run_id, splits)
    made = [_join(store, group, split, run_id) for group, split in zip(groups, splits, strict=True)]
    found = commit_snapshot(
        store,
        [*kept, *made],
        run_id=run_id,
        fingerprint=head.fingerprint,
        parent=head,
        complete=True,
        n_duplicate_ids=head.n_duplicate_ids,
        nominal_time=head.nominal_time,
    )
    return Compaction(found.number, head.n_files, found.n_files, len(joined))


def _groups(live: Sequence[Manifest], target_bytes: int) -> Iterator[list[Manifest]]:
    """Parts to join into one: those of whole splits whose largest file would stay below
    target_bytes."""
    group: list[Manifest] = []
    sizes: Counter[str] = Counter()
    for parts in sorted(by_split(live).values(), key=lambda parts: _first(parts[0].split)):
        added: Counter[str] = Counter()
        for file in (file for part in parts for file in part.data_files):
            added[layout.partition_folder(file.path)] += file.size_bytes
        if max(added.values(), default=0) >= target_bytes:
            continue
        group += parts
        sizes += added
        if max(sizes.values(), default=0) >= target_bytes:
            yield group
            group, sizes = [], Counter()
    if len(group) > 1:
        yield group


def _first(split: Split) -> tuple[str, int]:
    return split.spans[0].shard.uri, split.spans[0].start


def _joined_split(parts: Sequence[Manifest]) -> Split:
    """The split that, read again, gives all records of some whole splits as one part."""
    splits = {part.split.split_id: part.split for part in parts}
    return Split(
        spans=tuple(span for split in splits.values() for span in split.spans),
        part_bytes=UNBOUNDED,
        part_records=UNBOUNDED,
    )


def _join(store: Store, parts: Sequence[Manifest], split: Split, run_id: str) -> Manifest:
    """Publish the joined part: data files, rejects, manifest."""
    fingerprint = parts[0].fingerprint
    name = part_id(fingerprint, split.split_id, 0)
    path = layout.manifest(fingerprint, name)
    if (done := store.read_or_none(path)) is not None:
        return Manifest.from_json(done, path)
    sources, seconds, reasons = _sources(parts), Counter[str](), Counter[str]()
    for part in parts:
        seconds.update(part.seconds)
        reasons.update(part.reject_reasons)
    keys = sorted({key for part in parts for key in part.engine})
    engine = {
        key: ", ".join(sorted({part.engine.get(key, "unknown") for part in parts})) for key in keys
    }
    lineage = {"part_id": name, "run_id": run_id, "engine": engine, "n_sources": len(sources)}
    lineage["sources"] = [
        source.model_dump(exclude={"n_rejects"}) for source in sources[:FOOTER_SOURCES]
    ]
    folders: dict[str, list[DataFile]] = defaultdict(list)
    for part in parts:
        for file in part.data_files:
            folders[layout.partition_folder(file.path)].append(file)
    joined = [_join_files(store, files, name, lineage) for _, files in sorted(folders.items())]
    sums = {
        key: sum(getattr(part, key) for part in parts)
        for key, field in Manifest.model_fields.items()
        if field.annotation is int and key not in _NO_SUMS
    }
    changes = {
        "part_id": name,
        "run_id": run_id,
        "split": split,
        "index": 0,
        "last": True,
        "sources": tuple(sources),
        "data_files": tuple(joined),
        **_join_rejects(store, parts, run_id, name, lineage),
        "reject_reasons": dict(reasons),
        "seconds": dict(seconds),
        "engine": engine,
    }
    return create_manifest(store, parts[0].model_copy(update={**sums, **changes}))


def _join_files(
    store: Store, files: Sequence[DataFile], name: str, lineage: dict[str, Any]
) -> DataFile:
    """One data file with the rows of several of the same Hive partition."""
    footers = [_footer(store, file) for file in files]
    run_ids = {run for footer in footers for run in [footer["run_id"], *footer.get("run_ids", [])]}
    arrow_schema = data_files.opened(_checked(store, files[0])).schema_arrow
    data = parquet.encode_all(
        _tables(store, files, name),
        arrow_schema,
        {**footers[0], **lineage, "run_ids": sorted(run_ids)},
    )
    folder = layout.partition_folder(files[0].path)
    n_rows = sum(file.n_rows for file in files)
    return create_data_file(store, name, folder, files[0].partition, n_rows, data)


def _tables(store: Store, files: Sequence[DataFile], name: str) -> Iterator[pa.Table]:
    """The rows of some files under another part_id, as much at a time as a row group holds."""
    waiting: list[pa.RecordBatch] = []
    n_bytes = 0
    for file in files:
        for batch in data_files.opened(_checked(store, file)).iter_batches(
            BATCH_ROWS, use_threads=False
        ):
            if waiting and n_bytes + batch.nbytes > parquet.ROW_GROUP_BYTES:
                yield _renamed(pa.Table.from_batches(waiting), name)
                waiting, n_bytes = [], 0
            waiting.append(batch)
            n_bytes += batch.nbytes
    yield _renamed(pa.Table.from_batches(waiting), name)


def _join_rejects(
    store: Store, parts: Sequence[Manifest], run_id: str, name: str, lineage: dict[str, Any]
) -> dict[str, str | None]:
    paths = [part.rejects_path for part in parts if part.rejects_path]
    if not paths:
        return {"rejects_path": None, "rejects_sha256": None}
    tables = [data_files.read_table(store.read(path)) for path in paths]
    letters = _renamed(pa.concat_tables(tables), name)
    path, digest = create_rejects(store, run_id, name, letters, lineage)
    return {"rejects_path": path, "rejects_sha256": digest}


def _sources(parts: Sequence[Manifest]) -> list[Source]:
    """What the parts took, added up by shard."""
    found: dict[tuple[str, str], Source] = {}
    for source in (source for part in parts for source in part.sources):
        before = found.get(
            (source.uri, source.etag), source.model_copy(update={"n_records": 0, "n_rejects": 0})
        )
        found[source.uri, source.etag] = source.model_copy(
            update={
                "first_record": min(before.first_record, source.first_record),
                "n_records": before.n_records + source.n_records,
                "n_rejects": before.n_rejects + source.n_rejects,
                "damaged": before.damaged or source.damaged,
            }
        )
    return list(found.values())


def _renamed(table: pa.Table, name: str) -> pa.Table:
    position = table.schema.get_field_index("part_id")
    return table.set_column(position, table.schema.field(position), pa.repeat(name, table.num_rows))


def _footer(store: Store, file: DataFile) -> dict[str, Any]:
    with store.open(file.path) as source:
        footer: dict[str, Any] = json.loads(data_files.read_footer(source)[1] or b"{}")
    return footer


def _checked(store: Store, file: DataFile) -> bytes:
    """The bytes of a data file. Raises OutputError when they are not those of its manifest."""
    data = store.read(file.path)
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise OutputError(
            f"{shown(store.uri)}/{file.path}: has another SHA-256 than its manifest says, so nothing was joined. Run "
            "`corpus-embed verify`, delete nothing, and embed the shard again into another output."
        )
    return data
