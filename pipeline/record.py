"""The run record: what did the work, with which versions, on what, how much and how long.

In: a finished run. Out: `_meta/runs/<run_id>/attempt-<n>.json`, beside the resolved spec and the pinned plan. It is for
people and auditors: nothing is ever decided from it, so it alone may hold times and host facts.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import itertools
import json
import os
import platform
from collections.abc import Mapping
from typing import Any

from pipeline.lineage import FORMAT_VERSION, Snapshot
from pipeline.metrics import Progress
from pipeline.plan import Plan
from pipeline.storage import Store

PACKAGES = (
    "corpus-embed", "ray", "torch", "transformers", "sentence-transformers", "tokenizers", "fugashi", "unidic-lite",
    "numpy", "pyarrow", "fsspec", "s3fs",
)  # fmt: skip


def write_record(
    store: Store,
    plan: Plan,
    progress: Progress,
    snapshot: Snapshot,
    resources: Mapping[str, float],
    rows: Mapping[str, int],
    nominal_time: datetime.datetime | None,
) -> str:
    """Write the record of one successful attempt under the next free number; returns its path.

    resources: what the cluster had (CPU, GPU, memory), as Ray names it. rows: see `refresh.outcome`. The shard list with
    ETags is in `plan.parquet`.
    """
    job = plan.job
    record = {
        "format_version": FORMAT_VERSION,
        "run_id": plan.run_id,
        "fingerprint": job.fingerprint,
        "identity": job.identity,
        "snapshot": snapshot.number,
        "parent": snapshot.parent,
        "model": {"path": job.spec.model.path, "revision": job.spec.model.revision, "license": job.model_license},
        "versions": {"python": platform.python_version(), **_versions()},
        "hardware": {"machine": platform.machine(), "driver_cpus": os.cpu_count(), "device": job.device, **resources},
        "shards": {"count": len(plan.shards), "size_bytes": sum(shard.size_bytes for shard in plan.shards)},
        "counts": progress.summary(),
        "rows": dict(rows),
        "nominal_time": nominal_time.isoformat() if nominal_time else None,
    }
    data = json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False).encode()
    for number in itertools.count(1):
        path = f"_meta/runs/{plan.run_id}/attempt-{number:04d}.json"
        if store.put_if_absent(path, data):
            return path
    raise AssertionError("unreachable")


def _versions() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found
