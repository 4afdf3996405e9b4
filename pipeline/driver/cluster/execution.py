"""A plan on a Ray cluster: splits ─► PrepareParts ─► EmbedParts ─► PartSink, as one Ray Dataset.

In: a plan, and the Ray that this process is connected to. Out: files and manifests in the store of
the output. Method: actors hold tokenizers and engines, each part is one block, and nothing is
decided from what Ray returns: what counts as done is what has a manifest. Cost: 18 ms of the driver
for each part (benchmarks/RESULTS.md).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.driver.budget import Budget
from pipeline.driver.cluster.blocks import blocks_of
from pipeline.driver.cluster.connection import is_own
from pipeline.driver.cluster.devices import pool_sizes
from pipeline.driver.cluster.own_errors import own_error
from pipeline.driver.cluster.own_ray import in_driver
from pipeline.driver.cluster.totals import Totals
from pipeline.driver.cluster.watch import watching
from pipeline.driver.planning.plan import Plan
from pipeline.driver.planning.pools import Pools
from pipeline.driver.showing import Watch
from pipeline.job.resolve import Job
from pipeline.observe.progress import STARTING, Progress
from pipeline.output.text_index import build_segment, update_index
from pipeline.storage.lineage import Manifest
from pipeline.storage.store import Store
from pipeline.tokenize import load_tokenizer
from pipeline.workers.stages import EmbedParts, PartSink, PrepareParts

MAX_TRIES = 20
"""How often a task is started again because its worker died. Ray's default is unlimited, which
turns a crash into an endless loop.

A task that kills its worker does so `reports.CAREFUL_AFTER` times; up to three others on that
worker die with it.
"""
MAX_RESTARTS = 10_000
"""How often an actor is started again: practically always, since each time a task died, or the
actor while it loaded, and both have limits of their own.

Ray 2.60 takes it only as `**ray_remote_args`, whose removal is announced for 2.64: hence `ray<2.64`
in pyproject.toml.
"""
MAX_WAIT_S = 6 * 3600
"""How long a run waits while no block moves before it gives up: nodes can take long to start, and a
part can take an hour on a CPU."""


def execute(
    plan: Plan, store: Store, progress: Progress, watch: Watch, budget: Budget | None = None
) -> Mapping[str, float]:
    """Run the missing splits of a plan through Ray Data; returns when every part is written, with
    what the cluster has in units of Ray (CPU, GPU, memory)."""
    job = plan.job
    progress.enter(STARTING)
    context = DataContext.get_current()
    # every part is a block of its own, however small (docs/design.md)
    context.target_max_block_size = 1 << 10
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = MAX_WAIT_S
    context.execution_options.preserve_order = False
    pools = pool_sizes(job, len(plan.todo), plan.todo_parts)
    beside_driver = NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    retries = {"max_restarts": MAX_TRIES, "max_task_retries": MAX_TRIES}
    totals = (
        ray.remote(Totals)
        .options(num_cpus=0, scheduling_strategy=beside_driver, **retries)
        .remote()
    )
    side_actors = in_driver() if is_own() else contextlib.nullcontext()
    with watching(plan, store, totals, progress, watch, budget) as stop, side_actors:
        try:
            parts = _embedded_parts(plan, store, totals, pools, budget is not None)
            writer = {"num_cpus": pools.writers.cpus, "max_retries": MAX_TRIES}
            parts.write_datasink(
                PartSink(job, store, totals),
                ray_remote_args=writer,
                concurrency=pools.writers.max_workers,
            )
        except (Exception, KeyboardInterrupt) as error:
            raise stop.error or own_error(error) from error
    return cast(Mapping[str, float], ray.cluster_resources())


def _embedded_parts(
    plan: Plan, store: Store, totals: Any, pools: Pools, has_budget: bool
) -> ray.data.Dataset:
    """The stages up to the vectors. Lazy: nothing runs yet, except for the update of the index of
    texts."""
    job = plan.job
    stage: dict[str, Any] = {
        "batch_size": 1,
        "batch_format": "pyarrow",
        "zero_copy_batch": True,
        "max_restarts": MAX_RESTARTS,
        "max_task_retries": MAX_TRIES,
        # Ray Data's own "SPREAD" also puts tokenizers on GPU nodes
        "scheduling_strategy": "DEFAULT",
    }
    on_gpu = job.engine.device == "cuda"
    # on a GPU the next part is queued behind this one; on a CPU the embedder that is ready first
    # would keep parts from the others
    n_calls = 2 if on_gpu else 1
    blocks = blocks_of(plan.todo)
    # each split of a block may kill its worker
    tries = MAX_TRIES * max(block.num_rows for block in blocks)
    index_segments = update_index(
        store,
        job.fingerprint,
        plan.earlier,
        functools.partial(_build_index, store, job.fingerprint),
    )
    return (
        # from_arrow would have each block looked at by a task
        ray.data.from_blocks(blocks)
        .map_batches(
            PrepareParts,
            fn_constructor_args=(job, plan.run_id, totals, store, index_segments, has_budget),
            compute=ActorPoolStrategy(
                min_size=pools.tokenizers.min_workers,
                max_size=pools.tokenizers.max_workers,
                max_tasks_in_flight_per_actor=2,
            ),
            num_cpus=pools.tokenizers.cpus,
            **{**stage, "max_task_retries": tries},
        )
        .map_batches(
            EmbedParts,
            fn_constructor_args=(
                *(job, store, _prompt_tokens(job), pools.embedders.threads, totals),
                has_budget,
            ),
            compute=ActorPoolStrategy(
                min_size=pools.embedders.min_workers,
                max_size=pools.embedders.max_workers,
                # with fewer than 1.75 times the calls the pool never counts as busy, nor grows
                max_tasks_in_flight_per_actor=2 * n_calls,
                max_concurrent_calls_per_actor=n_calls,
                enable_true_multi_threading=on_gpu,
            ),
            num_cpus=pools.embedders.cpus,
            num_gpus=pools.embedders.gpus,
            **stage,
        )
    )


def _prompt_tokens(job: Job) -> int:
    """Leading ids of the prompt, which some models leave out of their pooling. Asked once, here:
    embedders then load no tokenizer. The models that pool the prompt cost nothing: for the others
    the driver loads a tokenizer before any worker starts."""
    if not job.prompt or job.engine.include_prompt:
        return 0
    tokenizer = load_tokenizer(job.model_of_driver(), max_tokens=job.max_tokens, prompt=job.prompt)
    return tokenizer.prompt_tokens


def _build_index(store: Store, fingerprint: str, groups: Sequence[Sequence[Manifest]]) -> None:
    task = ray.remote(build_segment)
    ray.get([task.remote(store, fingerprint, group) for group in groups])
