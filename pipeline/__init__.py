"""The public names: a job spec becomes Parquet vectors with lineage.

    plan(spec)               what a run would do; writes nothing
    run(spec)                embed what is missing, commit a snapshot
    open_dataset(uri)        a snapshot as a pyarrow dataset
    read_vectors(uri)        its ids and vectors, the latter as an array (N, D)
    changes(uri, since)      rows to put and keys to delete since an earlier snapshot

What the commands of the same names do with an output:

    files(uri)               the live data files, and the lines that read them elsewhere
    rejects(uri)             rejected records: counts by reason, examples with their text
    search(uri, text)        the rows nearest to a text
    trace(uri, row)          a row back to its shard, record and bytes
    verify(uri)              the output against its manifests, and a sample against its sources
    report(uri)              a page about an output: runs, rejects, a map of the vectors, duplicates
    diff(uri, since, until)  how many rows differ between two snapshots, and which
    compact(uri)             small data files joined into large ones, as a new snapshot
    export(uri, folder, to)  the vectors for NumPy, FAISS or Lance
    vacuum(uri)              what the kept snapshots do not need; deleted on request

Everything heavy is imported on first use, so `import pipeline` costs milliseconds: pyarrow comes
with the first spec, ray with `run`, torch with `search` and with the sample of `verify`. Everything
that is not in `__all__` can change between releases.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from pipeline.errors import (
    ClusterError,
    CommitConflict,
    CorpusEmbedError,
    FullRefreshNeeded,
    InputError,
    InternalError,
    LeaseHeld,
    ModelError,
    OutputError,
    ShardChanged,
    ShardDamaged,
    SpecError,
    StorageError,
    TooManyDeletions,
    TooManyPartitions,
    TooManyRejects,
    TooMuchDamage,
    WorkerError,
)

if TYPE_CHECKING:
    import datetime

    from pipeline.driver.planning.plan import Plan
    from pipeline.driver.run import Result
    from pipeline.driver.showing import Watch
    from pipeline.job.spec import JobSpec, load_spec
    from pipeline.output.change_feed import changes
    from pipeline.output.dataset import open_dataset, read_vectors
    from pipeline.tools.compact import compact
    from pipeline.tools.diff import diff
    from pipeline.tools.export.run import export
    from pipeline.tools.files import files
    from pipeline.tools.rejects import rejects
    from pipeline.tools.report.report import report
    from pipeline.tools.search import search
    from pipeline.tools.trace import trace
    from pipeline.tools.vacuum import vacuum
    from pipeline.tools.verify.verification import verify

    __version__: str
    Spec: TypeAlias = JobSpec | Mapping[str, Any] | str | os.PathLike[str]

__all__ = [
    "ClusterError",
    "CommitConflict",
    "CorpusEmbedError",
    "FullRefreshNeeded",
    "InputError",
    "InternalError",
    "JobSpec",
    "LeaseHeld",
    "ModelError",
    "OutputError",
    "ShardChanged",
    "ShardDamaged",
    "SpecError",
    "StorageError",
    "TooManyDeletions",
    "TooManyPartitions",
    "TooManyRejects",
    "TooMuchDamage",
    "WorkerError",
    "changes",
    "compact",
    "diff",
    "export",
    "files",
    "load_spec",
    "open_dataset",
    "plan",
    "read_vectors",
    "rejects",
    "report",
    "run",
    "search",
    "trace",
    "vacuum",
    "verify",
]

_LAZY = {
    "JobSpec": "pipeline.job.spec",
    "load_spec": "pipeline.job.spec",
    "open_dataset": "pipeline.output.dataset",
    "read_vectors": "pipeline.output.dataset",
    "changes": "pipeline.output.change_feed",
    "compact": "pipeline.tools.compact",
    "diff": "pipeline.tools.diff",
    "export": "pipeline.tools.export.run",
    "files": "pipeline.tools.files",
    "rejects": "pipeline.tools.rejects",
    "report": "pipeline.tools.report.report",
    "search": "pipeline.tools.search",
    "trace": "pipeline.tools.trace",
    "vacuum": "pipeline.tools.vacuum",
    "verify": "pipeline.tools.verify.verification",
}


def plan(spec: Spec, *, address: str | None = None) -> Plan:
    """What a run of `spec` would do: shards, parts to do, done and stale, bytes. Writes nothing.

    spec: a JobSpec, its fields as a mapping, or the path of its YAML file. address: the Ray cluster
    whose device `runtime.device: auto` stands for; with a device in the spec, Ray is not imported.
    Raises SpecError, ModelError, InputError, OutputError or StorageError.
    """
    job_spec = _job_spec(spec)
    from pipeline.driver.cluster.job_plan import plan_job

    return plan_job(job_spec, address)


def run(
    spec: Spec,
    *,
    address: str | None = None,
    watch: Watch | None = None,
    on_plan: Callable[[Plan], None] | None = None,
    nominal_time: datetime.datetime | None = None,
    full_refresh: bool = False,
    limit: int | None = None,
    max_seconds: float | None = None,
    max_cost: float | None = None,
) -> Result:
    """Embed what is missing and commit a snapshot; where nothing is missing, do nothing.

    spec: as in `plan`. address: a Ray cluster; by default RAY_ADDRESS, otherwise one is started on
    this machine. watch(progress, notes): called about twice a second; without it a notebook shows a
    bar, and a script nothing but notes in Python's log. on_plan: called with each plan before work
    begins. nominal_time: the scheduled time that the run is for, kept in the
    snapshot. full_refresh: whether the whole content of the output may be replaced, another job's,
    or this one's with other vectors; without it such a run raises FullRefreshNeeded before any
    work. limit: embed only the first so many records of the input, in the order of its listing,
    into an output of their own, `result.plan.job.spec.output.uri`, which can be deleted at once.
    max_seconds, max_cost (dollars, see `driver/estimate/prices.yaml`): what the run may use; before
    that is used up it begins no more parts, commits what is finished, and says in `result.left`
    what is left. Returns a Result: `snapshot`, `embedded` (False when everything was done before),
    `rows` (numbers of rows carried, reused, embedded, removed, rejected), `progress`, `plan`.
    Raises any error of this package; after it, the same call resumes where this one stopped.
    """
    job_spec = _job_spec(spec)  # before Ray is imported: a wrong spec fails in milliseconds
    from pipeline.driver.budget import Budget
    from pipeline.driver.cluster.on_ray import run as run_on_ray

    return run_on_ray(
        job_spec,
        address=address,
        watch=watch,
        on_plan=on_plan,
        nominal_time=nominal_time,
        full_refresh=full_refresh,
        limit=limit,
        budget=None if max_seconds is max_cost is None else Budget(max_seconds, max_cost),
    )


def _job_spec(spec: Spec) -> JobSpec:
    from pipeline.job.spec import JobSpec, load_spec, spec_from

    if isinstance(spec, JobSpec):
        return spec
    return spec_from(dict(spec)) if isinstance(spec, Mapping) else load_spec(os.fspath(spec))


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value = importlib.import_module("importlib.metadata").version("corpus-embed")
    elif name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
