"""What an output no longer needs: listings and kept snapshots in, a `VacuumPlan` out; with `delete`
it is carried out.

Kept is everything that these need: the newest `keep_snapshots` complete snapshots and every
snapshot after the oldest of them; parts of the head's fingerprint, or of the one that was written
to last, that no snapshot has named yet and that are younger than its last complete run (an
unfinished run resumes from them); and whatever is younger than `older_than` by the store's own
clock. The rest of what this package writes goes: dropped snapshots and their file lists, parts that
only they name (manifest, data files, rejects), parts of a given-up fingerprint, parts that the last
complete run had no use for, data files and rejects without a manifest, run records and generations
that no kept row names, probes, temporary files. Anything else under the root is not ours and is
never touched.

Order of deletion: manifests first, then what they name, snapshots last. A vacuum that dies is
finished by the next one, and a plan made meanwhile never counts a part as done whose files are
gone. Do not vacuum with `delete` while a run on the same output is under way: it may be about to
adopt an old orphan. Cost: one listing, one small read per manifest outside the kept snapshots; one
footer per kept data file, only where a run record is to be judged.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import OutputError
from pipeline.output import lake
from pipeline.output.snapshots import live_parts, load_snapshot, snapshot_numbers
from pipeline.output.text_index import used_runs
from pipeline.storage import data_files, layout
from pipeline.storage.addresses import shown
from pipeline.storage.lineage import Manifest, Snapshot
from pipeline.storage.retry import retried
from pipeline.storage.store import Store

_REASONS = {
    "manifest": "a part that no kept snapshot names",
    "data": "a data file that no kept part names",
    "rejects": "rejects that no kept part names",
    "snapshot": "older than the kept snapshots",
    "file list": "no kept snapshot names it",
    "index": "a larger one covers its parts, or they are gone",
    "generation": "nothing kept has its fingerprint",
    "run record": "nothing kept is from this run",
    "lease": "of a refresh that ended or died",
    "probe": "left behind by a check for conditional writes",
    "temporary": "left behind by a write that was killed",
}
"""Why an object of each kind of `layout.KINDS` may go."""


class Listed(NamedTuple):
    """One object that this package writes. changed: seconds since 1970 by the store's clock."""

    location: layout.Location
    size_bytes: int
    changed: float


@dataclasses.dataclass(frozen=True)
class VacuumPlan:
    """What is to go (or went, when `deleted`): reason by relative path,."""

    deleted: bool
    kept_snapshots: tuple[int, ...]
    n_bytes: int
    n_too_young: int
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
    listed = dict(_list(store))
    found_snapshots = (load_snapshot(store, number) for number in snapshot_numbers(store))
    snapshots = [snapshot for snapshot in found_snapshots if snapshot]
    kept = _kept(snapshots, keep_snapshots)
    if not kept:
        raise OutputError(
            f"{shown(store.uri)}: no complete snapshot there, so nothing can be told from nothing needed"
        )
    needed = _needed(store, kept, snapshots, listed)
    unneeded = [path for path in listed if path not in needed]
    old = {path for path in unneeded if listed[path].changed < limit}
    old -= _lineage_of_kept_rows(store, {path: listed[path].location for path in old}, needed)
    order = list(layout.KINDS)
    going = sorted(old, key=lambda path: (order.index(listed[path].location.kind), path))
    if delete:
        lake.prepare_vacuum(store, {snapshot.number for snapshot in kept})
        for path in going:
            store.delete(path)
    return VacuumPlan(
        deleted=delete,
        kept_snapshots=tuple(snapshot.number for snapshot in kept),
        n_bytes=sum(listed[path].size_bytes for path in going),
        n_too_young=sum(listed[path].changed >= limit for path in unneeded),
        paths={path: _REASONS[listed[path].location.kind] for path in going},
    )


def _kept(snapshots: list[Snapshot], n_complete: int) -> list[Snapshot]:
    complete = [snapshot.number for snapshot in snapshots if snapshot.complete]
    if not complete:
        return []
    return [snapshot for snapshot in snapshots if snapshot.number >= complete[-n_complete:][0]]


