"""What an output no longer needs: listings and kept snapshots in, a `VacuumPlan` out; with `delete` it is carried out.

Kept is everything that these need: the newest `keep_snapshots` complete snapshots and every snapshot after the oldest of
them; parts of the head's fingerprint, or of the one that was written to last, that no snapshot has named yet and that
are younger than its last complete run (an unfinished run resumes from them); and whatever is younger than `older_than`
by the store's own clock. The rest of what this package writes goes: dropped snapshots and their file lists, parts that
only they name (manifest, data files, rejects), parts of a given-up fingerprint, parts that the last complete run had no
use for, data files and rejects without a manifest, run records and generations that no kept row names, probes, temporary
files, unfinished multipart uploads. Anything else under the root is not ours and is never touched.

Order of deletion: manifests first, then what they name, snapshots last. A vacuum that dies is finished by the next one,
and a plan made meanwhile never counts a part as done whose files are gone. Do not vacuum with `delete` while a run on
the same output is under way: it may be about to adopt an old orphan.
Cost: one listing, one small read per manifest outside the kept snapshots; one footer per kept data file, only where a
run record is to be judged.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import commit, data_files, lake, uploads
from pipeline.addresses import shown
from pipeline.errors import OutputError
from pipeline.lineage import Manifest, Snapshot
from pipeline.retry import retried
from pipeline.storage import Store
from pipeline.text_index import used_runs


class _Kind(NamedTuple):
    """One sort of object that this package writes, and why it may go."""

    pattern: re.Pattern[str]
    reason: str


_KINDS = {
    name: _Kind(re.compile(pattern), reason)
    for name, pattern, reason in (
        ("manifest", r"_meta/manifests/([0-9a-f]+)/([0-9a-f]+)\.json", "a part that no kept snapshot names"),
        ("data", r"data/(?:[^/]+/)*part-([0-9a-f]+)\.parquet", "a data file that no kept part names"),
        ("rejects", r"_meta/rejects/([0-9a-f]+)/part-([0-9a-f]+)\.parquet", "rejects that no kept part names"),
        ("snapshot", r"_meta/snapshots/(\d{20})\.json", "older than the kept snapshots"),
        ("file list", r"_meta/files/([0-9a-f]{64})\.parquet", "no kept snapshot names it"),
        (
            "index",
            r"_meta/index/[0-9a-f]+/[0-9a-f]+\.(?:arrow|json)",
            "a larger one covers its parts, or they are gone",
        ),
        ("generation", r"_meta/generations/([0-9a-f]+)\.json", "nothing kept has its fingerprint"),
        ("run record", r"_meta/runs/([0-9a-f]+)/.+", "nothing kept is from this run"),
        ("lease", r"_meta/leases/\d{20}/[^/]+", "of a refresh that ended or died"),
        ("probe", r"_meta/probes/[0-9a-f]+", "left behind by a check for conditional writes"),
        ("temporary", r"_meta/tmp/[^/]+", "left behind by a write that was killed"),
    )
}
"""Every name this package gives, in the order of deletion. What matches none of them is not ours."""


class Listed(NamedTuple):
    """One object: bytes, and when it was last changed, in seconds since 1970 by the store's clock."""

    size_bytes: int
    changed: float


@dataclasses.dataclass(frozen=True)
class VacuumPlan:
    """What is to go (or went, when `deleted`): reason by relative path, and unfinished uploads as "key upload-id"."""

    deleted: bool
    kept_snapshots: tuple[int, ...]
    n_bytes: int
    n_too_young: int
    paths: dict[str, str]
    uploads: tuple[str, ...]


