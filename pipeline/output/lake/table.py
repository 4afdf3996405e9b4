"""What the tables of all catalogs share: their interface, and the properties of a commit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import pyarrow as pa

from pipeline.errors import CommitConflict, OutputError
from pipeline.output import dataset
from pipeline.storage.lineage import Generation, Manifest, Snapshot

NUMBER = "corpus-embed.snapshot"
RUN_ID = "corpus-embed.run-id"
FILE_LIST = "corpus-embed.file-list"
MAX_METADATA_BYTES = 256 << 20
"""The largest file of a table's metadata that is read: room for millions of data files."""


class CannotHold(OutputError):
    """A snapshot has a value for which this kind of table has no place."""


class State(NamedTuple):
    """A snapshot as a version of a table knows it. columns: see `columns_of`. run_id, file_list:
    None in tables of releases that did not record them."""

    number: int
    columns: str
    run_id: str | None = None
    file_list: str | None = None


def is_shown(state: State, snapshot: Snapshot) -> bool:
    """Whether a version of a table shows this snapshot, and not another one of its number, as far
    as the table can tell."""
    return (
        state.number == snapshot.number
        and state.run_id in (None, snapshot.run_id)
        and state.file_list in (None, snapshot.file_list)
    )


class Table(Protocol):
    """A table of one output in some catalog."""

    name: str

    def state(self) -> State | None:
        """The snapshot that the table shows now, number 0 where it shows none; None if there is no
        such table. Raises OutputError when the table is not one that this package made."""

    def history(self) -> list[State]:
        """The snapshots that versions of the table show, as far as they are kept."""

    def add(self, snapshot: Snapshot, generation: Generation, parts: Sequence[Manifest]) -> None:
        """Commit a snapshot: remove the files that it lacks, add its new ones, and record its
        lineage in the properties of the commit."""

    def forget(self, kept: Sequence[Snapshot]) -> None:
        """Drop the table's versions of all other snapshots."""


def columns_of(generation: Generation) -> str:
    """Columns and partitions, as far as tables distinguish them: a list has no length there."""
    fields = []
    for field in dataset.arrow_schema(generation):
        is_vector = pa.types.is_fixed_size_list(field.type)
        fields.append(f"{field.name} {field.type.value_type if is_vector else field.type}")
    return f"{', '.join(fields)}; partitions {', '.join(generation.partition_by)}"


def columns_problem(columns: str, others: str) -> str | None:
    """How the `columns_of` a table differ from those of a snapshot, or None where they do not."""
    if columns == others:
        return None
    fields, _, partitions = columns.partition("; partitions ")
    other_fields, _, other_partitions = others.partition("; partitions ")
    own = fields.split(", ")
    other = other_fields.split(", ")
    differences = []
    if absent := [field for field in other if field not in own]:
        differences.append(f"it has no column {', '.join(absent)}, which is")
    if extra := [field for field in own if field not in other]:
        differences.append(f"it has the column {', '.join(extra)}, which is not")
    if partitions != other_partitions:
        mine, theirs = (text or "nothing" for text in (partitions, other_partitions))
        differences.append(f"it is partitioned by {mine}, and by {theirs}")
    return "; ".join(differences or ["its columns have another order than"])


def lineage_of(snapshot: Snapshot, generation: Generation) -> dict[str, str]:
    """The properties of the commit that publishes a snapshot."""
    return {
        NUMBER: str(snapshot.number),
        RUN_ID: snapshot.run_id,
        FILE_LIST: snapshot.file_list,
        "corpus-embed.fingerprint": snapshot.fingerprint,
        "corpus-embed.model": generation.model_name,
        "corpus-embed.dimension": str(generation.dimension),
        "corpus-embed.vector-precision": generation.vector_precision,
    }


def check_held(table: Table, snapshot: Snapshot, error: Exception) -> None:
    """After a commit that failed with `error`: raises CommitConflict unless the table holds the
    snapshot by now."""
    state = table.state()
    versions = [state] if state else []
    if not any(is_shown(version, snapshot) for version in [*versions, *table.history()]):
        raise CommitConflict(
            f"{table.name}: another writer committed to it first: {error}. Nothing is lost: "
            "publish again."
        ) from error
