"""Many small data files become a few large ones: a new snapshot of the same rows, without embedding
anything.

In: the newest snapshot. Out: a snapshot whose small splits are joined. Whole splits are joined, in
the order of their shards, until the largest file of the joined part has `target_bytes`; larger
splits stay as they are. A joined part is the only part of the split of all their spans, so planning
carries it over, verify and trace treat it like any other, and one changed shard makes all of it be
read again. Every object is created once, under a name from its content: a compaction that was
killed resumes where it stopped. Cost: a read and a write of what is joined. Memory: one joined file
(less than twice target_bytes) and one row group.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.errors import OutputError
from pipeline.output import dataset, work
from pipeline.output.companions import update_companions
from pipeline.output.run_folder import create_run
from pipeline.output.snapshots import commit_snapshot, live_parts
from pipeline.storage import layout
from pipeline.storage.lineage import Manifest, Split, by_split, content_hash
from pipeline.storage.store import Store
from pipeline.tools.joined_part import create_joined_part

TARGET_BYTES = 128 << 20
UNBOUNDED = 1 << 62
"""part_bytes and part_records of a joined split: it is always one part."""


@dataclasses.dataclass(frozen=True)
class Compaction:
    """The snapshot that is live now, its number of data files, and that of the snapshot before.
    n_old_files: files of the latter that it does not have, which stay until a vacuum."""

    snapshot: int
    n_files_before: int
    n_files: int
    n_parts_joined: int
    n_old_files: int = 0


def compact(
    uri: str,
    *,
    target_bytes: int = TARGET_BYTES,
    storage_options: Mapping[str, Any] | None = None,
) -> Compaction:
    """Join small data files of the newest snapshot; writes no snapshot when there are none to join.

    Raises OutputError when the snapshot is not complete or a file is damaged, CommitConflict when a
    run committed first.
    """
    store = Store(uri, storage_options)
    head, _ = dataset.read_head(store)
    with work.under_way(store, "compact", head.fingerprint):
        return _compact_marked(store, target_bytes)


def _compact_marked(store: Store, target_bytes: int) -> Compaction:
    head, _ = dataset.read_head(store)
    if not head.complete:
        raise OutputError(
            f"{store.shown_uri}: snapshot {head.number} belongs to a run that has not finished. "
            "Let it finish, then compact."
        )
    live = live_parts(store, head)
    groups = list(_groups(live, target_bytes))
    if not groups:
        update_companions(store)
        return Compaction(head.number, head.n_files, head.n_files, 0)
    joined_ids = {manifest.part_id for group in groups for manifest in group}
    kept = [manifest for manifest in live if manifest.part_id not in joined_ids]
    splits = [_joined_split(group) for group in groups]
    split_ids = {split.split_id for split in (*splits, *(manifest.split for manifest in kept))}
    run_id = content_hash(["compact", head.fingerprint, sorted(split_ids)], 16)
    create_run(store, run_id, store.read(layout.run_spec(head.run_id)), splits)
    joined = [
        create_joined_part(store, group, split, run_id)
        for group, split in zip(groups, splits, strict=True)
    ]
    snapshot = commit_snapshot(
        store,
        [*kept, *joined],
        run_id=run_id,
        fingerprint=head.fingerprint,
        parent=head,
        complete=True,
        n_duplicate_ids=head.n_duplicate_ids,
        nominal_time=head.nominal_time,
    )
    update_companions(store)
    n_old_files = sum(len(part.data_files) for group in groups for part in group)
    n_joined = len(joined_ids)
    return Compaction(snapshot.number, head.n_files, snapshot.n_files, n_joined, n_old_files)


def _groups(live: Sequence[Manifest], target_bytes: int) -> Iterator[list[Manifest]]:
    """Manifests to join, those of whole splits, until the largest joined file has target_bytes."""
    group: list[Manifest] = []
    folder_bytes: Counter[str] = Counter()
    for manifests in sorted(by_split(live).values(), key=_position):
        added_bytes: Counter[str] = Counter()
        for file in itertools.chain(*(manifest.data_files for manifest in manifests)):
            added_bytes[layout.partition_folder(file.path)] += file.size_bytes
        if max(added_bytes.values(), default=0) >= target_bytes:
            continue
        group += manifests
        folder_bytes += added_bytes
        if max(folder_bytes.values(), default=0) >= target_bytes:
            yield group
            group = []
            folder_bytes = Counter()
    if len(group) > 1:
        yield group


def _position(manifests: Sequence[Manifest]) -> tuple[str, int]:
    """Where a split begins. manifests: those of its parts."""
    first = manifests[0].split.spans[0]
    return first.shard.uri, first.start


def _joined_split(manifests: Sequence[Manifest]) -> Split:
    """The split that, read again, gives all records of some whole splits as one part."""
    splits = {manifest.split.split_id: manifest.split for manifest in manifests}
    return Split(
        spans=tuple(span for split in splits.values() for span in split.spans),
        part_bytes=UNBOUNDED,
        part_records=UNBOUNDED,
    )
