"""Which objects of an output are needed: by a kept snapshot, by a resume, or by work under way.

In: the objects of an output and its snapshots. Out: the paths that `vacuum` must leave, whatever
their age. Needed are everything that kept snapshots name; what an unfinished run could resume from
(parts and files of the head's fingerprint, or of the one that was written to last, which no
snapshot has named and which are younger than its last complete run); and, while a run, a compaction
or a publication is alive (`pipeline/output/work.py`), all that it could adopt: everything under its
fingerprint, files without a manifest, file lists, and for a publication all snapshots. Cost: a
small read for each manifest that a run could take, one footer for each file without a manifest, and
one for each kept data file if there are old run records to judge.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from pipeline.errors import OutputError
from pipeline.output.id_index import used_id_segments
from pipeline.output.snapshots import live_parts
from pipeline.output.text_index import used_segments
from pipeline.storage import data_files, layout
from pipeline.storage.lineage import Manifest, Snapshot
from pipeline.storage.store import Store
from pipeline.tools.living_work import Work
from pipeline.tools.stored_objects import Objects, of_kind

_UNNAMED = ("data", "rejects", "file list", "run record", "temporary")
"""Kinds of objects that work under way may have created without anything naming them yet."""


class Content(NamedTuple):
    """A snapshot with its parts; None where they cannot be read. is_gone: its file list or a data
    file does not exist any more."""

    snapshot: Snapshot
    parts: list[Manifest] | None
    is_gone: bool


def contents(store: Store, snapshots: Iterable[Snapshot], objects: Objects) -> Iterator[Content]:
    """Snapshots with what the listing and their file lists say about them. A manifest that several
    of them list is one object in memory."""
    known: dict[str, Manifest] = {}
    for snapshot in snapshots:
        if snapshot.file_list not in objects:
            yield Content(snapshot, None, is_gone=True)
            continue
        try:
            parts = [_known(known, part) for part in live_parts(store, snapshot)]
        except OutputError:
            yield Content(snapshot, None, is_gone=False)
            continue
        is_gone = any(file.path not in objects for part in parts for file in part.data_files)
        yield Content(snapshot, None if is_gone else parts, is_gone)


def _known(known: dict[str, Manifest], part: Manifest) -> Manifest:
    same = known.setdefault(part.part_id, part)
    return same if same.data_files == part.data_files else part


def needed_paths(
    store: Store,
    kept: Sequence[Content],
    dropped: Sequence[Content],
    objects: Objects,
    work: Work,
) -> set[str]:
    """Paths that kept snapshots, resumable parts and living work need."""
    snapshots = [content.snapshot for content in kept]
    live = {part.part_id: part for content in kept for part in content.parts or ()}
    once_live = {part.part_id for content in dropped for part in content.parts or ()}
    current = {snapshots[-1].fingerprint, *_last_written_fingerprints(objects)}
    settled_at = _settled_at([content.snapshot for content in (*dropped, *kept)], objects)

    def is_resumable(fingerprint: str | None, changed_at: float) -> bool:
        return fingerprint in current and changed_at >= settled_at.get(fingerprint or "", 0.0)

    taken = {
        path: item.size_bytes
        for path, item in of_kind(objects, "manifest").items()
        if item.location.part_id not in live
        and (
            item.location.fingerprint in work.fingerprints
            or (
                item.location.part_id not in once_live
                and is_resumable(item.location.fingerprint, item.changed_at)
            )
        )
    }
    unnamed = [Manifest.from_json(data, path) for path, data in store.read_many(taken)]
    manifests = [*live.values(), *unnamed]
    records: list[Snapshot | Manifest] = [*snapshots, *manifests]
    fingerprints = current | work.fingerprints | {record.fingerprint for record in records}
    run_ids = {record.run_id for record in records}
    part_ids = {manifest.part_id for manifest in manifests}
    needed = {
        *(layout.manifest(manifest.fingerprint, manifest.part_id) for manifest in manifests),
        *(file.path for manifest in manifests for file in manifest.data_files),
        *(manifest.rejects_path for manifest in manifests if manifest.rejects_path),
        *(layout.snapshot(snapshot.number) for snapshot in snapshots),
        *(snapshot.file_list for snapshot in snapshots),
        *work.paths,
        layout.CURRENT,
        *_newest_states(objects),
    }
    for fingerprint in fingerprints:
        needed.add(layout.generation(fingerprint))
        if fingerprint in work.fingerprints:
            needed.update(_of_fingerprint(objects, fingerprint))
            continue
        needed.update(used_id_segments(store, fingerprint, manifests))
        for segment in used_segments(store, fingerprint, part_ids):
            needed |= {f"{segment}.arrow", f"{segment}.json"}
    run_records = of_kind(objects, "run record").items()
    needed.update(path for path, item in run_records if item.location.run_id in run_ids)
    if work.is_any:
        needed.update(path for path, item in objects.items() if item.location.kind in _UNNAMED)
        return needed - _only_dropped(dropped, kept, part_ids)
    for path, lineage in _orphans(store, objects, needed):
        if is_resumable(lineage.get("fingerprint"), objects[path].changed_at):
            fingerprint, part_id = lineage["fingerprint"], str(lineage.get("part_id"))
            if layout.manifest(fingerprint, part_id) not in objects:
                needed.add(path)
    return needed


def _only_dropped(
    dropped: Sequence[Content], kept: Sequence[Content], needed_ids: set[str]
) -> set[str]:
    """What only dropped snapshots name and no work could take, since it is of another fingerprint:
    their file lists, and the files of their parts."""
    parts = [part for content in dropped for part in content.parts or ()]
    unneeded = [part for part in parts if part.part_id not in needed_ids]
    kept_lists = {content.snapshot.file_list for content in kept}
    return {
        *({content.snapshot.file_list for content in dropped} - kept_lists),
        *(file.path for part in unneeded for file in part.data_files),
        *(part.rejects_path for part in unneeded if part.rejects_path),
    }


def _orphans(
    store: Store, objects: Objects, needed: set[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(path, lineage in its footer) of files that no needed manifest names; a damaged one, which no
    attempt adopts, is left out."""
    manifest_ids = {item.location.part_id for item in of_kind(objects, "manifest").values()}
    paths = [
        path
        for path, item in objects.items()
        if item.location.kind in ("data", "rejects")
        and path not in needed
        and item.location.part_id not in manifest_ids
    ]

    def lineage_of(path: str) -> dict[str, Any] | None:
        try:
            return data_files.read_lineage(store, path)
        except (OutputError, FileNotFoundError):
            return None

    with ThreadPoolExecutor(max_workers=16) as pool:
        for path, lineage in zip(paths, pool.map(lineage_of, paths), strict=True):
            if lineage:
                yield path, lineage


