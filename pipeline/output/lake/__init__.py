"""Snapshots as tables of other catalogs: what `publish` in a spec, or the command of that name,
asks for.

A publication is derived: the snapshot is there before it, and every kept snapshot that a table
lacks is added in order, one commit each, so that the table's time travel is that of the output.
Data files are registered where they lie; none is read or written again. Which tables there are is
recorded under `_meta/publications`, so that vacuum can bring them up to date before it deletes. The
table libraries are extras and are imported on first use.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import pyarrow as pa

from pipeline.errors import CorpusEmbedError, OutputError, SpecError
from pipeline.job.spec import PublishSpec
from pipeline.output import dataset
from pipeline.output.snapshots import live_parts, snapshot_numbers
from pipeline.storage import layout
from pipeline.storage.addresses import shown
from pipeline.storage.filesystems import reason
from pipeline.storage.lineage import Generation, Manifest, Snapshot, content_hash
from pipeline.storage.store import Store

NUMBER = "corpus-embed.snapshot"


class Table(Protocol):
    """A table of one output in some catalog."""

    name: str

    def state(self) -> tuple[int, str] | None:
        """Number of the newest snapshot that the table holds, and its `columns_of`; None without a
        table."""

    def add(self, snapshot: Snapshot, generation: Generation, parts: Sequence[Manifest]) -> None:
        """One commit: files that left go out, new ones come in, lineage in its properties."""

    def forget(self, kept: set[int]) -> None:
        """Drop what leads to snapshots that are not kept."""


def publish(store: Store, wanted: PublishSpec) -> dict[str, int]:
    """Bring the tables of a spec up to the newest snapshot, and record them; returns the number
    that each one holds.

    Raises SpecError where an extra is missing, OutputError where a table cannot hold the rows,
    CommitConflict where another writer was first. The snapshots of the output are there in any
    case.
    """
    held = {}
    with _told(store):
        for kind, table in _tables(store, wanted):
            held[table.name] = _catch_up(store, table)
            record = wanted.model_dump_json(include={kind})
            store.put_if_absent(layout.publication(kind, content_hash(record, 16)), record.encode())
    return held


def published(store: Store) -> list[PublishSpec]:
    """The tables that this output was published to."""
    return [
        PublishSpec.model_validate_json(data)
        for _, data in store.read_many(sorted(store.list(layout.PUBLICATIONS)))
    ]


def prepare_vacuum(store: Store, kept: set[int]) -> None:
    """Before files are deleted: every table holds the newest snapshot, and no longer leads to those
    that go."""
    with _told(store):
        for wanted in published(store):
            for _, table in _tables(store, wanted):
                _catch_up(store, table)
                table.forget(kept)


def columns_of(generation: Generation) -> str:
    """Columns and partitions, as far as tables tell them apart: a list has no length there."""
    fields = [
        f"{field.name} {field.type.value_type if pa.types.is_fixed_size_list(field.type) else field.type}"
        for field in dataset.arrow_schema(generation)
    ]
    return f"{', '.join(fields)}; partitions {', '.join(generation.partition_by)}"


def lineage_of(snapshot: Snapshot, generation: Generation) -> dict[str, str]:
    """What a commit says about its snapshot."""
    return {
        NUMBER: str(snapshot.number),
        "corpus-embed.run-id": snapshot.run_id,
        "corpus-embed.fingerprint": snapshot.fingerprint,
        "corpus-embed.model": generation.model_name,
        "corpus-embed.dimension": str(generation.dimension),
        "corpus-embed.vector-precision": generation.vector_precision,
    }


def _catch_up(store: Store, table: Table) -> int:
    state = table.state()
    last = state[0] if state else 0
    due = [dataset.read_head(store, number) for number in snapshot_numbers(store) if number > last]
    if not due:
        return last
    columns = state[1] if state else columns_of(due[-1][1])
    if columns_of(due[-1][1]) != columns:
        raise OutputError(
            f"{table.name}: has the columns {columns}; snapshot {due[-1][0].number} of {shown(store.uri)} has "
            f"{columns_of(due[-1][1])}. A table keeps its columns: publish to another table, or use another output.uri. "
            "Nothing was changed."
        )
    for snapshot, generation in due:
        if columns_of(generation) == columns:
            table.add(snapshot, generation, live_parts(store, snapshot))
    return due[-1][0].number


@contextlib.contextmanager
def _told(store: Store) -> Iterator[None]:
    """Errors of a catalog or a table library, of whatever class, as one of ours."""
    try:
        yield
    except CorpusEmbedError:
        raise
    except Exception as error:
        raise OutputError(
            f"{shown(store.uri)}: the snapshots are committed, but publishing them failed: {reason(error)}. See to the "
            "catalog, then run `corpus-embed publish`; it goes on where this stopped."
        ) from error


def _tables(store: Store, wanted: PublishSpec) -> Iterator[tuple[str, Table]]:
    if wanted.iceberg:
        with _extra("iceberg"):
            from pipeline.output.lake.iceberg import IcebergTable
        yield "iceberg", IcebergTable(store, wanted.iceberg)
    if wanted.delta:
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
