"""What the records of a snapshot say about each other, and its dead letters about them: for
`verify`.

In: a snapshot with all that storage says about it. Out: findings. Each fact is held against another
record or against a hash, so that no field of a snapshot, a file list, a manifest or a generation
can change alone. Cost: a small read for each manifest, one for each file of dead letters.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator

import pyarrow as pa

from pipeline.output import dataset
from pipeline.output.snapshots import file_list
from pipeline.storage import data_files, layout
from pipeline.storage.lineage import Manifest, content_hash
from pipeline.tools.loaded_snapshot import Recorded
from pipeline.write.part import generation_of


def records(recorded: Recorded) -> Iterator[str]:
    """Snapshot, file list, manifests and generation agree."""
    snapshot, parts, generation, store = (
        recorded.snapshot,
        recorded.parts,
        recorded.generation,
        recorded.store,
    )
    columns = ["part_id", "paths", "n_rows"]  # of the column manifest, `parts` is what was read
    table = data_files.read_table(store.read(snapshot.file_list), columns)
    path, listing = file_list(parts)
    if path != snapshot.file_list or table != listing.select(columns):
        yield f"{snapshot.file_list}: its rows are not those that it was named after"
    if snapshot.parent != (snapshot.number - 1 or None):
        yield f"snapshot {snapshot.number} says parent = {snapshot.parent}"
    listed = {layout.manifest(part.fingerprint, part.part_id): part for part in parts}
    there = store.list(layout.manifests(snapshot.fingerprint))
    yield from (f"{path}: gone" for path in listed if path not in there)
    for path, data in store.read_many([path for path in listed if path in there]):
        if Manifest.from_json(data, path) != listed[path]:
            yield f"{path}: differs from the manifest in {snapshot.file_list}"
    if (
        content_hash(generation.identity, 16) != snapshot.fingerprint
        or generation.fingerprint != snapshot.fingerprint
    ):
        yield f"generation {snapshot.fingerprint}: its identity has another hash"
    wanted = generation_of(recorded.job, generation.dimension)
    if (generation.vector_precision, generation.partition_by) != (
        wanted.vector_precision,
        wanted.partition_by,
    ) or (dataset.arrow_schema(generation) != dataset.arrow_schema(wanted)):
        yield f"generation {snapshot.fingerprint}: its columns are not those of the spec of run {snapshot.run_id}"


def rejects(recorded: Recorded) -> Iterator[str]:
    """Every part's dead letters are there, of its part, as many and with the reasons that the
    manifest counts."""
    for part in recorded.parts:
        if part.rejects_path is None:
            if part.n_rejects:
                yield f"part {part.part_id}: {part.n_rejects} rejects and no file of them"
            continue
        data = recorded.store.read_or_none(part.rejects_path)
        if data is None:
            yield f"{part.rejects_path}: gone"
            continue
        if part.rejects_sha256 not in (None, hashlib.sha256(data).hexdigest()):
            yield f"{part.rejects_path}: its SHA-256 is not the one in the manifest"
        try:
            letters = data_files.read_text(data, "reason", "part_id")
        except (pa.ArrowException, OSError) as error:
            yield f"{part.rejects_path}: cannot be read: {error}"
            continue
        if set(letters["part_id"]) - {part.part_id}:
            yield f"{part.rejects_path}: holds rejects of another part"
        reasons = dict(Counter(letters["reason"]))
        if len(letters["reason"]) != part.n_rejects or reasons != part.reject_reasons:
            yield f"{part.rejects_path}: {reasons}, the manifest counts {part.n_rejects}: {part.reject_reasons}"
