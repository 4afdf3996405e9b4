"""Creating the objects of one part, each exactly once: data files, rejects, manifest, and the generation they share.

    attempt ─► data files (create-only) ─► rejects (create-only) ─► manifest (create-only)

Every name is derived from content, every write is a create: whoever is second finds the first one's object, checks it
and adopts it. So a retry, a second attempt after a lost answer, and a race of two runs all end in the same objects.
Failure cases: docs/design.md.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence

import pyarrow as pa

from pipeline.errors import OutputError
from pipeline.storage import data_files, layout
from pipeline.storage.addresses import shown
from pipeline.storage.failpoints import failpoint
from pipeline.storage.lineage import DataFile, Generation, Manifest, content_hash
from pipeline.storage.store import Store
from pipeline.write import parquet

ROW_KEYS = ("doc_id", "chunk", "text_sha256", "source_record")
REJECT_KEYS = ("doc_id", "reason", "source_uri", "source_record")
"""Columns by which the rows of two attempts at one part are compared."""


def create_data_file(
    store: Store,
    part_id: str,
    folder: str,
    partition: dict[str, str | None],
    n_rows: int,
    data: bytes,
) -> DataFile:
    """Create one data file, given encoded, or adopt the one that an earlier attempt at the same part created.

    Vectors of two attempts may differ in the last bits (other device, other batch): the first one stays. Raises
    OutputError when what is there belongs to another part.
    """
    path = layout.data_file(folder, part_id)
    failpoint("before_data_put")
    path, data = _create_or_adopt(store, path, part_id, data, ROW_KEYS)
    failpoint("after_data_put")
    digest = hashlib.sha256(data).hexdigest()
    return DataFile(
        path=path, partition=partition, n_rows=n_rows, size_bytes=len(data), sha256=digest
    )


def create_rejects(
    store: Store, run_id: str, part_id: str, table: pa.Table, metadata: dict[str, object]
) -> tuple[str, str]:
    """Create the dead letters of one part, or adopt them; returns path and SHA-256. Raises OutputError as above."""
    path = layout.rejects(run_id, part_id)
    path, data = _create_or_adopt(
        store, path, part_id, parquet.encode(table, metadata), REJECT_KEYS
    )
    failpoint("after_rejects_put")
    return path, hashlib.sha256(data).hexdigest()


def _create_or_adopt(
    store: Store, path: str, part_id: str, data: bytes, keys: Sequence[str]
) -> tuple[str, bytes]:
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
        owner = lineage.get("part_id")
    except OutputError:
        n_rows, owner = 0, None
    if owner != part_id:
        raise OutputError(
            f"{shown(store.uri)}/{path}: already there with {n_rows} rows of part {owner}, expected "
            f"{wanted.num_rows} rows of part {part_id}. Something else writes into this output: use another output.uri."
        )
    with contextlib.suppress(
        pa.ArrowException, OSError
    ):  # damaged in the store: no attempt may adopt it
        if data_files.read_table(found, keys).equals(wanted):
            return path, found
    rows = content_hash([wanted[name].to_pylist() for name in keys], 16)
    if f"-{part_id}{rows}." in path:
        raise OutputError(f"{shown(store.uri)}/{path}: damaged; run `corpus-embed verify`")
    sibling = layout.sibling(path, part_id, rows)
    return _create_or_adopt(store, sibling, part_id, data, keys)


def create_manifest(store: Store, manifest: Manifest) -> Manifest:
    """Create the manifest of a finished part, or return the one that is already there."""
    path = layout.manifest(manifest.fingerprint, manifest.part_id)
    if not store.put_if_absent(path, manifest.to_json()):
        manifest = Manifest.from_json(store.read(path), path)
    failpoint("after_manifest_put")
    return manifest


def create_generation(store: Store, generation: Generation) -> Generation:
    """Pin the facts that all data of one fingerprint shares. Raises OutputError when they differ from what is there."""
    path = layout.generation(generation.fingerprint)
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
