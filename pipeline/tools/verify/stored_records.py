"""What the records of a snapshot say about each other, and the files of rejects about them.

In: a loaded snapshot. Out: findings. Each fact is compared with another record or with a hash, so
that no field of a snapshot, a file list, a manifest or a generation can change alone. Cost: a small
read for each manifest and for each file of rejects.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator

import pyarrow as pa

from pipeline.errors import OutputError
from pipeline.output import dataset
from pipeline.output.damage import damage_problem, damaged_shards, named
from pipeline.output.file_lists import file_list, file_list_path
from pipeline.output.run_folder import read_planned_split_ids
from pipeline.output.snapshots import totals_of
from pipeline.storage import data_files, layout
from pipeline.storage.lineage import Manifest, by_split, content_hash
from pipeline.storage.words import counted
from pipeline.tools.loaded_snapshot import LoadedSnapshot
from pipeline.write.part import generation_of


def record_findings(loaded: LoadedSnapshot) -> Iterator[str]:
    """Snapshot, file list, manifests and generation agree."""
    snapshot = loaded.snapshot
    if snapshot.parent != (snapshot.number - 1 or None):
        yield f"snapshot {snapshot.number} says parent = {snapshot.parent}"
    yield from _file_list_findings(loaded)
    yield from _manifest_findings(loaded)
    yield from _generation_findings(loaded)


def _file_list_findings(loaded: LoadedSnapshot) -> Iterator[str]:
    stored_path = loaded.snapshot.file_list
    columns = ["part_id", "paths", "n_rows"]  # the other one, manifest, became loaded.manifests
    try:
        stored = data_files.read_table(loaded.store.read(stored_path), columns)
    except (pa.ArrowException, OSError) as error:
        yield f"{stored_path}: cannot be read: {error}"
        return
    _, table = file_list(loaded.manifests)
    paths = [file_list_path(loaded.manifests, with_siblings=new) for new in (True, False)]
    if stored_path not in paths or stored != table.select(columns):
        yield f"{stored_path}: its rows do not have the hash in its name"


def _manifest_findings(loaded: LoadedSnapshot) -> Iterator[str]:
    snapshot = loaded.snapshot
    listed = {
        layout.manifest(manifest.fingerprint, manifest.part_id): manifest
        for manifest in loaded.manifests
    }
    stored = loaded.store.list(layout.manifests(snapshot.fingerprint))
    yield from (f"{path}: missing" for path in listed if path not in stored)
    present = {path: stored[path] for path in listed if path in stored}
    for path, data in loaded.store.read_many(present):
        try:
            is_same = Manifest.from_json(data, path) == listed[path]
        except OutputError as error:
            yield str(error)
        else:
            if not is_same:
                yield f"{path}: differs from the manifest in {snapshot.file_list}"


def _generation_findings(loaded: LoadedSnapshot) -> Iterator[str]:
    snapshot = loaded.snapshot
    generation = loaded.generation
    fingerprints = {content_hash(generation.identity, 16), generation.fingerprint}
    if fingerprints != {snapshot.fingerprint}:
        yield f"generation {snapshot.fingerprint}: its identity has another hash"
    expected = generation_of(loaded.job, generation.dimension)
    if (
        generation.vector_precision != expected.vector_precision
        or generation.partition_by != expected.partition_by
        or dataset.arrow_schema(generation) != dataset.arrow_schema(expected)
    ):
        yield (
            f"generation {snapshot.fingerprint}: its columns are not those of the spec of run "
            f"{snapshot.run_id}"
        )


def total_findings(loaded: LoadedSnapshot) -> Iterator[str]:
    """The totals of the snapshot are the sums over its parts."""
    snapshot = loaded.snapshot
    for name, total in totals_of(loaded.manifests).items():
        if total != getattr(snapshot, name):
            yield (
                f"snapshot {snapshot.number} says {name} = {getattr(snapshot, name)}, its parts "
                f"have {total}"
            )


def damage_findings(loaded: LoadedSnapshot) -> Iterator[str]:
    """More of the input could not be read than the spec of the run allows."""
    shards = {span.shard for manifest in loaded.manifests for span in manifest.split.spans}
    input_bytes = sum(shard.size_bytes for shard in shards)
    limit = loaded.spec.runtime.max_damaged_fraction
    problem = damage_problem(damaged_shards(loaded.manifests), len(shards), input_bytes, limit)
    if problem:
        yield problem.removesuffix(".")


def damage_summary(loaded: LoadedSnapshot) -> str:
    """Which shards are damaged where the run was allowed to go on."""
    damaged = damaged_shards(loaded.manifests)
    if not damaged:
        return "every shard could be read to its end"
    return f"{counted(len(damaged), 'damaged shard')}, as few as the spec allows: {named(damaged)}"


def plan_findings(loaded: LoadedSnapshot) -> Iterator[str]:
    """A complete snapshot has parts of every split that its run planned."""
    if not loaded.snapshot.complete:
        return
    run_id = loaded.snapshot.run_id
    path = layout.run_plan(run_id)
    try:
        planned = read_planned_split_ids(loaded.store, run_id)
    except (pa.ArrowException, OSError) as error:
        yield f"{path}: cannot be read: {error}"
        return
    if planned is None:
        yield f"{path}: missing, so the plan of the run cannot be compared"
        return
    for split_id in sorted(planned - by_split(loaded.manifests).keys()):
        yield f"split {split_id}: planned by run {run_id}, but no part of it is in the snapshot"


def reject_findings(loaded: LoadedSnapshot) -> Iterator[str]:
    """Every part with rejects has a file of them, whose hash, number and reasons are those of the
    manifest."""
    for manifest in loaded.manifests:
        path = manifest.rejects_path
        if path is not None:
            data = loaded.store.read_or_none(path)
            problems = ["missing"] if data is None else _reject_problems(manifest, data)
            yield from (f"{path}: {problem}" for problem in problems)
        elif manifest.n_rejects:
            yield f"part {manifest.part_id}: {manifest.n_rejects} rejects, but no file of them"


def _reject_problems(manifest: Manifest, data: bytes) -> Iterator[str]:
    if manifest.rejects_sha256 not in (None, hashlib.sha256(data).hexdigest()):
        yield "its SHA-256 is not the one in the manifest"
    try:
        rejects = data_files.read_text(data, "reason", "part_id")
    except (pa.ArrowException, OSError) as error:
        yield f"cannot be read: {error}"
        return
    if set(rejects["part_id"]) - {manifest.part_id}:
        yield "holds rejects of another part"
    reasons = dict(Counter(rejects["reason"]))
    if sum(reasons.values()) != manifest.n_rejects or reasons != manifest.reject_reasons:
        yield (
            f"holds {reasons}, the manifest counts {manifest.n_rejects}: {manifest.reject_reasons}"
        )
