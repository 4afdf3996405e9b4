"""The commit protocol: how the result of a part, and then a snapshot of many parts, comes to exist
exactly once.

    attempt ─► data files ─► rejects ─► manifest ─► … ─► file list ─► snapshot N+1

Every name is derived from content and every write is a create: the second writer of an object finds
the first one's, checks it and adopts it. So a retry, a second attempt after a lost answer, and a
race of two runs all end in the same objects. Only `commit_snapshot` makes anything visible, and it
is one create. Failure cases: docs/design.md.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import pyarrow as pa

from pipeline.errors import CommitConflict, OutputError
from pipeline.output.checks import check_presence, problems
from pipeline.output.file_lists import file_list
from pipeline.storage import data_files, layout
from pipeline.storage.failpoints import failpoint
from pipeline.storage.filesystems import reason
from pipeline.storage.lineage import Generation, Manifest, Snapshot
from pipeline.storage.store import Store
from pipeline.storage.stored_record import RESTORE

Number = TypeVar("Number", int, float)


def load_manifests(
    store: Store, fingerprint: str, known: Iterable[Manifest] = ()
) -> list[Manifest]:
    """All manifests of a fingerprint, read from storage; those in `known` are not fetched again."""
    by_id = {part.part_id: part for part in known if part.fingerprint == fingerprint}
    missing = {
        path: size_bytes
        for path, size_bytes in store.list(layout.manifests(fingerprint)).items()
        if (location := layout.locate(path)) and location.part_id not in by_id
    }
    fetched = [_manifest(store, path, data) for path, data in store.read_many(missing)]
    return [*by_id.values(), *fetched]


def _manifest(store: Store, path: str, data: bytes) -> Manifest:
    """The manifest at a path. Raises OutputError when it is damaged or that of another part."""
    remedy = f"{RESTORE[:-1]}, or delete it and run the job again: its part is embedded again."
    manifest = Manifest.from_json(data, f"{store.shown_uri}/{path}", remedy)
    if path != layout.manifest(manifest.fingerprint, manifest.part_id):
        raise OutputError(
            f"{store.shown_uri}/{path}: is the manifest of part {manifest.part_id} under another "
            "name: a copy, or damaged. Remove it, then run the same command again."
        )
    return manifest


def count_waiting_parts(store: Store, live: Iterable[Manifest]) -> int:
    """How many finished parts no snapshot has made live yet. Lists manifests and reads none."""
    locations = map(layout.locate, store.list(layout.MANIFESTS))
    finished = {location.part_id for location in locations if location}
    return len(finished - {part.part_id for part in live})


def load_generation(store: Store, fingerprint: str) -> Generation | None:
    path = layout.generation(fingerprint)
    data = store.read_or_none(path)
    if data is None:
        return None
    generation = Generation.from_json(data, f"{store.shown_uri}/{path}")
    if generation.fingerprint != fingerprint:
        raise OutputError(
            f"{store.shown_uri}/{path}: is the generation record of fingerprint "
            f"{generation.fingerprint}. Restore it from a backup."
        )
    return generation


def snapshot_numbers(store: Store) -> list[int]:
    """Numbers of all snapshots, ascending."""
    locations = (layout.locate(path) for path in store.list(layout.SNAPSHOTS))
    return sorted(
        location.number for location in locations if location and location.number is not None
    )


def load_snapshot(store: Store, number: int | None = None) -> Snapshot | None:
    """Snapshot `number`, or the newest one; None when the output has no snapshot.

    Raises OutputError for a number that is not kept."""
    numbers = snapshot_numbers(store)
    if number is not None and number not in numbers:
        kept = f"{numbers[0]} to {numbers[-1]}" if numbers else "none"
        raise OutputError(f"{store.shown_uri}: no snapshot {number}; kept: {kept}")
    if not numbers:
        return None
    path = layout.snapshot(number if number is not None else numbers[-1])
    remedy = f"{RESTORE[:-1]}, or delete it: the snapshot before it is then the newest."
    snapshot = Snapshot.from_json(store.read(path), f"{store.shown_uri}/{path}", remedy)
    if path != layout.snapshot(snapshot.number):
        raise OutputError(
            f"{store.shown_uri}/{path}: is damaged: it says that it is snapshot "
            f"{snapshot.number}. Use another snapshot."
        )
    return snapshot


def live_parts(store: Store, snapshot: Snapshot | None) -> list[Manifest]:
    """The manifests that a snapshot makes live, in the order of their ids."""
    if snapshot is None:
        return []
    name = f"{store.shown_uri}/{snapshot.file_list}"
    try:
        texts = data_files.read_text(store.read(snapshot.file_list), "manifest")["manifest"]
    except FileNotFoundError:
        problem = "is gone"
    except (OSError, pa.ArrowException) as error:
        problem = f"cannot be read: {reason(error)}"
    else:
        return [Manifest.from_json(text.encode(), name) for text in texts]
    raise OutputError(
        f"{name}: the file list of snapshot {snapshot.number} {problem}. Restore it from a backup, "
        "or name another snapshot; without it, remove the snapshot and run the job again: parts "
        "that have a manifest are not embedded again."
    )


def create_file_list(store: Store, parts: Sequence[Manifest]) -> str:
    """Write the list of live parts; returns its path."""
    path, table = file_list(parts)
    failpoint("before_file_list_put")
    store.put_if_absent(path, data_files.encoded(table))
    failpoint("after_file_list_put")
    return path


def commit_snapshot(
    store: Store,
    parts: Sequence[Manifest],
    *,
    run_id: str,
    fingerprint: str,
    parent: Snapshot | None,
    complete: bool,
    n_duplicate_ids: int | None = None,
    nominal_time: datetime.datetime | None = None,
) -> Snapshot:
    """Make `parts` the live content, on top of `parent`. The create of the snapshot object is the
    atomic point.

    Returns the head when it already has this content, or is the complete snapshot of this run. A
    snapshot that another attempt at the same run made in the meantime becomes the parent. Raises
    CommitConflict when a different run was first or a file of a part is gone, OutputError when the
    parts have a problem.
    """
    if problem := next(problems(parts, fingerprint, complete), None):
        raise OutputError(
            f"{store.shown_uri}: nothing was committed: {problem}. Run `corpus-embed verify`; if "
            "it finds nothing wrong with the head, report this with the output's metadata."
        )
    ordered = sorted(parts, key=lambda part: part.part_id)
    list_path = create_file_list(store, ordered)
    while True:
        if (
            parent is not None
            and (parent.fingerprint, parent.file_list) == (fingerprint, list_path)
            and (parent.complete or not complete)
        ):
            return parent
        # of one run, a snapshot with more parts is the later one: a slow attempt must not take its
        # parts away again
        ahead = parent is not None and (
            parent.complete or (not complete and parent.n_parts >= len(ordered))
        )
        if (
            parent is not None
            and parent.run_id == run_id
            and ahead
            and not (complete and _is_outdated(store, parent, ordered))
        ):
            return parent
        check_presence(store, ordered)
        snapshot = Snapshot(
            number=parent.number + 1 if parent else 1,
            parent=parent.number if parent else None,
            run_id=run_id,
            complete=complete,
            fingerprint=fingerprint,
            file_list=list_path,
            n_duplicate_ids=n_duplicate_ids,
            nominal_time=nominal_time,
            **totals_of(ordered),
        )
        path = layout.snapshot(snapshot.number)
        if store.put_if_absent(path, snapshot.to_json()):
            failpoint("after_snapshot_put")
            return snapshot
        parent = Snapshot.from_json(store.read(path), path)
        if parent.run_id != run_id:
            raise CommitConflict(
                f"{store.shown_uri}: run {parent.run_id} committed snapshot {parent.number} "
                f"while run {run_id} was under way. Nothing is lost: run the same command again; "
                "it keeps every finished part and plans on the new head."
            )


def _is_outdated(store: Store, parent: Snapshot, parts: Sequence[Manifest]) -> bool:
    """Whether `parent` lists a part of `parts` with other files: they were lost, and made again."""
    files = {part.part_id: part.data_files for part in live_parts(store, parent)}
    return any(files.get(part.part_id, part.data_files) != part.data_files for part in parts)


def added_up(values: Iterable[Mapping[str, Number]]) -> dict[str, Number]:
    """The sum of some mappings, key by key."""
    total: Counter[str] = Counter()
    for value in values:
        total.update(value)
    return dict(total)


def totals_of(parts: Sequence[Manifest]) -> dict[str, Any]:
    """The fields of a Snapshot that sum up its parts."""
    reasons = added_up(part.reject_reasons for part in parts)
    files = [file for part in parts for file in part.data_files]
    summed = ("n_records", "n_documents", "n_rejects", "n_rows", "n_tokens")
    return {
        "n_parts": len(parts),
        "n_files": len(files),
        **{name: sum(getattr(part, name) for part in parts) for name in summed},
        "size_bytes": sum(file.size_bytes for file in files),
        "reject_reasons": dict(sorted(reasons.items())),
    }
