"""Several parts become one: their rows in one data file per partition, their rejects in one file,
and a manifest.

In: manifests of whole splits, and the split of all their spans. Out: the manifest of the joined
part. Rows, vectors and rejects stay as they are, except for their part_id; counts are added up.
Every object is created once, so a killed attempt is resumed. Cost: a read and a write of everything
that is joined. Memory: one joined file and one row group.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from pipeline.errors import OutputError
from pipeline.output.checks import lost_objects
from pipeline.output.snapshots import added_up
from pipeline.storage import data_files, layout, schema
from pipeline.storage.lineage import DataFile, Manifest, PartFacts, Source, Split, part_id
from pipeline.storage.store import Store
from pipeline.write import parquet
from pipeline.write.create import create_data_file, create_manifest, create_rejects
from pipeline.write.part import part_lineage

BATCH_ROWS = 8192
_NOT_COUNTS = {"format_version", "index"}
"""Integers of a manifest that are not counts."""


def create_joined_part(
    store: Store, manifests: Sequence[Manifest], split: Split, run_id: str
) -> Manifest:
    """Create the data files, the rejects and the manifest of the part that joins `manifests`.

    split: the one that gives all their records. Raises OutputError when a file is damaged.
    """
    first = manifests[0]
    joined_id = part_id(first.fingerprint, split.split_id, 0)
    path = layout.manifest(first.fingerprint, joined_id)
    if (data := store.read_or_none(path)) is not None:
        earlier = Manifest.from_json(data, path)
        if not lost_objects(store, [earlier]):
            return earlier
    joined = Manifest(
        part_id=joined_id,
        fingerprint=first.fingerprint,
        run_id=run_id,
        split=split,
        index=0,
        last=True,
        sources=_joined_sources(manifests),
        seconds=added_up(manifest.seconds for manifest in manifests),
        engine=_joined_engine(manifests),
        data_files=(),
        rejects_path=None,
        reject_reasons=added_up(manifest.reject_reasons for manifest in manifests),
        **_counts(manifests),
    )
    folders: dict[str, list[DataFile]] = defaultdict(list)
    for file in itertools.chain(*(manifest.data_files for manifest in manifests)):
        folders[layout.partition_folder(file.path)].append(file)
    files = [_join_files(store, folders[folder], joined) for folder in sorted(folders)]
    written = {"data_files": tuple(files), **_join_rejects(store, manifests, joined)}
    return create_manifest(store, joined.model_copy(update=written))


def _counts(manifests: Sequence[Manifest]) -> dict[str, Any]:
    """The counts among the fields of some manifests, added up."""
    names = {name for name, field in Manifest.model_fields.items() if field.annotation is int}
    return {
        name: sum(getattr(manifest, name) for manifest in manifests)
        for name in sorted(names - _NOT_COUNTS)
    }


def _joined_sources(manifests: Sequence[Manifest]) -> tuple[Source, ...]:
    """What the parts took, added up by shard."""
    by_shard: dict[tuple[str, str], list[Source]] = defaultdict(list)
    for manifest in manifests:
        for source in manifest.sources:
            by_shard[source.uri, source.etag].append(source)
    return tuple(
        Source(
            uri=uri,
            etag=etag,
            first_record=min(source.first_record for source in sources),
            n_records=sum(source.n_records for source in sources),
            n_rejects=sum(source.n_rejects for source in sources),
            damaged=any(source.damaged for source in sources),
            lost_bytes=sum(source.lost_bytes for source in sources),
        )
        for (uri, etag), sources in by_shard.items()
    )


def _joined_engine(manifests: Sequence[Manifest]) -> dict[str, str]:
    """What the engines of the parts say, with all values of a key where they differ."""
    keys = sorted({key for manifest in manifests for key in manifest.engine})
    values = {key: {manifest.engine.get(key, "unknown") for manifest in manifests} for key in keys}
    return {key: ", ".join(sorted(values[key])) for key in keys}


def _join_files(store: Store, files: Sequence[DataFile], facts: PartFacts) -> DataFile:
    """Create one data file with the rows of several of the same Hive partition."""
    footers = [_read_lineage(store, file) for file in files]
    run_ids = {run for footer in footers for run in [footer["run_id"], *footer.get("run_ids", [])]}
    tables = _row_groups(store, files, facts.part_id)
    metadata = {**footers[0], **part_lineage(facts), "run_ids": sorted(run_ids)}
    data = parquet.encode(next(tables), metadata, tables)
    folder = layout.partition_folder(files[0].path)
    n_rows = sum(file.n_rows for file in files)
    return create_data_file(store, facts.part_id, folder, files[0].partition, n_rows, data)


def _row_groups(store: Store, files: Sequence[DataFile], joined_id: str) -> Iterator[pa.Table]:
    """The rows of some files under another part_id, about one row group at a time."""
    batches: list[pa.RecordBatch] = []
    n_bytes = 0
    for file in files:
        parquet_file = data_files.opened(_read_checked(store, file))
        for batch in parquet_file.iter_batches(BATCH_ROWS, use_threads=False):
            if batches and n_bytes + batch.nbytes > parquet.ROW_GROUP_BYTES:
                yield _with_part_id(pa.Table.from_batches(batches), joined_id)
                batches = []
                n_bytes = 0
            batches.append(batch)
            n_bytes += batch.nbytes
    yield _with_part_id(pa.Table.from_batches(batches), joined_id)


def _join_rejects(store: Store, manifests: Sequence[Manifest], facts: PartFacts) -> dict[str, str]:
    """The fields of a manifest that name the file with the rejects of all parts: none where they
    have none."""
    paths = [manifest.rejects_path for manifest in manifests if manifest.rejects_path]
    if not paths:
        return {}
    tables = [_read_rejects(store, path) for path in paths]
    rejects = _with_part_id(pa.concat_tables(tables), facts.part_id)
    path, digest = create_rejects(store, facts.run_id, facts.part_id, rejects, part_lineage(facts))
    return {"rejects_path": path, "rejects_sha256": digest}


def _with_part_id(table: pa.Table, joined_id: str) -> pa.Table:
    position = table.schema.get_field_index("part_id")
    column = pa.repeat(joined_id, table.num_rows)
    return table.set_column(position, table.schema.field(position), column)


def _read_lineage(store: Store, file: DataFile) -> dict[str, Any]:
    """The lineage in the footer of a data file. Raises OutputError when it names no run."""
    lineage = data_files.read_lineage(store, file.path)
    run_ids = [lineage.get("run_id"), *lineage.get("run_ids", [])]
    if not all(isinstance(run_id, str) for run_id in run_ids):
        raise OutputError(
            f"{store.shown_uri}/{file.path}: its footer names no run. Run `corpus-embed verify`."
        )
    return lineage


def _read_rejects(store: Store, path: str) -> pa.Table:
    """A file of rejects. Raises OutputError when it is gone or damaged."""
    try:
        table = data_files.read_table(store.read(path))
    except (OSError, pa.ArrowException) as error:
        problem = "is gone" if isinstance(error, FileNotFoundError) else f"is damaged: {error}"
        raise OutputError(
            f"{store.shown_uri}/{path}: this file of rejects {problem}. Nothing was joined. Run "
            "`corpus-embed verify`."
        ) from error
    if table.schema.remove_metadata() != schema.rejects_schema():
        raise OutputError(
            f"{store.shown_uri}/{path}: has other columns than a file of rejects. Nothing was "
            "joined. Run `corpus-embed verify`."
        )
    return table


def _read_checked(store: Store, file: DataFile) -> bytes:
    """The bytes of a data file. Raises OutputError when they do not have the hash in its
    manifest."""
    data = store.read(file.path)
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise OutputError(
            f"{store.shown_uri}/{file.path}: its SHA-256 is not the one in its manifest, so "
            "nothing was joined. Run `corpus-embed verify`, delete nothing, and embed the shard "
            "again into another output."
        )
    return data
