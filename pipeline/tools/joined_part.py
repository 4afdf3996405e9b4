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
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.errors import OutputError
from pipeline.storage import data_files, layout
from pipeline.storage.addresses import shown
from pipeline.storage.lineage import DataFile, Manifest, Source, Split, part_id
from pipeline.storage.store import Store
from pipeline.write import parquet
from pipeline.write.create import create_data_file, create_manifest, create_rejects
from pipeline.write.part import FOOTER_SOURCES

BATCH_ROWS = 8192
_NOT_SUMMED = {"format_version", "index"}
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
        return Manifest.from_json(data, path)
    sources = _joined_sources(manifests)
    footer_sources = sources[:FOOTER_SOURCES]
    engine = _joined_engine(manifests)
    lineage = {
        "part_id": joined_id,
        "run_id": run_id,
        "engine": engine,
        "n_sources": len(sources),
        "sources": [source.model_dump(exclude={"n_rejects"}) for source in footer_sources],
    }
    folders: dict[str, list[DataFile]] = defaultdict(list)
    for file in itertools.chain(*(manifest.data_files for manifest in manifests)):
        folders[layout.partition_folder(file.path)].append(file)
    files = [_join_files(store, folders[folder], lineage) for folder in sorted(folders)]
    rejects_path, rejects_sha256 = _join_rejects(store, manifests, lineage)
    counts = [name for name, field in Manifest.model_fields.items() if field.annotation is int]
    seconds: Counter[str] = Counter()
    reject_reasons: Counter[str] = Counter()
    for manifest in manifests:
        seconds.update(manifest.seconds)
        reject_reasons.update(manifest.reject_reasons)
    return create_manifest(
        store,
        Manifest(
            part_id=joined_id,
            fingerprint=first.fingerprint,
            run_id=run_id,
            split=split,
            index=0,
            last=True,
            sources=tuple(sources),
            data_files=tuple(files),
            rejects_path=rejects_path,
            rejects_sha256=rejects_sha256,
            reject_reasons=dict(reject_reasons),
            seconds=dict(seconds),
            engine=engine,
            **{
                name: sum(getattr(manifest, name) for manifest in manifests)
                for name in counts
                if name not in _NOT_SUMMED
            },
        ),
    )


def _joined_sources(manifests: Sequence[Manifest]) -> list[Source]:
    """What the parts took, added up by shard."""
    by_shard: dict[tuple[str, str], list[Source]] = defaultdict(list)
    for manifest in manifests:
        for source in manifest.sources:
            by_shard[source.uri, source.etag].append(source)
    return [
        Source(
            uri=uri,
            etag=etag,
            first_record=min(source.first_record for source in sources),
            n_records=sum(source.n_records for source in sources),
            n_rejects=sum(source.n_rejects for source in sources),
            damaged=any(source.damaged for source in sources),
        )
        for (uri, etag), sources in by_shard.items()
    ]


def _joined_engine(manifests: Sequence[Manifest]) -> dict[str, str]:
    """What the engines of the parts say, with all values of a key where they differ."""
    keys = sorted({key for manifest in manifests for key in manifest.engine})
    values = {key: {manifest.engine.get(key, "unknown") for manifest in manifests} for key in keys}
    return {key: ", ".join(sorted(values[key])) for key in keys}


def _join_files(store: Store, files: Sequence[DataFile], lineage: Mapping[str, Any]) -> DataFile:
    """Create one data file with the rows of several of the same Hive partition."""
    footers = [data_files.read_lineage(store, file.path) for file in files]
    run_ids = {run for footer in footers for run in [footer["run_id"], *footer.get("run_ids", [])]}
    tables = _row_groups(store, files, lineage["part_id"])
    first = next(tables)
    data = parquet.encode_all(
        itertools.chain([first], tables),
        first.schema,
        {**footers[0], **lineage, "run_ids": sorted(run_ids)},
    )
    folder = layout.partition_folder(files[0].path)
    n_rows = sum(file.n_rows for file in files)
    return create_data_file(store, lineage["part_id"], folder, files[0].partition, n_rows, data)


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


def _join_rejects(
    store: Store, manifests: Sequence[Manifest], lineage: Mapping[str, Any]
) -> tuple[str | None, str | None]:
    """(path, SHA-256) of one file with the rejects of all parts; None where they have none."""
    paths = [manifest.rejects_path for manifest in manifests if manifest.rejects_path]
    if not paths:
        return None, None
    tables = [data_files.read_table(store.read(path)) for path in paths]
    rejects = _with_part_id(pa.concat_tables(tables), lineage["part_id"])
    return create_rejects(store, lineage["run_id"], lineage["part_id"], rejects, dict(lineage))


def _with_part_id(table: pa.Table, joined_id: str) -> pa.Table:
    position = table.schema.get_field_index("part_id")
    column = pa.repeat(joined_id, table.num_rows)
    return table.set_column(position, table.schema.field(position), column)


def _read_checked(store: Store, file: DataFile) -> bytes:
    """The bytes of a data file. Raises OutputError when they do not have the hash in its
    manifest."""
    data = store.read(file.path)
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise OutputError(
            f"{shown(store.uri)}/{file.path}: its SHA-256 is not the one in its manifest, so "
            "nothing was joined. Run `corpus-embed verify`, delete nothing, and embed the shard "
            "again into another output."
        )
    return data
