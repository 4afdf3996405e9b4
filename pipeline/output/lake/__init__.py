"""Snapshots as tables of other catalogs, as `publish` in a spec or the command of that name asks.

A publication is derived: it comes after the snapshot, and every kept snapshot that a table lacks is
added in order, one commit each, so that the table's time travel is that of the output. Data files
are registered where they lie; none is read or written again. The names of the tables are recorded
under `_meta/publications`, so that vacuum can bring them up to date before it deletes. A record
says only which tables exist: which catalog is contacted and where metadata is written comes from
the operator. The table libraries are extras and are imported on first use.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pydantic

from pipeline.errors import CorpusEmbedError, OutputError, SpecError
from pipeline.job.sections import IcebergSpec, PublishSpec
from pipeline.output import dataset
from pipeline.output.lake.table import Table, columns_of
from pipeline.output.snapshots import live_parts, snapshot_numbers
from pipeline.storage import layout
from pipeline.storage.filesystems import reason
from pipeline.storage.lineage import content_hash
from pipeline.storage.store import Store


def publish(store: Store, publications: PublishSpec) -> dict[str, int]:
    """Bring the tables of a spec up to the newest snapshot, and record them; returns the number
    that each one holds.

    Raises SpecError where an extra is missing, OutputError where a table cannot hold the rows,
    CommitConflict where another writer was first. The snapshots of the output are committed in any
    case.
    """
    held = {}
    with _as_output_errors(store):
        for kind, table in _tables(store, publications):
            held[table.name] = _catch_up(store, table)
            record = publications.model_dump_json(include={kind})
            store.put_if_absent(layout.publication(kind, content_hash(record, 16)), record.encode())
    return held


def publish_recorded(
    store: Store, kept: set[int] | None = None
) -> tuple[dict[str, int], list[CorpusEmbedError]]:
    """Bring every table that an earlier publication recorded up to the newest snapshot.

    kept: before a vacuum, the snapshots that stay; what leads to others is dropped from the tables.
    Returns the number that each table holds, and an error for each table that is behind: one that
    failed costs the others nothing, and a catalog is not contacted where only the output names it.
    """
    held: dict[str, int] = {}
    behind: list[CorpusEmbedError] = []
    for path, data in store.read_many(store.list(layout.PUBLICATIONS)):
        try:
            with _as_output_errors(store):
                for _, table in _tables(store, _recorded(store, path, data)):
                    held[table.name] = _catch_up(store, table)
                    if kept is not None:
                        table.forget(kept)
        except CorpusEmbedError as error:
            behind.append(error)
    return held, behind


def _recorded(store: Store, path: str, data: bytes) -> PublishSpec:
    """A stored record. Raises OutputError when it is damaged, or names a catalog or a location that
    the operator's own configuration does not name."""
    try:
        record = PublishSpec.model_validate_json(data)
    except pydantic.ValidationError as error:
        raise OutputError(
            f"{store.shown_uri}/{path}: names no table: {error.errors()[0]['msg']}. Delete it."
        ) from error
    if record.iceberg and record.iceberg != IcebergSpec(table=record.iceberg.table):
        with _extra("iceberg"):
            from pipeline.output.lake.iceberg import is_configured
        if not is_configured(store, record.iceberg):
            raise OutputError(
                f"Iceberg table {record.iceberg.table}: only the output says which catalog has it "
                "or where it lies, so it was not contacted and may be behind. Give the catalog's "
                "properties in ~/.pyiceberg.yaml or PYICEBERG_CATALOG__…, or run `corpus-embed "
                f"publish OUTPUT --iceberg {record.iceberg.table} --catalog …`."
            )
    return record


def _catch_up(store: Store, table: Table) -> int:
    state = table.state()
    last = state[0] if state else 0
    due = [dataset.read_head(store, number) for number in snapshot_numbers(store) if number > last]
    if not due:
        return last
    columns = state[1] if state else columns_of(due[-1][1])
    if columns_of(due[-1][1]) != columns:
        raise OutputError(
            f"{table.name}: has the columns {columns}; snapshot {due[-1][0].number} of "
            f"{store.shown_uri} has {columns_of(due[-1][1])}. A table keeps its columns: publish "
            "to another table, or use another output.uri. Nothing was changed."
        )
    for snapshot, generation in due:
        if columns_of(generation) == columns:
            table.add(snapshot, generation, live_parts(store, snapshot))
    return due[-1][0].number


@contextlib.contextmanager
def _as_output_errors(store: Store) -> Iterator[None]:
    """Turn errors of a catalog or a table library, of any class, into OutputError."""
    try:
        yield
    except CorpusEmbedError:
        raise
    except Exception as error:
        raise OutputError(
            f"{store.shown_uri}: the snapshots are committed, but publishing them failed: "
            f"{reason(error)}. Fix the catalog, then run `corpus-embed publish`; it resumes where "
            "this stopped."
        ) from error


def _tables(store: Store, publications: PublishSpec) -> Iterator[tuple[str, Table]]:
    if publications.iceberg:
        with _extra("iceberg"):
            from pipeline.output.lake.iceberg import IcebergTable
        yield "iceberg", IcebergTable(store, publications.iceberg)
    if publications.delta:
        with _extra("delta"):
            from pipeline.output.lake.delta import DeltaTable
        yield "delta", DeltaTable(store)


@contextlib.contextmanager
def _extra(name: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise SpecError(
            f"publish.{name}: {error}. Install it: pip install 'corpus-embed[{name}]'"
        ) from error
