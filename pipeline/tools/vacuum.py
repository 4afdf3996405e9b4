"""What an output no longer needs, as a `VacuumPlan`, which is carried out with `delete`.

Kept is everything that these need: the newest `keep_snapshots` complete snapshots and every
snapshot after the oldest of them; parts of the head's fingerprint, or of the one that was written
to last, that no snapshot has named yet and that are younger than its last complete run (an
unfinished run resumes from them); and whatever is younger than `older_than` by the store's own
clock. The rest of what this package writes goes: dropped snapshots and their file lists, parts that
only they name (manifest, data files, rejects), parts of an abandoned fingerprint, parts that the
last complete run had no use for, data files and rejects without a manifest, run records and
generations that no kept row names, probes, temporary files. Objects whose names this package does
not make are never touched.

Order of deletion: manifests first, then what they name, snapshots last. A vacuum that dies is
finished by the next one, and a plan made meanwhile never counts a part as done whose files are
gone. Do not vacuum with `delete` while a run on the same output is under way: it may be about to
adopt an old orphan. Cost: one listing, one small read per manifest that an unfinished run could
resume from; one footer per kept data file, only if there are old run records to judge.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.errors import CorpusEmbedError, OutputError
from pipeline.output import lake
from pipeline.output.id_index import used_id_segments
from pipeline.output.snapshots import live_parts, load_snapshot, snapshot_numbers
from pipeline.output.text_index import used_segments
from pipeline.storage import data_files, layout
from pipeline.storage.lineage import Manifest, Snapshot
from pipeline.storage.store import Store
from pipeline.tools.stored_objects import Objects, StoredObject, list_objects

_REASONS = {
    "manifest": "a part that no kept snapshot names",
    "data": "a data file that no kept part names",
    "rejects": "rejects that no kept part names",
    "snapshot": "older than the kept snapshots",
    "file list": "no kept snapshot names it",
    "index": "a larger segment covers its parts, or they are gone",
    "ids": "larger ones cover its parts, or they are gone",
    "generation": "nothing kept has its fingerprint",
    "run record": "nothing kept is from this run",
    "lease": "of a refresh that ended or died",
    "probe": "left behind by a check for conditional writes",
    "temporary": "left behind by a write that was killed",
}
"""Why an object of each kind of `layout.KINDS` is no longer needed."""


@dataclasses.dataclass(frozen=True)
class VacuumPlan:
    """What is to be deleted, or was (`deleted`). paths: the reason for each relative path, in the
    order of deletion. n_too_young: objects that nothing needs, but younger than `older_than`.
    tables_behind: a sentence for each published table that could not be brought up to date."""

    deleted: bool
    kept_snapshots: tuple[int, ...]
    n_bytes: int
    n_too_young: int
    tables_behind: tuple[str, ...]
    paths: dict[str, str]


def vacuum(
    store_uri: str,
    storage_options: Mapping[str, Any] | None,
    *,
    keep_snapshots: int = 2,
    older_than: datetime.timedelta = datetime.timedelta(days=1),
    delete: bool = False,
) -> VacuumPlan:
    """Find what is not needed any more; remove it only with `delete`.

    Writes (and removes) one probe object to learn the time by the store's clock. Raises OutputError
    when no snapshot is complete or a kept record is broken, StorageError when the store refuses.
    """
    store = Store(store_uri, storage_options)
    if keep_snapshots < 1:
        raise OutputError(
            f"keep_snapshots is {keep_snapshots}: at least the newest complete snapshot is kept"
        )
    limit = store.time() - older_than.total_seconds()
    # listed before snapshots are read: a snapshot made in between names nothing that could be
    # judged without it
    objects = dict(list_objects(store))
    loaded = (load_snapshot(store, number) for number in snapshot_numbers(store))
    snapshots = [snapshot for snapshot in loaded if snapshot]
    complete = [snapshot.number for snapshot in snapshots if snapshot.complete]
    if not complete:
        raise OutputError(
            f"{store.shown_uri}: this output has no complete snapshot, so vacuum cannot tell what "
            "is still needed"
        )
    first_kept = complete[-keep_snapshots:][0]
    kept = [snapshot for snapshot in snapshots if snapshot.number >= first_kept]
    dropped = [snapshot for snapshot in snapshots if snapshot.number < first_kept]
    needed = _needed(store, kept, dropped, objects)
    unneeded = {path: item for path, item in objects.items() if path not in needed}
    old = {path: item for path, item in unneeded.items() if item.changed_at < limit}
    n_too_young = len(unneeded) - len(old)
    for path in _records_of_kept_rows(store, old, needed):
        del old[path]
    order = list(layout.KINDS)
    paths = sorted(old, key=lambda path: (order.index(old[path].location.kind), path))
    behind: list[CorpusEmbedError] = []
    if delete:
        _, behind = lake.publish_recorded(store, {snapshot.number for snapshot in kept})
        for path in paths:
            store.delete(path)
    return VacuumPlan(
        deleted=delete,
        kept_snapshots=tuple(snapshot.number for snapshot in kept),
        n_bytes=sum(item.size_bytes for item in old.values()),
        n_too_young=n_too_young,
        tables_behind=tuple(map(str, behind)),
        paths={path: _REASONS[old[path].location.kind] for path in paths},
    )


def _of_kind(objects: Objects, kind: str) -> dict[str, StoredObject]:
    return {path: item for path, item in objects.items() if item.location.kind == kind}


def _needed(
    store: Store, kept: Sequence[Snapshot], dropped: Sequence[Snapshot], objects: Objects
) -> set[str]:
    """Paths that kept snapshots and resumable parts need."""
    live = {part.part_id: part for snapshot in kept for part in live_parts(store, snapshot)}
    once_live = {part.part_id for snapshot in dropped for part in _parts_or_none(store, snapshot)}
    current = {kept[-1].fingerprint, *_last_written_fingerprints(objects)}
    settled_at = _settled_at([*dropped, *kept], objects)
    # what an unfinished run can resume from: no snapshot has named it, no run has completed since
    resumable = {
        path: item.size_bytes
        for path, item in _of_kind(objects, "manifest").items()
        if item.location.fingerprint in current
        and item.location.part_id not in live.keys() | once_live
        and item.changed_at >= settled_at.get(item.location.fingerprint, 0.0)
    }
    resumed = [Manifest.from_json(data, path) for path, data in store.read_many(resumable)]
    manifests = [*live.values(), *resumed]
    records: list[Snapshot | Manifest] = [*kept, *manifests]
    fingerprints = current | {record.fingerprint for record in records}
    run_ids = {record.run_id for record in records}
    part_ids = {manifest.part_id for manifest in manifests}
    needed = {
        *(layout.manifest(manifest.fingerprint, manifest.part_id) for manifest in manifests),
        *(file.path for manifest in manifests for file in manifest.data_files),
        *(manifest.rejects_path for manifest in manifests if manifest.rejects_path),
        *(layout.snapshot(snapshot.number) for snapshot in kept),
        *(snapshot.file_list for snapshot in kept),
    }
    for fingerprint in fingerprints:
        needed.add(layout.generation(fingerprint))
        needed.update(used_id_segments(store, fingerprint, manifests))
        for segment in used_segments(store, fingerprint, part_ids):
            needed |= {f"{segment}.arrow", f"{segment}.json"}
    run_records = _of_kind(objects, "run record").items()
    needed.update(path for path, item in run_records if item.location.run_id in run_ids)
    return needed


def _settled_at(snapshots: Sequence[Snapshot], objects: Objects) -> dict[str, float]:
    """When a run last completed, by fingerprint. It took all parts that fitted its listing: what is
    older and was left out is of shards that have changed. A compaction, which has no record of an
    attempt, does not count."""
    attempts = {item.location.run_id for item in objects.values() if item.location.is_attempt}
    return {
        snapshot.fingerprint: item.changed_at
        for snapshot in snapshots
        if snapshot.complete
        and snapshot.run_id in attempts
        and (item := objects.get(layout.snapshot(snapshot.number)))
    }


def _parts_or_none(store: Store, snapshot: Snapshot) -> list[Manifest]:
    """Parts of a dropped snapshot; none if its file list is damaged, or an interrupted vacuum has
    deleted it."""
    try:
        return live_parts(store, snapshot)
    except OutputError:
        return []


def _last_written_fingerprints(objects: Objects) -> set[str]:
    """The fingerprint of the youngest manifest, whose run may be unfinished. Several where a clock
    ticks in seconds."""
    manifests = _of_kind(objects, "manifest").values()
    newest = max((item.changed_at for item in manifests), default=0.0)
    written = (item.location.fingerprint for item in manifests if item.changed_at == newest)
    return {fingerprint for fingerprint in written if fingerprint}


def _records_of_kept_rows(store: Store, old: Objects, needed: Iterable[str]) -> list[str]:
    """Run records among `old` that rows of kept data files name: a part may have adopted the file
    of an earlier run."""
    records = _of_kind(old, "run record")
    run_ids: set[str | None] = set()
    for path in needed if records else ():
        if (location := layout.locate(path)) and location.kind == "data":
            lineage = data_files.read_lineage(store, path)
            run_ids |= {lineage.get("run_id"), *lineage.get("run_ids", [])}
    return [path for path, item in records.items() if item.location.run_id in run_ids]
