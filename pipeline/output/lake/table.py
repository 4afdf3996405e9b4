"""What the tables of all catalogs share: their interface, and the properties of a commit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import pyarrow as pa

from pipeline.errors import CommitConflict
from pipeline.output import dataset
from pipeline.storage.lineage import Generation, Manifest, Snapshot

NUMBER = "corpus-embed.snapshot"


class Table(Protocol):
    """A table of one output in some catalog."""

    name: str

    def state(self) -> tuple[int, str] | None:
        """(number, `columns_of`) of the newest snapshot that the table holds; None if there is no
        such table."""

    def add(self, snapshot: Snapshot, generation: Generation, parts: Sequence[Manifest]) -> None:
        """Commit a snapshot: remove the files that it lacks, add its new ones, and record its
        lineage in the properties of the commit."""

    def forget(self, kept: set[int]) -> None:
        """Drop the table's versions of snapshots that are not kept."""


def columns_of(generation: Generation) -> str:
    """Columns and partitions, as far as tables distinguish them: a list has no length there."""
    fields = []
    for field in dataset.arrow_schema(generation):
        is_vector = pa.types.is_fixed_size_list(field.type)
        fields.append(f"{field.name} {field.type.value_type if is_vector else field.type}")
    return f"{', '.join(fields)}; partitions {', '.join(generation.partition_by)}"


def lineage_of(snapshot: Snapshot, generation: Generation) -> dict[str, str]:
    """The properties of the commit that publishes a snapshot."""
    return {
        NUMBER: str(snapshot.number),
        "corpus-embed.run-id": snapshot.run_id,
        "corpus-embed.fingerprint": snapshot.fingerprint,
        "corpus-embed.model": generation.model_name,
        "corpus-embed.dimension": str(generation.dimension),
        "corpus-embed.vector-precision": generation.vector_precision,
    }


def check_held(table: Table, snapshot: Snapshot, error: Exception) -> None:
    """After a commit that failed with `error`: raises CommitConflict unless the table holds the
    snapshot by now."""
    if (table.state() or (0, ""))[0] < snapshot.number:
        raise CommitConflict(
            f"{table.name}: another writer committed to it first: {error}. Nothing is lost: "
            "publish again."
        ) from error
