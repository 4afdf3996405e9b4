"""The whole flow of a job on one screen: preflight ─► plan ─► Ray Data ─► check ─► snapshot.

In: a JobSpec. Out: a `Result` with the snapshot that is live afterwards. A run may be killed at any
moment and started again: what has a manifest stays done, and the next plan asks for the rest. Only
`execute` needs a Ray cluster.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline import errors
from pipeline.driver.cluster import Pools, connect, device_of, pool_sizes
from pipeline.driver.limits import check_parts, check_plan
from pipeline.driver.plan import Plan, make_plan, missing
from pipeline.driver.tally import attempt_facts, row_counts
from pipeline.driver.watch import Totals, Watch, log_notes, show_retry, watching
from pipeline.errors import CorpusEmbedError, InputError
from pipeline.job.resolve import Job, resolve
from pipeline.job.spec import JobSpec
from pipeline.output import dataset, lake
from pipeline.output.run_folder import create_run, record_attempt
from pipeline.output.snapshots import commit_snapshot, load_manifests
from pipeline.output.text_index import build_run, update_index
from pipeline.read.parts import Todo
from pipeline.storage.addresses import shown
from pipeline.storage.failpoints import failpoint
from pipeline.storage.lineage import Manifest, Snapshot
from pipeline.storage.retry import tell_retries
from pipeline.storage.store import Store
from pipeline.tokenize import load_tokenizer
from pipeline.workers.metrics import Progress
from pipeline.workers.stages import EmbedParts, PartSink, PrepareParts

MAX_ROUNDS = 3
"""How often a run plans again because shards changed under it, before it gives up."""
MAX_TRIES = 20
"""How often a task is started again because its worker died. Ray's own default is for ever, which
turns a crash into a loop.

A task that kills its worker does so `reports.CAREFUL_AFTER` times; up to three others on that worker
die with it.
"""
MAX_RESTARTS = 10_000
"""How often an actor is started again. Each time a task died, or the actor while loading, and both
have their limit.

Ray 2.60 takes it only as `**ray_remote_args`, announced to go in 2.64: hence `ray<2.64` in
pyproject.toml.
"""
MAX_BLOCKS = 4096
"""Blocks that Ray Data is given: each costs the driver 48 KB and a millisecond before the first one
is worked on."""
MAX_WAIT_S = 6 * 3600
"""How long no block may move before a run gives up: nodes may be long in coming, and a part may
take an hour on a CPU."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run did. `embedded` is False when everything was done before. rows: see `row_counts`."""

    plan: Plan
    snapshot: Snapshot
    progress: Progress
    embedded: bool
    rows: dict[str, int]


def run(
    spec: JobSpec,
    *,
    address: str | None = None,
    watch: Watch | None = None,
    on_plan: Callable[[Plan], None] | None = None,
    nominal_time: datetime.datetime | None = None,
) -> Result:
    """Embed what is missing and commit a snapshot, which records the `nominal_time` that a
    scheduler gave the run.

    watch: called twice a second with figures, and with notes on what the run waits for; by default
    these are logged. Raises SpecError, ModelError, InputError, StorageError, TooManyRejects,
    TooManyDeletions or CommitConflict; after any of them the same command goes on where this one
    stopped.
    """
    progress, embedded, watch = Progress(), False, watch or log_notes
    tell_retries(functools.partial(show_retry, progress, watch))
    store = Store(spec.output.uri, spec.output.storage_options)
    store.check_conditional_put()
    job = resolve(spec, device_of(spec, address))
    for _round in range(MAX_ROUNDS):
        plan = make_plan(job, store)
        if on_plan:
            on_plan(plan)
        if plan.nothing_to_do and plan.head:
            lake.publish(store, spec.publish)
            return Result(
                plan, plan.head, progress, embedded, row_counts(store, plan.live, plan.done)
            )
        check_plan(plan)
        create_run(store, plan.run_id, job.spec, [todo.split for todo in plan.todo])
        failpoint("after_plan")
        if plan.todo:
            connect(address)
            progress.bytes_todo, embedded = plan.todo_bytes, True
            execute(plan, store, progress, watch)
        finished = load_manifests(store, job.fingerprint, plan.done)
        if not missing(plan, finished):
            parts = plan.parts_of(finished)
            snapshot = finish(plan, store, parts, nominal_time)
            rows = row_counts(store, plan.live, parts)
            resources = ray.cluster_resources() if ray.is_initialized() else {}
            record_attempt(
                store,
                plan.run_id,
                attempt_facts(plan, progress, snapshot, resources, rows, nominal_time),
            )
            lake.publish(store, spec.publish)
            return Result(plan, snapshot, progress, embedded, rows)
    left = missing(plan, finished)
    raise InputError(
        f"{len(left)} splits are unfinished after {MAX_ROUNDS} plans, the first one of {shown(left[0].spans[0].shard.uri)}: "
        "its shards keep changing while they are read. Run again when the input is at rest; nothing finished is lost."
    )


