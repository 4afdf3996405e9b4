"""What is known about a run at one moment, for its events. Plain data; grows while the run goes."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence

from pipeline.job.resolve import Job
from pipeline.storage.lineage import Generation, Manifest, Shard, Snapshot


@dataclasses.dataclass(frozen=True)
class RunFacts:
    """The facts. job: what is asked for. shards: what the input holds, once it was listed.

    snapshot, parts, generation: what is live after the run. rows: from where they come, by
    `row_counts`. embedded: whether anything had to be.
    """

    job: Job
    nominal_time: datetime.datetime | None = None
    run_id: str | None = None
    shards: Sequence[Shard] | None = None
    snapshot: Snapshot | None = None
    parts: Sequence[Manifest] = ()
    generation: Generation | None = None
    rows: Mapping[str, int] = dataclasses.field(default_factory=dict)
    embedded: bool | None = None
    elapsed_s: float | None = None
