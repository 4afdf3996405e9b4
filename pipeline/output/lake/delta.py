"""A Delta table over the data files of an output, through deltalake: `_delta_log` at the root, one
commit a snapshot.

Paths in the log are relative, so the table moves with the output. The number of the snapshot is the
version of an application transaction, which is read before a commit, since Delta does not refuse a
repeated one; of two publishers that read the same version, one loses at the log. No data file is
read: manifests have their sizes and row counts. The log is read only where its files lie in the
output, are no larger than a table needs, and ask for no feature that this package does not write.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from urllib.parse import quote, unquote

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
from pipeline.output.lake.table import (
    FILE_LIST,
    MAX_METADATA_BYTES,
    NUMBER,
    RUN_ID,
    CannotHold,
    State,
    check_held,
    columns_of,
    lineage_of,
)
from pipeline.storage import layout
from pipeline.storage.lineage import DataFile, Generation, Manifest, Snapshot
from pipeline.storage.store import Store

APPLICATION = "corpus-embed"
MAX_PROTOCOL = (1, 2)
"""Reader and writer version of a table that this package makes: no optional feature."""
RECENT_COMMITS = 20
"""How many commits of other programs can lie above the newest one of this package before only its
number is known."""
# what is garbage to Delta can be live in an older snapshot: only the output's own vacuum deletes
# data files
_FIXED = {"delta.deletedFileRetentionDuration": "interval 36500 days"}


class DeltaTable:
    """The Delta table of one output."""

    def __init__(self, store: Store) -> None:
        self.name = f"Delta table {store.shown_uri}"
        self._store = store
        if unquote(store.root) != store.root:
            raise OutputError(
                f"{self.name}: its name has a percent sign followed by two digits, and deltalake, "
                "which decodes it once too often, finds no table there. Rename the output, or "
                "publish to Iceberg."
            )
        # deltalake takes a URI percent-encoded, and a local path as it is
        place, mark, path = store.fs.unstrip_protocol(store.root).partition("://")
        self._uri = store.root if store.local else f"{place}{mark}{quote(path)}"
        endpoint = store.options.get("endpoint_url")
        self._options = {"AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": "true"} if endpoint else {}

    def state(self) -> State | None:
        table = self._load()
        if table is None:
            return None
        number = table.transaction_version(APPLICATION) or 0
        columns = table.metadata().description or ""
        newest = next(iter(self._states(table, RECENT_COMMITS)), None)
        return newest if newest and newest.number == number else State(number, columns)

    def history(self) -> list[State]:
        table = self._load()
        return self._states(table, None) if table else []

    def _states(self, table: deltalake.DeltaTable, limit: int | None) -> list[State]:
        """The snapshots of the newest `limit` commits, the newest one first; None: of all."""
        columns = table.metadata().description or ""
        commits = [commit for commit in table.history(limit) if str(commit.get(NUMBER)).isdigit()]
        return [
            State(int(commit[NUMBER]), columns, commit.get(RUN_ID), commit.get(FILE_LIST))
            for commit in commits
        ]

    def add(self, snapshot: Snapshot, generation: Generation, parts: Sequence[Manifest]) -> None:
        table = self._load()
        arrow_schema = dataset.arrow_schema(generation)
        # actions are made with plain paths, and listed with encoded ones
        listed = pa.table(table.get_add_actions()).to_pylist() if table else []
        sizes = {unquote(action["path"]): action["size_bytes"] for action in listed}
        live = {file.path: file for part in parts for file in part.data_files}
        now = round(time.time() * 1000)  # for people: nothing is decided by it
        adds = [
            _added(file, arrow_schema, now, self.name)
            for path, file in sorted(live.items())
            if sizes.get(path) != file.size_bytes  # a lost one that was made again may differ
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
                    RemoveAction(path, True, now) for path in sorted(sizes.keys() - live.keys())
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

    def forget(self, kept: Sequence[Snapshot]) -> None:
        """Does nothing: in Delta, an old version always fails to read once its files are gone."""

    def _load(self) -> deltalake.DeltaTable | None:
        sizes = self._store.list(layout.DELTA_LOG)  # raises where a link leads out
        for path, n_bytes in sizes.items():
            self._store.path(path)
            if n_bytes > MAX_METADATA_BYTES:
                raise OutputError(
                    f"{self._store.shown_uri}/{path}: has {n_bytes} bytes; a file of a table's log "
                    f"has at most {MAX_METADATA_BYTES}. It is damaged, or somebody replaced it."
                )
        if not sizes or not deltalake.DeltaTable.is_deltatable(self._uri, self._options):
            return None
        table = deltalake.DeltaTable(self._uri, storage_options=self._options)
        protocol = table.protocol()
        versions = (protocol.min_reader_version, protocol.min_writer_version)
        if versions[0] > MAX_PROTOCOL[0] or versions[1] > MAX_PROTOCOL[1]:
            features = [*(protocol.reader_features or ()), *(protocol.writer_features or ())]
            raise OutputError(
                f"{self.name}: another program changed it: it needs reader version {versions[0]} "
                f"and writer version {versions[1]} {sorted(set(features)) or ''}, and this package "
                f"writes {MAX_PROTOCOL[0]} and {MAX_PROTOCOL[1]}. Nothing was done with it. Move "
                f"{layout.DELTA_LOG} away, then publish again."
            )
        return table


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
        raise CannotHold(
            f"{name}: {file.path} has an empty string as a partition value, which Delta takes for "
            "null, so the table stays behind. Partition by another column, or publish to Iceberg "
            "instead and forget this table: `corpus-embed publish OUTPUT --forget delta`."
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
