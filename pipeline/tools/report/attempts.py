"""What the runs of an output recorded: one version of the output for each kept snapshot, with what
was carried, reused and embedded, and how long that took.

In: the store and the newest snapshot. Out: `Version`s, newest first. The records of attempts are
for people, so one that cannot be read is left out and named, and nothing fails because of it. Cost:
a listing of `runs`, and a small read for each of at most MAX_VERSIONS snapshots and their attempts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import pydantic

from pipeline.errors import OutputError
from pipeline.output.snapshots import load_snapshot, snapshot_numbers
from pipeline.storage import layout
from pipeline.storage.accepted import first_mistake
from pipeline.storage.lineage import Snapshot
from pipeline.storage.store import Store
from pipeline.storage.stored_record import Count

MAX_VERSIONS = 60
"""The most snapshots that a report shows."""


class _Facts(pydantic.BaseModel):
    """Later releases record more than is shown here."""

    model_config = pydantic.ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


Number = Annotated[float, pydantic.Field(ge=0, le=1e15)]
Rate = Annotated[float, pydantic.Field(ge=0, le=1)]


class Counts(_Facts):
    """The figures of an attempt. seconds: of all workers together, by stage. start_up_s,
    embedding_s, end_s: the phases of `elapsed_s`; None in records of earlier releases."""

    elapsed_s: Number = 0
    start_up_s: Number | None = None
    embedding_s: Number | None = None
    end_s: Number | None = None
    padding_share: Rate = 0
    busy_share: Rate | None = None
    bottleneck: str | None = None
    n_embedded_tokens: Count = 0
    seconds: dict[str, Number] = pydantic.Field(default={})
    worker_restarts: Count = 0
    storage_retries: Count = 0
    n_oom_halvings: Count = 0
    n_crashed_records: Count = 0
    n_replaced: Count = 0

    @property
    def tokens_per_s(self) -> float:
        """Tokens that went through the model a second, start-up and end included."""
        return self.n_embedded_tokens / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def embedding_tokens_per_s(self) -> float | None:
        """The same of the time in which workers embedded; None where it is not recorded."""
        return self.n_embedded_tokens / self.embedding_s if self.embedding_s else None


class ListedShards(_Facts):
    """passed_over: objects that the listing left out, by reason."""

    count: Count = 0
    size_bytes: Count = 0
    passed_over: dict[str, Count] = pydantic.Field(default={})


class Attempt(_Facts):
    """The record of one successful attempt at a run, as far as a report shows it."""

    run_id: str
    snapshot: Count
    counts: Counts = Counts()
    rows: dict[str, Count] = pydantic.Field(default={})
    shards: ListedShards = ListedShards()
    hardware: dict[str, Any] = pydantic.Field(default={})
    versions: dict[str, str | None] = pydantic.Field(default={})
    estimate: dict[str, Any] | None = None
    truth: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Version:
    """One kept snapshot and the attempt that made it; None for a compaction, and where the record
    is gone. path: where the attempt's record is."""

    snapshot: Snapshot
    attempt: Attempt | None
    path: str | None = None

    def rows(self, name: str) -> int | None:
        """How many of its rows were carried, reused, embedded or removed."""
        return self.attempt.rows.get(name) if self.attempt else None


def load_versions(store: Store, head: Snapshot) -> tuple[list[Version], list[str]]:
    """(the kept snapshots up to `head`, newest first, a sentence for each record that cannot be
    read)."""
    notes: list[str] = []
    snapshots = [head]
    earlier = [number for number in snapshot_numbers(store) if number < head.number]
    for number in sorted(earlier, reverse=True)[: MAX_VERSIONS - 1]:
        try:
            snapshot = load_snapshot(store, number)
        except OutputError as error:
            notes.append(str(error))
        else:
            snapshots += [snapshot] if snapshot else []
    attempts = _load_attempts(store, {snapshot.run_id for snapshot in snapshots}, notes)
    versions = []
    for snapshot in snapshots:
        attempt, path = attempts.get((snapshot.run_id, snapshot.number), (None, None))
        versions.append(Version(snapshot, attempt, path))
    return versions, notes


def _load_attempts(
    store: Store, run_ids: set[str], notes: list[str]
) -> Mapping[tuple[str, int], tuple[Attempt, str]]:
    """The last attempt of each run and snapshot, with its path."""
    sizes = {
        path: size_bytes
        for path, size_bytes in store.list(layout.RUNS).items()
        if (location := layout.locate(path)) and location.is_attempt and location.run_id in run_ids
    }
    attempts: dict[tuple[str, int], tuple[Attempt, str]] = {}
    for path, data in sorted(store.read_many(sizes)):
        try:
            attempt = Attempt.model_validate_json(data)
        except pydantic.ValidationError as error:
            reason = first_mistake(error, Attempt)
            notes.append(f"{path}: this record of an attempt cannot be read: {reason}")
        else:
            attempts[attempt.run_id, attempt.snapshot] = (attempt, path)
    return attempts
