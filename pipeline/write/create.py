"""Creating the objects of one part, each exactly once: data files, rejects and manifest, and the
generation that all parts share.

    attempt ─► data files (create-only) ─► rejects (create-only) ─► manifest (create-only)

Every name is derived from content and every write is a create: whoever comes second finds the
object of the first, checks it and adopts it. So a retry, a second attempt after a lost answer, and
a race of two runs all end in the same objects. Failure cases: docs/design.md. Cost: one request for
each object, and one more for each that exists already.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence

import pyarrow as pa

from pipeline.errors import OutputError
from pipeline.storage import data_files, layout
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
    """Create one data file from its bytes, or adopt that of an earlier attempt at the same part.

    Vectors of two attempts can differ in their last bits (another device, another batch): those of
    the first attempt stay. Raises OutputError when the existing file belongs to another part.
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
    """Create the rejects of one part, or adopt them; returns path and SHA-256. Raises OutputError
    as `create_data_file` does."""
    path = layout.rejects(run_id, part_id)
    data = parquet.encode(table, metadata)
    path, data = _create_or_adopt(store, path, part_id, data, REJECT_KEYS)
    failpoint("after_rejects_put")
    return path, hashlib.sha256(data).hexdigest()


def _create_or_adopt(
    store: Store, path: str, part_id: str, data: bytes, keys: Sequence[str]
) -> tuple[str, bytes]:
    """Path and bytes of the Parquet file that now holds the rows of `data`, which `keys` identify.

    An earlier attempt can have left other rows of the same part: it had a vector that was not
    finite, ran under another release, or its pages have rotted. A manifest must not count these as
    its own, so the new file is created under a sibling name derived from its rows. The old file is
    never part of a snapshot, and vacuum removes it.
    """
    if store.put_if_absent(path, data):
        return path, data
    stored = store.read(path)
    table = data_files.read_table(data, keys)
    try:
        n_rows, lineage = data_files.read_footer(stored)
        owner = lineage.get("part_id")
    except OutputError:  # cut or overwritten, or a file of somebody else
        n_rows = 0
        owner = part_id if _is_recorded(store, path, part_id, data) else None
    if owner != part_id:
        raise OutputError(
            f"{store.shown_uri}/{path}: already there with {n_rows} rows of part {owner}, "
            f"expected {table.num_rows} rows of part {part_id}. Another program writes into this "
            "output: use another output.uri."
        )
    # a file that was damaged in the store cannot be read, and no attempt may adopt it
    with contextlib.suppress(pa.ArrowException, OSError):
        if data_files.read_table(stored, keys).equals(table):
            return path, stored
    digest = content_hash([table[name].to_pylist() for name in keys], 16)
    if f"-{part_id}{digest}." in path:
        raise OutputError(f"{store.shown_uri}/{path}: damaged; run `corpus-embed verify`")
    sibling = layout.sibling(path, part_id, digest)
    return _create_or_adopt(store, sibling, part_id, data, keys)


def _is_recorded(store: Store, path: str, part_id: str, data: bytes) -> bool:
    """Whether a manifest says that the file at `path` is one of the part. data: another one."""
    _, lineage = data_files.read_footer(data)
    manifest_path = layout.manifest(str(lineage.get("fingerprint")), part_id)
    stored = store.read_or_none(manifest_path)
    if stored is None:
        return False
    manifest = Manifest.from_json(stored, manifest_path)
    return path in {manifest.rejects_path, *(file.path for file in manifest.data_files)}


def create_manifest(store: Store, manifest: Manifest) -> Manifest:
    """Create the manifest of a finished part, or return the existing one.

    One that names files which are gone is replaced: this attempt has created them again.
    """
    path = layout.manifest(manifest.fingerprint, manifest.part_id)
    if not store.put_if_absent(path, manifest.to_json()):
        stored = Manifest.from_json(store.read(path), path)
        if _is_outdated(store, stored, manifest):
            store.delete(path)
            return create_manifest(store, manifest)
        manifest = stored
    failpoint("after_manifest_put")
    return manifest


def _is_outdated(store: Store, stored: Manifest, manifest: Manifest) -> bool:
    """Whether a stored manifest names a file that is gone or cut, or whose place another one has
    taken. manifest: that of a later attempt at the part, whose files are there."""
    ours = {file.path: file for file in manifest.data_files}
    for file in stored.data_files:
        if file.path in ours and ours[file.path].sha256 != file.sha256:
            return True
        if file.path not in ours and _size(store, file.path) != file.size_bytes:
            return True
    path = stored.rejects_path
    if path is None or path == manifest.rejects_path:
        return stored.rejects_sha256 not in (None, manifest.rejects_sha256)
    return _size(store, path) is None


def _size(store: Store, path: str) -> int | None:
    """The size of an object in bytes; None when it is gone."""
    try:
        return int(store.info(path)["size"])
    except FileNotFoundError:
        return None


def create_generation(store: Store, generation: Generation) -> Generation:
    """Pin the facts that all data of one fingerprint shares. Raises OutputError when the output
    holds other facts."""
    path = layout.generation(generation.fingerprint)
    if store.put_if_absent(path, generation.to_json()):
        return generation
    stored = Generation.from_json(store.read(path), path)
    if (stored.dimension, stored.arrow_schema) != (generation.dimension, generation.arrow_schema):
        raise OutputError(
            f"{store.shown_uri}: this output holds vectors of dimension {stored.dimension} under "
            f"fingerprint {stored.fingerprint}, but the model now gives {generation.dimension}. "
            "Either the model changed without a change of its files' hashes, or another program "
            "wrote the output: use another output.uri."
        )
    return stored