def records_of_kept_rows(store: Store, old: Objects, needed: Iterable[str]) -> list[str]:
    """Run records among `old` that rows of kept data files name: a part may have adopted the file
    of an earlier run."""
    records = of_kind(old, "run record")
    run_ids: set[str | None] = set()
    for path in needed if records else ():
        if (location := layout.locate(path)) and location.kind == "data":
            lineage = data_files.read_lineage(store, path)
            run_ids |= {lineage.get("run_id"), *lineage.get("run_ids", [])}
    return [path for path, item in records.items() if item.location.run_id in run_ids]


def _newest_states(objects: Objects) -> set[str]:
    """The last recorded state of each published table."""
    newest: dict[str | None, str] = {}
    for path, item in sorted(of_kind(objects, "table").items()):
        newest[item.location.name] = path
    return set(newest.values())


def _of_fingerprint(objects: Objects, fingerprint: str) -> Iterator[str]:
    """Index segments and the like of a fingerprint. Manifests are judged one by one."""
    for path, item in objects.items():
        if item.location.fingerprint == fingerprint and item.location.kind in ("index", "ids"):
            yield path


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


def _last_written_fingerprints(objects: Objects) -> set[str]:
    """The fingerprint of the youngest manifest, whose run may be unfinished. Several where a clock
    ticks in seconds."""
    manifests = of_kind(objects, "manifest").values()
    newest = max((item.changed_at for item in manifests), default=0.0)
    written = (item.location.fingerprint for item in manifests if item.changed_at == newest)
    return {fingerprint for fingerprint in written if fingerprint}
