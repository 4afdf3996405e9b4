"""What a refresh changes: shards of the head against those listed now, rows of the head against
those of the next one.

In: live manifests, a listing, and later the parts of the next snapshot. Out: counts for people, and
TooManyDeletions where more would go than the spec allows. Cost: a pass over the live manifests;
where vectors were reused, one column of the parts that change and 8 bytes a row of theirs.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.driver.splits import whole_bytes
from pipeline.output.text_index import keys_of_files
from pipeline.storage.lineage import Manifest, Shard, Snapshot
from pipeline.storage.store import Store

if TYPE_CHECKING:
    from pipeline.driver.plan import Plan
    from pipeline.workers.metrics import Progress

GENEROUS = 8
"""Documents a byte that unread shards are given, in those of the head: a plan must not stop a run
that could be fine."""

COUNTED_ROWS = 1 << 26
"""Most rows whose texts the driver compares at the end of a run: 2 GiB of memory."""


@dataclasses.dataclass(frozen=True)
class ShardChanges:
    """Numbers of shards. most_documents: what the next snapshot can have, by a generous guess for
    unread shards."""

    unchanged: int
    changed: int
    new: int
    removed: int
    most_documents: int


def shard_changes(shards: Sequence[Shard], live: Sequence[Manifest]) -> ShardChanges:
    """Compare the listing with the shards of the head."""
    before = {span.shard for part in live for span in part.split.spans}
    uris = {shard.uri for shard in before}
    unread = [shard for shard in shards if shard not in before]
    changed = sum(shard.uri in uris for shard in unread)
    documents: Counter[tuple[str, str]] = Counter()
    for part in live:
        for source in part.sources:
            documents[source.uri, source.etag] += source.n_records - source.n_rejects
    unread_bytes = sum(map(whole_bytes, unread))
    documents_a_byte = documents.total() / max(1, sum(part.record_bytes for part in live))
    return ShardChanges(
        unchanged=len(shards) - len(unread),
        changed=changed,
        new=len(unread) - changed,
        removed=len(uris - {shard.uri for shard in shards}),
        most_documents=sum(documents[shard.uri, shard.etag] for shard in shards)
        + round(GENEROUS * unread_bytes * documents_a_byte),
    )


def outcome(store: Store, live: Sequence[Manifest], parts: Sequence[Manifest]) -> dict[str, int]:
    """What became of the rows of the head (`live`) and where those of the next snapshot (`parts`)
    come from.

    carried: in parts that stay. reused: in new parts, with a stored vector. embedded: the rest.
    removed: rows of parts that leave, without one of the same text in a new part; each row of a new
    part stands for one. rejected: records of new parts.
    """
    before, after = ({part.part_id for part in side} for side in (live, parts))
    new = [part for part in parts if part.part_id not in before]
    leaving = [part for part in live if part.part_id not in after]
    rows, reused = sum(part.n_rows for part in new), sum(part.n_reused for part in new)
    return {
        "carried": sum(part.n_rows for part in parts) - rows,
        "reused": reused,
        "embedded": rows - reused,
        "removed": sum(part.n_rows for part in leaving)
        - (_moved(store, leaving, new) if reused else 0),
        "rejected": sum(part.n_rejects for part in new),
    }


def _moved(store: Store, leaving: Sequence[Manifest], new: Sequence[Manifest]) -> int:
    """Rows of parts that leave which have a row of the same text in new parts, one for one: a guess
    above COUNTED_ROWS."""
    n_leaving = sum(part.n_rows for part in leaving)
    if n_leaving + sum(part.n_rows for part in new) > COUNTED_ROWS:
        return min(n_leaving, sum(part.n_reused for part in new))

    def texts(parts: Sequence[Manifest]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
        keys = keys_of_files(store, [file.path for part in parts for file in part.data_files])
        return np.unique(np.concatenate([np.zeros(0, np.uint64), *keys]), return_counts=True)

    (old, n_old), (found, n_found) = texts(leaving), texts(new)
    _, in_old, in_found = np.intersect1d(old, found, assume_unique=True, return_indices=True)
    return int(np.minimum(n_old[in_old], n_found[in_found]).sum())


def attempt_facts(
    plan: Plan,
    progress: Progress,
    snapshot: Snapshot,
    resources: Mapping[str, float],
    rows: Mapping[str, int],
    nominal_time: datetime.datetime | None,
) -> dict[str, Any]:
    """What the record of an attempt says: what did the work, on what, how much of it and how long
    it took.

    resources: what the cluster had (CPU, GPU, memory), as Ray names it. rows: see `outcome`.
    """
    job = plan.job
    return {
        "fingerprint": job.fingerprint,
        "identity": job.identity,
        "snapshot": snapshot.number,
        "parent": snapshot.parent,
        "model": {
            "path": job.spec.model.path,
            "revision": job.spec.model.revision,
            "license": job.model_license,
        },
        "versions": {"python": platform.python_version()},
        "hardware": {
            "machine": platform.machine(),
            "driver_cpus": os.cpu_count(),
            "device": job.engine.device,
            **resources,
        },
        "shards": {
            "count": len(plan.shards),
            "size_bytes": sum(shard.size_bytes for shard in plan.shards),
        },
        "counts": progress.summary(),
        "rows": dict(rows),
        "nominal_time": nominal_time.isoformat() if nominal_time else None,
    }
