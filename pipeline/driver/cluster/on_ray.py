"""A run on Ray: the loop of `run.py` with what executes its plans.

In: a JobSpec and the address of a cluster. Out: the `Result` of the loop. Method: a plan that has
something to do connects to Ray, or starts one, and is given to `execution.py`. Until then nothing
of Ray is imported, which takes a second: a wrong spec, or a run with nothing to do, ends before.
"""

from __future__ import annotations

import datetime
import functools
import importlib
from collections.abc import Callable, Mapping

from pipeline.driver.beside import Beside
from pipeline.driver.budget import Budget
from pipeline.driver.cluster.connection import connect
from pipeline.driver.cluster.job_plan import device_of
from pipeline.driver.estimate.forecast import Estimate
from pipeline.driver.interrupts import held_back
from pipeline.driver.notebook import default_watch
from pipeline.driver.planning.first_records import first_records
from pipeline.driver.planning.places import check_dtype, is_alone, output_of
from pipeline.driver.planning.plan import Plan
from pipeline.driver.planning.trial import trial_of
from pipeline.driver.run import Result, run_job
from pipeline.driver.showing import Watch, count_retry, shielded
from pipeline.job.resolve import resolve
from pipeline.job.spec import JobSpec
from pipeline.observe.progress import CONNECTING, DONE, Progress
from pipeline.read.input.shards import Listing
from pipeline.read.pages import text_formats
from pipeline.storage.notes import listen_to_notes
from pipeline.storage.retry import listen_to_retries


def run(
    spec: JobSpec,
    *,
    address: str | None = None,
    watch: Watch | None = None,
    on_plan: Callable[[Plan], None] | None = None,
    nominal_time: datetime.datetime | None = None,
    full_refresh: bool = False,
    limit: int | None = None,
    budget: Budget | None = None,
    on_estimate: Callable[[Estimate], None] | None = None,
) -> Result:
    """Embed what is missing on a cluster and commit a snapshot.

    limit: embed the first so many records alone, into an output of their own (`trial_of`), which
    the result names. budget: what the run may use, see `Budget`. watch: called twice a second with
    figures, and with notes on what the run waits for; see `default_watch`. on_estimate: called with
    the estimate of the run, once it is there. Raises SpecError, ModelError, ClusterError, and what
    `run_job` raises; after any of them the same command resumes where this one stopped.
    """
    if limit is not None:
        spec = trial_of(spec, address)
    beside = Beside(is_alone(address), on_estimate)
    watch = shielded(beside.shown_by(watch or default_watch()))
    progress = Progress(on_change=lambda: watch(progress, []))
    listen_to_retries(functools.partial(count_retry, progress))
    listen_to_notes(lambda note: watch(progress, [note]))
    store = output_of(spec)
    store.check_conditional_put(is_partitioned=bool(spec.output.partition_by))
    device = device_of(spec, address)
    check_dtype(spec, device, address)
    listing = Listing(spec.input)
    job = resolve(spec, device, text_formats(spec.input, listing))

    def execute_on_cluster(plan: Plan) -> Mapping[str, float]:
        first_records(plan)  # a mistake of the spec costs no start of workers
        if limit is None:
            beside.prepare(plan, store)
        progress.enter(CONNECTING)
        # a fork of a process that has a CUDA context has none that works
        connect(address, meanwhile=_import_execution, is_forking=job.engine.device == "cpu")
        with held_back():
            from pipeline.driver.cluster.devices import devices_of
            from pipeline.driver.cluster.execution import execute
        if budget:
            budget.check(progress, lambda: devices_of(job))  # a device has no price
        return execute(plan, store, progress, watch, budget)

    result = run_job(
        job,
        store,
        execute_on_cluster,
        progress,
        on_plan=on_plan,
        nominal_time=nominal_time,
        full_refresh=full_refresh,
        foretold=beside.record,
        listing=listing,
        limit=limit,
        budget=budget,
    )
    if limit is None:
        beside.remember(result)
    progress.enter(DONE)
    return result


def _import_execution() -> None:
    importlib.import_module("pipeline.driver.cluster.execution")
