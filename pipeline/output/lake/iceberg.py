"""An Apache Iceberg table over the data files of an output, through pyiceberg: one commit a
snapshot.

The catalog is pyiceberg's: by default a SQLite file in the output, else the one that its properties
name (REST, Glue, …; credentials come from the environment). The table's metadata lies under
`_meta/iceberg`, or where the spec says, and is read and written there alone
(`pipeline/output/lake/file_io.py`). Files carry no field ids, so the table has a name mapping;
partition columns are identity partitions, whose values readers take from the manifests. Column
statistics are not registered, so that publishing reads no data file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.exceptions import CommitFailedException, NoSuchTableError, TableAlreadyExistsError
from pyiceberg.manifest import DataFile as IcebergFile
from pyiceberg.manifest import DataFileContent, FileFormat
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Snapshot as IcebergSnapshot
from pyiceberg.typedef import Record
from pyiceberg.utils.config import Config

from pipeline.errors import OutputError
from pipeline.job.sections import IcebergSpec
from pipeline.output import dataset
from pipeline.output.lake.file_io import check_access, confine
from pipeline.output.lake.local_catalog import (
    CATALOG_NAME,
    OUTPUT,
    catalog_uri,
    forget_moved_table,
    root_location,
)
from pipeline.output.lake.table import (
    FILE_LIST,
    NUMBER,
    RUN_ID,
    State,
    check_held,
    columns_of,
    is_shown,
    lineage_of,
)
from pipeline.storage import layout
from pipeline.storage.addresses import shown
from pipeline.storage.lineage import DataFile, Generation, Manifest, Snapshot
from pipeline.storage.store import Store

COLUMNS = "corpus-embed.columns"
_FIXED = {
    "commit.retry.num-retries": "0",  # pyiceberg's own retry would register the same files twice
    "gc.enabled": "false",  # the files belong to the output: only its vacuum may delete them
    "write.metadata.delete-after-commit.enabled": "true",
}


class IcebergTable:
    """The Iceberg table of one output. A second publisher loses at the catalog."""

    def __init__(self, store: Store, spec: IcebergSpec) -> None:
        self.name = f"Iceberg table {spec.table}"
        self._table = spec.table
        self._root = root_location(store)
        self._location = spec.location or f"{self._root}/{layout.ICEBERG}/{self._table}"
        if not spec.catalog and not spec.location:
            forget_moved_table(store, self._table, self._root)
        data_folder = f"{self._root}/{layout.DATA}"
        self._catalog = confine(_load_catalog(store, spec.catalog), self._location, data_folder)

    def state(self) -> State | None:
        table = self._load()
        if table is None:
            return None
        columns = table.properties.get(COLUMNS, "")
        shown = table.current_snapshot()
        while shown is not None and not _number(shown):  # another writer's, on top of ours
            parent = shown.parent_snapshot_id
            shown = table.snapshot_by_id(parent) if parent is not None else None
        return _state(shown, columns) if shown else State(0, columns)

    def history(self) -> list[State]:
        table = self._load()
        columns = table.properties.get(COLUMNS, "") if table else ""
        return [_state(snapshot, columns) for snapshot in (table.snapshots() if table else ())]

    def add(self, snapshot: Snapshot, generation: Generation, parts: Sequence[Manifest]) -> None:
        table = self._load() or self._create(generation)
        arrow_schema = dataset.arrow_schema(generation)
        live = {f"{self._root}/{file.path}": file for part in parts for file in part.data_files}
        current = table.current_snapshot()
        listed = {
            entry.data_file.file_path: entry.data_file
            for manifest in (current.manifests(table.io) if current else [])
            for entry in manifest.fetch_manifest_entry(table.io)
        }
        try:
            with (
                table.transaction() as change,
                change.update_snapshot(lineage_of(snapshot, generation)).overwrite() as update,
            ):
                sizes = {path: file.file_size_in_bytes for path, file in listed.items()}
                # a lost file that was made again may have another size
                kept = {path for path in live if sizes.get(path) == live[path].size_bytes}
                for path in sorted(listed.keys() - kept):
                    update.delete_data_file(listed[path])
                for path in sorted(live.keys() - kept):
                    update.append_data_file(
                        _registered(path, live[path], generation.partition_by, arrow_schema)
                    )
        except CommitFailedException as error:
            check_held(self, snapshot, error)

    def forget(self, kept: Sequence[Snapshot]) -> None:
        table = self._load()
        if table is None:
            return
        current = table.current_snapshot()
        expired = [
            version.snapshot_id
            for version in table.snapshots()
            if _number(version)
            and version != current
            and not any(is_shown(_state(version, ""), snapshot) for snapshot in kept)
        ]
        if expired:
            table.maintenance.expire_snapshots().by_ids(expired).commit()

    def _load(self) -> Table | None:
        try:
            table = self._catalog.load_table(self._table)
        except NoSuchTableError:
            return None
        check_access(table)
        if table.properties.get(OUTPUT) != self._root:
            raise OutputError(
                f"{self.name}: belongs to {table.properties.get(OUTPUT, 'another writer')}, not to "
                f"{shown(self._root)}. Give publish.iceberg.table another name. If the output was "
                "moved from there, drop the table in its catalog first, or give it up: "
                f"`corpus-embed publish OUTPUT --forget {self._table}`."
            )
        return table

    def _create(self, generation: Generation) -> Table:
        self._catalog.create_namespace_if_not_exists(self._table.rpartition(".")[0])
        properties = {**_FIXED, OUTPUT: self._root, COLUMNS: columns_of(generation)}
        with (
            # another publisher has just created it
            contextlib.suppress(TableAlreadyExistsError, CommitFailedException),
            self._catalog.create_table_transaction(
                self._table, dataset.arrow_schema(generation), self._location, properties=properties
            ) as change,
        ):
            with change.update_spec() as spec:
                for name in generation.partition_by:
                    spec.add_identity(name)
            mapping = change.table_metadata.schema().name_mapping.model_dump_json()
            change.set_properties({"schema.name-mapping.default": mapping})
        return self._catalog.load_table(self._table)


def is_configured(store: Store, spec: IcebergSpec) -> bool:
    """Whether this machine's own pyiceberg configuration names the catalog and the location that a
    record in an output names; the default ones are inside the output and need no configuration."""
    properties = dict(spec.catalog)
    name = properties.pop("name", CATALOG_NAME)
    configured = Config().get_catalog_config(name) or {}
    folders = [f"{root_location(store)}/{layout.ICEBERG}"]
    folders += [str(configured["warehouse"])] if "warehouse" in configured else []
    return properties.items() <= configured.items() and (
        spec.location is None
        or any(spec.location.startswith(folder.rstrip("/") + "/") for folder in folders)
    )


def _load_catalog(store: Store, catalog: Mapping[str, str]) -> Catalog:
    """A catalog by its properties and its `name`, under which pyiceberg's own configuration and
    environment can have more of them."""
    properties = dict(catalog)
    if not properties:
        if not store.local:
            raise OutputError(
                f"{store.shown_uri}: the default catalog is a SQLite file in the output, which "
                "needs a local disk. Name a catalog in publish.iceberg.catalog, for instance "
                "{type: rest, uri: …} or {type: glue}."
            )
        properties = {"type": "sql", "uri": catalog_uri(store)}
    if endpoint := store.options.get("endpoint_url"):
        properties.setdefault("s3.endpoint", endpoint)
    return load_catalog(properties.pop("name", CATALOG_NAME), **properties)


def _state(version: IcebergSnapshot, columns: str) -> State:
    """The snapshot of the output that a version of the table shows; number 0 for a version that
    another writer made."""
    summary = version.summary.additional_properties if version.summary else {}
    number = summary.get(NUMBER, "0")
    return State(
        int(number) if number.isdigit() else 0,
        columns,
        summary.get(RUN_ID),
        summary.get(FILE_LIST),
    )


def _number(version: IcebergSnapshot) -> int:
    return _state(version, "").number


def _registered(
    path: str, file: DataFile, partition_by: Sequence[str], arrow_schema: pa.Schema
) -> IcebergFile:
    values = [
        _partition_value(file.partition[name], arrow_schema.field(name).type)
        for name in partition_by
    ]
    return IcebergFile.from_args(
        content=DataFileContent.DATA,
        file_path=path,
        file_format=FileFormat.PARQUET,
        partition=Record(*values),
        record_count=file.n_rows,
        file_size_in_bytes=file.size_bytes,
    )


def _partition_value(text: str | None, type_: pa.DataType) -> Any:
    """A Hive value as Iceberg keeps it: dates in days, timestamps in microseconds."""
    value = pa.scalar(text, pa.string()).cast(type_)
    return value.value if pa.types.is_temporal(type_) else value.as_py()
