"""A Delta table over the data files of an output, through deltalake: `_delta_log` at the root, one
commit a snapshot.

Paths in the log are relative, so the table moves with the output. The number of the snapshot is the
version of an application transaction, which is read before a commit, since Delta does not refuse a
repeated one; of two publishers that read the same version, one loses at the log. No data file is
read: manifests have their sizes and row counts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from urllib.parse import unquote

import deltalake
import pyarrow as pa
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import (
    AddAction,
    CommitProperties,
    RemoveAction,
    Transaction,
    create_table_with_add_actions,
)

from pipeline.errors import OutputError
from pipeline.output import dataset
from pipeline.output.lake.table import check_held, columns_of, lineage_of
from pipeline.storage.lineage import DataFile, Generation, Manifest, Snapshot
from pipeline.storage.store import Store

APPLICATION = "corpus-embed"
# what is garbage to Delta can be live in an older snapshot: only the output's own vacuum deletes
# data files
_FIXED = {"delta.deletedFileRetentionDuration": "interval 36500 days"}


class DeltaTable:
    """The Delta table of one output."""

    def __init__(self, store: Store) -> None:
        self.name = f"Delta table {store.shown_uri}"
        self._uri = store.fs.unstrip_protocol(store.root)
        endpoint = store.options.get("endpoint_url")
        self._options = {"AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": "true"} if endpoint else {}

    def state(self) -> tuple[int, str] | None:
        table = self._load()
        if table is None:
            return None
        return table.transaction_version(APPLICATION) or 0, table.metadata().description

    def add(self, snapshot: Snapshot, generation: Generation, parts: Sequence[Manifest]) -> None:
        table = self._load()
        arrow_schema = dataset.arrow_schema(generation)
        # actions are made with plain paths, and listed with encoded ones
        listed = pa.table(table.get_add_actions())["path"].to_pylist() if table else []
        table_paths = {unquote(path) for path in listed}
        live = {file.path: file for part in parts for file in part.data_files}
        now = round(time.time() * 1000)  # for people: nothing is decided by it
        adds = [
            _added(file, arrow_schema, now, self.name)
            for path, file in sorted(live.items())
            if path not in table_paths
        ]
        properties = CommitProperties(
            custom_metadata=lineage_of(snapshot, generation),
            max_commit_retries=0,
            app_transactions=[Transaction(APPLICATION, snapshot.number)],
        )
        try:
            if table is None:
                create_table_with_add_actions(
                    self._uri,
                    _schema(generation),
                    adds,
                    partition_by=list(generation.partition_by),
                    description=columns_of(generation),
                    configuration=_FIXED,
                    storage_options=self._options,
                    commit_properties=properties,
                )
            else:
                removes = [
                    RemoveAction(path, True, now) for path in sorted(table_paths - live.keys())
                ]
                table.create_write_transaction(
                    [*adds, *removes],
                    "append",
                    _schema(generation),
                    list(generation.partition_by),
                    commit_properties=properties,
                )
        except (CommitFailedError, DeltaError) as error:
            check_held(self, snapshot, error)

    def forget(self, kept: set[int]) -> None:
        """Does nothing: in Delta, an old version always fails to read once its files are gone."""

    def _load(self) -> deltalake.DeltaTable | None:
        if not deltalake.DeltaTable.is_deltatable(self._uri, self._options):
            return None
        return deltalake.DeltaTable(self._uri, storage_options=self._options)


def _schema(generation: Generation) -> deltalake.Schema:
    """Delta has no unsigned integers: bytes of ubinary are short there, which is what Spark takes
    Parquet's UINT_8 for."""
    fields = []
    for field in dataset.arrow_schema(generation):
        if pa.types.is_fixed_size_list(field.type):
            element = field.type.value_field
            wider = element.with_type(pa.int16()) if pa.types.is_uint8(element.type) else element
            field = field.with_type(pa.list_(wider))
        fields.append(field)
    return deltalake.Schema.from_arrow(pa.schema(fields))


def _added(file: DataFile, arrow_schema: pa.Schema, now: int, name: str) -> AddAction:
    if "" in file.partition.values():
        raise OutputError(
            f"{name}: {file.path} has an empty string as a partition value, which Delta takes for "
            "null. Partition by another column, or publish to Iceberg."
        )
    values = {  # data files say "2020-02-29 12:34:56.000000Z", Delta puts a T before the time
        key: value.replace(" ", "T")
        if pa.types.is_timestamp(arrow_schema.field(key).type) and value
        else value
        for key, value in file.partition.items()
    }
    return AddAction(
        file.path, file.size_bytes, values, now, True, json.dumps({"numRecords": file.n_rows})
    )
