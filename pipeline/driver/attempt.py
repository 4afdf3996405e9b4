"""What is recorded of one attempt at a run: what was run, on what hardware, how much was done.

In: a plan, the figures of its execution and the snapshot that came of it. Out: plain data for
`run_folder.record_attempt`. It is for people and auditors; nothing is ever decided from it.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.driver.planning.plan import Plan
from pipeline.observe.progress import Progress
from pipeline.output.damage import DamagedShard
from pipeline.storage.lineage import Snapshot


def what_came(progress: Progress) -> dict[str, Any]:
    """What a run did, under the names of its estimate."""
    return {
        "documents": progress["n_documents"],
        "rows": progress["n_rows"],
        "tokens": progress["n_tokens"],
        "embedded_tokens": progress["n_embedded_tokens"],
        "seconds": round(progress.elapsed_s, 1),
    }


def attempt_facts(
    plan: Plan,
    progress: Progress,
    snapshot: Snapshot,
    resources: Mapping[str, float],
    rows: Mapping[str, int],
    damaged: Sequence[DamagedShard],
    nominal_time: datetime.datetime | None,
) -> dict[str, Any]:
    """The content of the attempt's file: what was run, on what hardware, how much was done and how
    long it took.

    resources: what the cluster had (CPU, GPU, memory), as Ray names it. rows: from `row_counts`.
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
            "passed_over": dict(plan.passed_over),
        },
        "counts": progress.summary(),
        "rows": dict(rows),
        "damaged_shards": [dataclasses.asdict(shard) for shard in damaged],
        "nominal_time": nominal_time.isoformat() if nominal_time else None,
    }