def execute(plan: Plan, store: Store, progress: Progress, watch: Watch) -> None:
    """Run the missing splits of a plan through Ray Data; returns when every part is published."""
    job, context = plan.job, DataContext.get_current()
    # every part is a block of its own, however small (docs/design.md)
    context.target_max_block_size = 1 << 10
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = MAX_WAIT_S
    context.execution_options.preserve_order = False
    pools = pool_sizes(job, len(plan.todo), plan.todo_parts)
    beside_driver = NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    again = {"max_restarts": MAX_TRIES, "max_task_retries": MAX_TRIES}
    totals = (
        ray.remote(Totals).options(num_cpus=0, scheduling_strategy=beside_driver, **again).remote()
    )
    with watching(plan, store, totals, progress, watch) as stop:
        try:
            parts = _embedded_parts(plan, store, totals, pools)
            writer = {"num_cpus": pools.writers.cpus, "max_retries": MAX_TRIES}
            parts.write_datasink(
                PartSink(job, store, totals), ray_remote_args=writer, concurrency=pools.writers.most
            )
        except (Exception, KeyboardInterrupt) as error:
            raise stop.error or _own_error(error) from error


def _embedded_parts(plan: Plan, store: Store, totals: Any, pools: Pools) -> ray.data.Dataset:
    """The stages up to the vectors. Lazy: nothing runs yet but what brings the index of texts up to
    date."""
    job = plan.job
    stage: dict[str, Any] = {
        "batch_size": 1,
        "batch_format": "pyarrow",
        "zero_copy_batch": True,
        "max_restarts": MAX_RESTARTS,
        "max_task_retries": MAX_TRIES,
        "scheduling_strategy": "DEFAULT",  # not Ray Data's "SPREAD", which also puts tokenizers on GPU nodes
    }
    blocks = blocks_of(plan.todo)
    # each split of a block may kill its worker
    tries = MAX_TRIES * max(block.num_rows for block in blocks)
    index_runs = update_index(
        store,
        job.fingerprint,
        plan.earlier,
        functools.partial(_build_index, store, job.fingerprint),
    )
    return (
        ray.data.from_arrow(blocks)
        .map_batches(
            PrepareParts,
            fn_constructor_args=(job, plan.run_id, totals, store, index_runs),
            compute=ActorPoolStrategy(
                min_size=pools.tokenizers.workers,
                max_size=pools.tokenizers.most,
                max_tasks_in_flight_per_actor=2,
            ),
            num_cpus=pools.tokenizers.cpus,
            **{**stage, "max_task_retries": tries},
        )
        .map_batches(
            EmbedParts,
            fn_constructor_args=(job, store, _prompt_tokens(job), pools.embedders.threads, totals),
            compute=ActorPoolStrategy(
                min_size=pools.embedders.workers,
                max_size=pools.embedders.most,
                max_tasks_in_flight_per_actor=4,
                # the next part is fetched while this one computes
                max_concurrent_calls_per_actor=2,
            ),
            num_cpus=pools.embedders.cpus,
            num_gpus=pools.embedders.gpus,
            **stage,
        )
    )


def _prompt_tokens(job: Job) -> int:
    """Leading ids of the prompt, which some models leave out of their pooling. Asked once, here:
    embedders then load no tokenizer."""
    if not job.prompt:
        return 0
    tokenizer = load_tokenizer(job.model(), max_tokens=job.max_tokens, prompt=job.prompt)
    return tokenizer.prompt_tokens


def blocks_of(todo: Sequence[Todo]) -> list[pa.Table]:
    """What the dataset starts from, a row a split: `todo` in order, in MAX_BLOCKS blocks at most.

    Blocks that are there already, not `ray.data.range`: its read tasks want a whole CPU each, and
    once the actors hold all but a fraction of the CPUs they wait for ever (Ray 2.60, seen on two
    cores). The splits of a block are done one after another by one tokenizer; the last ones are
    alone in theirs, so that all tokenizers have work to the end.
    """
    alone = MAX_BLOCKS // 2
    n_shared = max(0, len(todo) - alone)
    size = max(1, math.ceil(n_shared / (MAX_BLOCKS - alone)))
    starts = [*range(0, n_shared, size), *range(n_shared, len(todo))]
    return [
        pa.table({"todo": [split.to_json() for split in todo[start:stop]]})
        for start, stop in itertools.pairwise([*starts, len(todo)])
    ]


def _build_index(store: Store, fingerprint: str, groups: Sequence[Sequence[Manifest]]) -> None:
    task = ray.remote(build_run)
    ray.get([task.remote(store, fingerprint, group) for group in groups])


def finish(
    plan: Plan, store: Store, parts: list[Manifest], nominal_time: datetime.datetime | None = None
) -> Snapshot:
    """Check what storage says about the whole plan and make it the head.

    Raises TooManyRejects, TooManyDeletions or CommitConflict.
    """
    check_parts(plan, parts)
    duplicates = None
    if plan.job.spec.input.id_column is not None:
        duplicates = dataset.count_duplicate_ids(store, parts)
    return commit_snapshot(
        store,
        parts,
        run_id=plan.run_id,
        fingerprint=plan.job.fingerprint,
        parent=plan.head,
        complete=True,
        n_duplicate_ids=duplicates,
        nominal_time=nominal_time,
    )


def _own_error(error: BaseException) -> BaseException:
    """The error of ours that Ray wrapped, if there is one: it is what the person has to read."""
    link: BaseException | None = error
    seen: set[int] = set()
    while link is not None and id(link) not in seen:
        if isinstance(link, CorpusEmbedError):
            return link
        # of an error in a constructor, Ray keeps the text alone
        if isinstance(link, ray.exceptions.ActorDiedError):
            name, _, message = str(link).rpartition("\npipeline.errors.")[2].partition(": ")
            if own := getattr(errors, name, None):
                return cast(BaseException, own(message.strip()))
        seen.add(id(link))
        link = getattr(link, "cause", None) or link.__cause__
    return error