def vacuum(
    store_uri: str,
    storage_options: Mapping[str, Any] | None,
    *,
    keep_snapshots: int = 2,
    older_than: datetime.timedelta = datetime.timedelta(days=1),
    delete: bool = False,
) -> VacuumPlan:
    """Find what is not needed any more; remove it only with `delete`.

    Writes (and removes) one probe object to learn the time by the store's clock. Raises OutputError when no snapshot is
    complete or a kept record is broken, StorageError when the store refuses.
    """
    store = Store(store_uri, storage_options)
    if keep_snapshots < 1:
        raise OutputError(f"keep_snapshots is {keep_snapshots}: at least the newest complete snapshot is kept")
    limit = store.time() - older_than.total_seconds()
    # listed before snapshots are read: a snapshot made in between names nothing that could be judged without it
    listed = {path: found for path, found in _list(store).items() if _kind(path)}
    found_snapshots = (commit.load_snapshot(store, number) for number in commit.snapshot_numbers(store))
    snapshots = [snapshot for snapshot in found_snapshots if snapshot]
    kept = _kept(snapshots, keep_snapshots)
    if not kept:
        raise OutputError(f"{shown(store.uri)}: no complete snapshot there, so nothing can be told from nothing needed")
    needed = _needed(store, kept, snapshots, listed)
    unneeded = [path for path in listed if path not in needed]
    old = {path for path in unneeded if listed[path].changed < limit}
    old -= _lineage_of_kept_rows(store, old, needed)
    order = list(_KINDS)
    going = sorted(old, key=lambda path: (order.index(_kind(path)), path))
    unfinished = list(uploads.stale(store, limit))
    if delete:
        lake.prepare_vacuum(store, {snapshot.number for snapshot in kept})
        for path in going:
            store.delete(path)
        for key, upload in unfinished:
            uploads.abort(store, key, upload)
    return VacuumPlan(
        deleted=delete,
        kept_snapshots=tuple(snapshot.number for snapshot in kept),
        n_bytes=sum(listed[path].size_bytes for path in going),
        n_too_young=sum(listed[path].changed >= limit for path in unneeded),
        paths={path: _KINDS[_kind(path)].reason for path in going},
        uploads=tuple(f"{key} {upload}" for key, upload in unfinished),
    )


def _kind(path: str) -> str:
    """Key of _KINDS, or "" for a name that this package does not give."""
    return next((name for name, kind in _KINDS.items() if kind.pattern.fullmatch(path)), "")


def _kept(snapshots: list[Snapshot], n_complete: int) -> list[Snapshot]:
    complete = [snapshot.number for snapshot in snapshots if snapshot.complete]
    if not complete:
        return []
    return [snapshot for snapshot in snapshots if snapshot.number >= complete[-n_complete:][0]]


def _needed(store: Store, kept: list[Snapshot], snapshots: list[Snapshot], listed: Mapping[str, Listed]) -> set[str]:
    """Paths that kept snapshots and resumable parts need."""
    live = {part.part_id: part for snapshot in kept for part in commit.live_parts(store, snapshot)}
    outside = _outside(store, live, listed)
    once_live = {
        part.part_id for snapshot in snapshots if snapshot not in kept for part in _parts_or_none(store, snapshot)
    }
    current = {kept[-1].fingerprint, *_written_last(listed)}
    settled = _settled(snapshots, listed)
    resumable = [
        part for part in outside
        if part.fingerprint in current and part.part_id not in once_live
        and listed[commit.manifest_path(part.fingerprint, part.part_id)].changed >= settled.get(part.fingerprint, 0.0)
    ]  # fmt: skip
    parts = [*live.values(), *resumable]
    fingerprints = current | {snapshot.fingerprint for snapshot in kept} | {part.fingerprint for part in parts}
    runs = {snapshot.run_id for snapshot in kept} | {part.run_id for part in parts}
    ids = {part.part_id for part in parts}
    indexed = [run for fingerprint in fingerprints for run in used_runs(store, fingerprint, ids)]
    return {
        *(commit.manifest_path(part.fingerprint, part.part_id) for part in parts),
        *(file.path for part in parts for file in part.data_files),
        *(part.rejects_path for part in parts if part.rejects_path),
        *(f"{commit.SNAPSHOTS}/{snapshot.number:020d}.json" for snapshot in kept),
        *(snapshot.file_list for snapshot in kept),
        *(f"_meta/generations/{fingerprint}.json" for fingerprint in fingerprints),
        *(f"{run}.{suffix}" for run in indexed for suffix in ("arrow", "json")),
        *(path for path in listed if (found := _KINDS["run record"].pattern.fullmatch(path)) and found[1] in runs),
    }