def _needed(
    store: Store, kept: list[Snapshot], snapshots: list[Snapshot], listed: Mapping[str, Listed]
) -> set[str]:
    """Paths that kept snapshots and resumable parts need."""
    live = {part.part_id: part for snapshot in kept for part in live_parts(store, snapshot)}
    outside = _outside(store, live, listed)
    once_live = {
        part.part_id
        for snapshot in snapshots
        if snapshot not in kept
        for part in _parts_or_none(store, snapshot)
    }
    current = {kept[-1].fingerprint, *_written_last(listed)}
    settled = _settled(snapshots, listed)
    resumable = [
        part
        for part in outside
        if part.fingerprint in current
        and part.part_id not in once_live
        and listed[layout.manifest(part.fingerprint, part.part_id)].changed
        >= settled.get(part.fingerprint, 0.0)
    ]
    parts = [*live.values(), *resumable]
    fingerprints = (
        current | {snapshot.fingerprint for snapshot in kept} | {part.fingerprint for part in parts}
    )
    runs = {snapshot.run_id for snapshot in kept} | {part.run_id for part in parts}
    ids = {part.part_id for part in parts}
    indexed = [run for fingerprint in fingerprints for run in used_runs(store, fingerprint, ids)]
    return {
        *(layout.manifest(part.fingerprint, part.part_id) for part in parts),
        *(file.path for part in parts for file in part.data_files),
        *(part.rejects_path for part in parts if part.rejects_path),
        *(layout.snapshot(snapshot.number) for snapshot in kept),
        *(snapshot.file_list for snapshot in kept),
        *(layout.generation(fingerprint) for fingerprint in fingerprints),
        *(f"{run}.{suffix}" for run in indexed for suffix in ("arrow", "json")),
        *(
            path
            for path, found in listed.items()
            if found.location.kind == "run record" and found.location.run_id in runs
        ),
    }


def _settled(snapshots: list[Snapshot], listed: Mapping[str, Listed]) -> dict[str, float]:
    """When a run last completed, by fingerprint. It took all parts that fitted its listing: what is
    older and was left out is of shards that have changed. Not so a compaction, which has no
    record of an attempt."""
    attempts = {
        found.location.run_id for found in listed.values() if layout.is_attempt(found.location)
    }
    return {
        snapshot.fingerprint: found.changed
        for snapshot in snapshots
        if snapshot.complete
        and snapshot.run_id in attempts
        and (found := listed.get(layout.snapshot(snapshot.number)))
    }


def _outside(
    store: Store, live: Mapping[str, Manifest], listed: Mapping[str, Listed]
) -> list[Manifest]:
    """Manifests in storage that no kept snapshot names."""
    names = [
        path
        for path, found in listed.items()
        if found.location.kind == "manifest" and found.location.part_id not in live
    ]
    return [Manifest.from_json(data, path) for path, data in store.read_many(names)]


def _parts_or_none(store: Store, snapshot: Snapshot) -> list[Manifest]:
    """Parts of a dropped snapshot; none where an interrupted vacuum took its file list already."""
    try:
        return live_parts(store, snapshot)
    except FileNotFoundError:
        return []


def _written_last(listed: Mapping[str, Listed]) -> set[str]:
    """The fingerprint with the youngest manifest: of a run that may be unfinished. Several where a
    clock ticks in seconds."""
    written = [
        (found.changed, found.location.fingerprint)
        for found in listed.values()
        if found.location.kind == "manifest" and found.location.fingerprint
    ]
    newest = max((changed for changed, _ in written), default=0.0)
    return {fingerprint for changed, fingerprint in written if changed == newest}


def _lineage_of_kept_rows(
    store: Store, old: Mapping[str, layout.Location], needed: Iterable[str]
) -> set[str]:
    """Run records among `old` that rows of kept data files name: a part may have adopted the file
    of an earlier run."""
    records = {path: found.run_id for path, found in old.items() if found.kind == "run record"}
    if not records:
        return set()
    runs: set[str] = set()
    for path in needed:
        if (found := layout.locate(path)) and found.kind == "data":
            with store.open(path) as source:
                footer = json.loads(data_files.read_footer(source)[1] or b"{}")
            runs |= {footer.get("run_id"), *footer.get("run_ids", [])}
    return {path for path, run_id in records.items() if run_id in runs}


def _list(store: Store) -> Iterator[tuple[str, Listed]]:
    """Every object under the root that this package gave its name."""
    for path, size_bytes, changed in _walk(Path(store.root)) if store.local else _find(store):
        if location := layout.locate(path):
            yield path, Listed(location, size_bytes, changed)


def _find(store: Store) -> Iterator[tuple[str, int, float]]:
    found = retried(lambda: store.fs.find(store.root, detail=True), f"list {shown(store.uri)}")
    top = f"{store.root}/"
    for name, info in found.items():
        if name.startswith(top):
            yield name.removeprefix(top), int(info["size"]), store.changed_at(info)


def _walk(root: Path) -> Iterator[tuple[str, int, float]]:
    """Links are neither followed nor listed, so that nothing outside the root can be named."""
    for directory, _, names in os.walk(root, followlinks=False):
        for name in names:
            path = Path(directory, name)
            try:
                status = os.lstat(path)
            except FileNotFoundError:  # a temporary file of a run that is writing
                continue
            if stat.S_ISREG(status.st_mode):
                yield path.relative_to(root).as_posix(), status.st_size, status.st_mtime
