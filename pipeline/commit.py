"""The commit protocol: how a part's result, and then a snapshot of many, comes to exist exactly once.

    attempt ─► data files (create-only) ─► rejects (create-only) ─► manifest (create-only) ─► … ─► snapshot N+1

Every name is derived from content, every write is a create: whoever is second finds the first one's object, checks it
and adopts it. So a retry, a second attempt after a lost answer, and a race of two runs all end in the same objects.
Only `commit_snapshot` makes anything visible, and it is one create. Failure cases: docs/design.md.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import io
import json
from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import data_files
from pipeline.addresses import shown
from pipeline.errors import CommitConflict, OutputError
from pipeline.failpoints import failpoint
from pipeline.invariants import check_parts
from pipeline.lineage import DataFile, Generation, Manifest, Snapshot, content_hash, totals_of
from pipeline.storage import Store
from pipeline.write import parquet

SNAPSHOTS = "_meta/snapshots"
ROW_KEYS = ("doc_id", "chunk", "text_sha256", "source_record")
REJECT_KEYS = ("doc_id", "reason", "source_uri", "source_record")
"""Columns by which the rows of two attempts at one part are compared."""


def manifest_path(fingerprint: str, part_id: str) -> str:
    return f"_meta/manifests/{fingerprint}/{part_id}.json"


def publish_data_file(
    store: Store, part_id: str, folder: str, partition: dict[str, str | None], n_rows: int, data: bytes
) -> DataFile:
    """Create one data file, given encoded, or adopt the one that an earlier attempt at the same part created.

    Vectors of two attempts may differ in the last bits (other device, other batch): the first one stays. Raises
    OutputError when what is there belongs to another part.
    """
    path = "/".join(step for step in ("data", folder, f"part-{part_id}.parquet") if step)
    failpoint("before_data_put")
    path, data = _create_or_adopt(store, path, part_id, data, ROW_KEYS)
    failpoint("after_data_put")
    digest = hashlib.sha256(data).hexdigest()
    return DataFile(path=path, partition=partition, n_rows=n_rows, size_bytes=len(data), sha256=digest)


def publish_rejects(
    store: Store, run_id: str, part_id: str, table: pa.Table, metadata: dict[str, object]
) -> tuple[str, str]:
    """Create the dead letters of one part, or adopt them; returns path and SHA-256. Raises OutputError as above."""
    path = f"_meta/rejects/{run_id}/part-{part_id}.parquet"
    path, data = _create_or_adopt(store, path, part_id, parquet.encode(table, metadata), REJECT_KEYS)
    failpoint("after_rejects_put")
    return path, hashlib.sha256(data).hexdigest()


def _create_or_adopt(store: Store, path: str, part_id: str, data: bytes, keys: Sequence[str]) -> tuple[str, bytes]:
    """Path and bytes of the Parquet file that now holds the rows of `data`, which `keys` identify.

    Where an earlier attempt left other rows of the same part (a vector that was not finite only there, another
    release, pages that rotted), a manifest must not count them as its own: then the file is created beside it, under a
    name from its rows.
    The other file is never part of a snapshot, and vacuum removes it.
    """
    if store.put_if_absent(path, data):
        return path, data
    found, wanted = store.read(path), data_files.read_table(data, keys)
    try:
        n_rows, lineage = data_files.read_footer(found)
        owner = json.loads(lineage or b"{}").get("part_id")
    except (OutputError, ValueError, AttributeError):
        n_rows, owner = 0, None
    if owner != part_id:
        raise OutputError(
            f"{shown(store.uri)}/{path}: already there with {n_rows} rows of part {owner}, expected "
            f"{wanted.num_rows} rows of part {part_id}. Something else writes into this output: use another output.uri."
        )
    with contextlib.suppress(pa.ArrowException, OSError):  # damaged in the store: no attempt may adopt it
        if data_files.read_table(found, keys).equals(wanted):
            return path, found
    rows = content_hash([wanted[name].to_pylist() for name in keys], 16)
    if f"-{part_id}{rows}." in path:
        raise OutputError(f"{shown(store.uri)}/{path}: damaged; run `corpus-embed verify`")
    beside = path.replace(f"part-{part_id}.", f"part-{part_id}{rows}.")
    return _create_or_adopt(store, beside, part_id, data, keys)


def publish_manifest(store: Store, manifest: Manifest) -> Manifest:
    """Create the manifest of a finished part, or return the one that is already there."""
    path = manifest_path(manifest.fingerprint, manifest.part_id)
    if not store.put_if_absent(path, manifest.to_json()):
        manifest = Manifest.from_json(store.read(path), path)
    failpoint("after_manifest_put")
    return manifest


def load_manifests(store: Store, fingerprint: str, known: Iterable[Manifest] = ()) -> list[Manifest]:
    """All manifests of a fingerprint, read from storage; those in `known` are not fetched again."""
    have = {manifest.part_id: manifest for manifest in known if manifest.fingerprint == fingerprint}
    folder = f"_meta/manifests/{fingerprint}"
    names = [path for path in store.list(folder) if path.endswith(".json")]
    wanted = [path for path in names if path.rpartition("/")[2].removesuffix(".json") not in have]
    fetched = [Manifest.from_json(data, path) for path, data in store.read_many(wanted)]
    return [*have.values(), *fetched]


def publish_generation(store: Store, generation: Generation) -> Generation:
    """Pin the facts that all data of one fingerprint shares. Raises OutputError when they differ from what is there."""
    path = f"_meta/generations/{generation.fingerprint}.json"
    if store.put_if_absent(path, generation.to_json()):
        return generation
    found = Generation.from_json(store.read(path), path)
    if (found.dimension, found.arrow_schema) != (generation.dimension, generation.arrow_schema):
        raise OutputError(
            f"{shown(store.uri)}: this output holds vectors of dimension {found.dimension} under fingerprint "
            f"{found.fingerprint}, the model now gives {generation.dimension}. The model directory changed without "
            "changing its files' hashes, or the output was written by another program: use another output.uri."
        )
    return found


def load_generation(store: Store, fingerprint: str) -> Generation | None:
    path = f"_meta/generations/{fingerprint}.json"
    data = store.read_or_none(path)
    return None if data is None else Generation.from_json(data, path)


def snapshot_numbers(store: Store) -> list[int]:
    """Numbers of all snapshots, ascending."""
    names = [path.rpartition("/")[2].removesuffix(".json") for path in store.list(SNAPSHOTS)]
    return sorted(int(name) for name in names if name.isdigit())


def load_snapshot(store: Store, number: int | None = None) -> Snapshot | None:
    """Snapshot `number`, or the newest. None when there is none yet; raises OutputError for a number that is not kept."""
    numbers = snapshot_numbers(store)
    if number is not None and number not in numbers:
        kept = f"{numbers[0]} to {numbers[-1]}" if numbers else "none"
        raise OutputError(f"{shown(store.uri)}: no snapshot {number}; kept: {kept}")
    if not numbers:
        return None
    path = f"{SNAPSHOTS}/{number if number is not None else numbers[-1]:020d}.json"
    snapshot = Snapshot.from_json(store.read(path), path)
    if f"/{snapshot.number:020d}." not in path:
        raise OutputError(
            f"{shown(store.uri)}/{path}: says it is snapshot {snapshot.number}: damaged. Take another one."
        )
    return snapshot


def live_parts(store: Store, snapshot: Snapshot | None) -> list[Manifest]:
    """The manifests that a snapshot makes live, in the order of their ids."""
    if snapshot is None:
        return []
    manifests = data_files.read_text(store.read(snapshot.file_list), "manifest")["manifest"]
    return [Manifest.from_json(text.encode(), snapshot.file_list) for text in manifests]


def file_list(parts: Sequence[Manifest]) -> tuple[str, pa.Table]:
    """The immutable list of live parts that a snapshot names, one row a part: its path and what is in it.

    The path is a hash of the parts' ids and of the SHA-256 of their files. `paths` are for engines that read a list of files.
    """
    content = [[part.part_id, [file.sha256 for file in part.data_files]] for part in parts]
    table = pa.table({
        "part_id": pa.array([part.part_id for part in parts], pa.string()),
        "paths": pa.array([[file.path for file in part.data_files] for part in parts], pa.list_(pa.string())),
        "n_rows": pa.array([part.n_rows for part in parts], pa.int64()),
        "manifest": pa.array([part.model_dump_json() for part in parts], pa.string()),
    })  # fmt: skip
    return f"_meta/files/{content_hash(content, 64)}.parquet", table


def publish_file_list(store: Store, parts: Sequence[Manifest]) -> str:
    """Write the list of live parts; returns its path."""
    (path, table), sink = file_list(parts), io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    failpoint("before_file_list_put")
    store.put_if_absent(path, sink.getvalue())
    failpoint("after_file_list_put")
    return path


def commit_snapshot(
    store: Store, parts: Sequence[Manifest], *, run_id: str, fingerprint: str, parent: Snapshot | None, complete: bool,
    n_duplicate_ids: int | None = None, nominal_time: datetime.datetime | None = None,
) -> Snapshot:  # fmt: skip
    """Make `parts` the live content, on top of `parent`. The create of the snapshot object is the atomic point.

    Returns the head when it already says the same, or is this run's complete one. A snapshot that another attempt at
    this very run made in the meantime is built upon. Raises CommitConflict when a different run was first, OutputError
    when an invariant is broken.
    """
    check_parts(parts, fingerprint, complete)
    ordered = sorted(parts, key=lambda part: part.part_id)
    listed = publish_file_list(store, ordered)
    while True:
        said = (parent.fingerprint, parent.file_list, parent.complete or not complete) if parent else None
        if parent is not None and said == (fingerprint, listed, True):
            return parent
        # of one run, a snapshot with more parts is the later one: a slow attempt must not take its parts away again
        ahead = parent is not None and (parent.complete or (not complete and parent.n_parts >= len(ordered)))
        if parent is not None and parent.run_id == run_id and ahead:
            return parent
        snapshot = Snapshot(
            number=parent.number + 1 if parent else 1,
            parent=parent.number if parent else None,
            run_id=run_id,
            complete=complete,
            fingerprint=fingerprint,
            file_list=listed,
            n_duplicate_ids=n_duplicate_ids,
            nominal_time=nominal_time,
            **totals_of(ordered),
        )
        path = f"{SNAPSHOTS}/{snapshot.number:020d}.json"
        if store.put_if_absent(path, snapshot.to_json()):
            failpoint("after_snapshot_put")
            return snapshot
        parent = Snapshot.from_json(store.read(path), path)
        if parent.run_id != run_id:
            raise CommitConflict(
                f"{shown(store.uri)}: run {parent.run_id} committed snapshot {parent.number} while run {run_id} was under "
                "way. Nothing is lost: run the same command again; it keeps every finished part and plans on the new head."
            )