def _settled(snapshots: list[Snapshot], listed: Mapping[str, Listed]) -> dict[str, float]:
    """When a run last completed, by fingerprint. It took all parts that fitted its listing: what is older and was left out
    is of shards that have changed. Not so a compaction, which has no record of an attempt."""
    attempts = {match[1] for path in listed if (match := re.fullmatch(r"_meta/runs/([0-9a-f]+)/attempt-.+", path))}
    return {
        snapshot.fingerprint: found.changed
        for snapshot in snapshots
        if snapshot.complete
        and snapshot.run_id in attempts
        and (found := listed.get(f"{commit.SNAPSHOTS}/{snapshot.number:020d}.json"))
    }


def _outside(store: Store, live: Mapping[str, Manifest], listed: Mapping[str, Listed]) -> list[Manifest]:
    """Manifests in storage that no kept snapshot names."""
    names = [path for path in listed if (found := _KINDS["manifest"].pattern.fullmatch(path)) and found[2] not in live]
    return [Manifest.from_json(data, path) for path, data in store.read_many(names)]


def _parts_or_none(store: Store, snapshot: Snapshot) -> list[Manifest]:
    """Parts of a dropped snapshot; none where an interrupted vacuum took its file list already."""
    try:
        return commit.live_parts(store, snapshot)
    except FileNotFoundError:
        return []


def _written_last(listed: Mapping[str, Listed]) -> set[str]:
    """The fingerprint with the youngest manifest: of a run that may be unfinished. Several where a clock ticks in seconds."""
    matches = ((path, _KINDS["manifest"].pattern.fullmatch(path)) for path in listed)
    changed = [(listed[path].changed, match[1]) for path, match in matches if match]
    newest = max((when for when, _ in changed), default=0.0)
    return {fingerprint for when, fingerprint in changed if when == newest}


def _lineage_of_kept_rows(store: Store, old: Iterable[str], needed: Iterable[str]) -> set[str]:
    """Run records among `old` that rows of kept data files name: a part may have adopted the file of an earlier run."""
    records = {path: match[1] for path in old if (match := _KINDS["run record"].pattern.fullmatch(path))}
    if not records:
        return set()
    runs: set[str] = set()
    for path in needed:
        if _KINDS["data"].pattern.fullmatch(path):
            with store.open(path) as source:
                footer = json.loads(data_files.read_footer(source)[1] or b"{}")
            runs |= {footer.get("run_id"), *footer.get("run_ids", [])}
    return {path for path, run_id in records.items() if run_id in runs}


def _list(store: Store) -> dict[str, Listed]:
    """Every object under the root. Local: links are neither followed nor listed, so nothing outside can be named."""
    if store.local:
        return dict(_walk(Path(store.root)))
    found = retried(lambda: store.fs.find(store.root, detail=True), f"list {shown(store.uri)}")
    top = f"{store.root}/"
    inside = {name.removeprefix(top): info for name, info in found.items() if name.startswith(top)}
    return {name: Listed(int(info["size"]), store.changed_at(info)) for name, info in inside.items()}


def _walk(root: Path) -> Iterator[tuple[str, Listed]]:
    for directory, _, names in os.walk(root, followlinks=False):
        for name in names:
            path = Path(directory, name)
            try:
                found = os.lstat(path)
            except FileNotFoundError:  # a temporary file of a run that is writing
                continue
            if stat.S_ISREG(found.st_mode):
                yield path.relative_to(root).as_posix(), Listed(found.st_size, found.st_mtime)
