"""The whole flow of a job on one screen: plan ─► execute ─► check ─► snapshot ─► publish.

In: a resolved Job, the Store of its output, and a function that executes a plan: on Ray
(`pipeline/driver/cluster/on_ray.py`), or in this process in tests. Out: a `Result` with the
snapshot that is live afterwards. A run can be killed at any moment and started again: what has a
manifest stays done, and the next plan asks for the rest. Cost: that of the plan, the execution and
the commit. Ray is not imported here.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.driver.attempt import attempt_facts, what_came
from pipeline.driver.budget import Budget, Left, left_of
from pipeline.driver.commits import commit_finished, finish
from pipeline.driver.estimate.rates import Rate, rates_of
from pipeline.driver.limits import check_plan
from pipeline.driver.planning.plan import Plan, make_plan
from pipeline.driver.planning.remaining_bytes import remaining_of
from pipeline.driver.planning.splits import missing
from pipeline.driver.planning.tally import row_counts
from pipeline.driver.planning.trial import limited
from pipeline.errors import InputError
from pipeline.job.resolve import Job
from pipeline.observe.live_record import recorded
from pipeline.observe.openlineage import reported
from pipeline.observe.progress import COMMITTING, PLANNING, PUBLISHING, Progress
from pipeline.output import lake, work
from pipeline.output.companions import update_companions
from pipeline.output.damage import DamagedShard, damaged_shards
from pipeline.output.run_folder import create_run, record_attempt
from pipeline.output.snapshots import load_manifests
from pipeline.read.input.shards import Listing
from pipeline.storage.addresses import shown
from pipeline.storage.failpoints import failpoint
from pipeline.storage.lineage import Manifest, Snapshot
from pipeline.storage.store import Store
from pipeline.storage.words import agreeing, by_name, counted

MAX_ROUNDS = 3
"""How often a run plans again because shards changed while it read them, before it gives up."""

Execute = Callable[[Plan], Mapping[str, float]]
"""Does the missing splits of a plan and returns once every part of them is written. Its result is
what did the work, in units of Ray (CPU, GPU, memory), for the record of the run."""


@dataclasses.dataclass(frozen=True, repr=False)
class Result:
    """What a run did. embedded: False when everything was done before. rows: see `row_counts`.
    damaged: shards of the snapshot that could not be read to their end. rates: how fast its workers
    embedded. estimate: what was foretold of this run, None where nothing was; truth: what came of
    it, under the same names. left: what is still to do because the budget of the run ended."""

    plan: Plan
    snapshot: Snapshot
    progress: Progress
    embedded: bool
    rows: dict[str, int]
    damaged: Sequence[DamagedShard] = ()
    tables_behind: Sequence[str] = ()
    rates: Sequence[Rate] = ()
    estimate: Mapping[str, Any] | None = None
    truth: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    left: Left | None = None

    def __repr__(self) -> str:
        """The snapshot and the rows in a line: plan and snapshot have thousands of parts."""
        head = self.snapshot
        rows = f"{counted(head.n_rows, 'row')} from {counted(head.n_documents, 'document')}"
        done = by_name(self.rows) or "no rows"
        place = shown(self.plan.job.spec.output.uri)
        return f"<Result: snapshot {head.number} of {place}, {rows}; this run: {done}>"


def run_job(
    job: Job,
    store: Store,
    execute: Execute,
    progress: Progress,
    *,
    on_plan: Callable[[Plan], None] | None = None,
    nominal_time: datetime.datetime | None = None,
    full_refresh: bool = False,
    foretold: Callable[[], Mapping[str, Any] | None] = lambda: None,
    listing: Listing | None = None,
    limit: int | None = None,
    budget: Budget | None = None,
) -> Result:
    """Execute what is missing and commit a snapshot, which records `nominal_time`, the time for
    which a scheduler started the run.

    progress: the figures that `execute` adds to. on_plan: called with each plan before work begins.
    full_refresh: whether a whole output may be replaced. foretold: the estimate of the run, asked
    for once it has ended (see `driver/estimate`). listing: of the input, for the first plan, where
    there is one already. limit: do the first so many records alone, see `make_plan`. budget: once
    `execute` has used it up, what is finished is committed. Raises FullRefreshNeeded, InputError,
    StorageError, TooManyRejects, TooMuchDamage, TooManyDeletions or CommitConflict, and what
    `execute` raises; after any of them the same call resumes where this one stopped.
    """
    lake.ask_catalog(store, job.spec.publish, is_plan=False)
    if limit is not None:
        job = limited(job, limit)
    with (
        reported(job, nominal_time, limit) as lineage,
        work.under_way(store, "run", job.fingerprint),
    ):

        def on_each_plan(plan: Plan) -> None:
            lineage.planned(plan.run_id, plan.shards)
            if on_plan:
                on_plan(plan)

        terms = _Terms(on_each_plan, nominal_time, full_refresh, foretold, listing, limit, budget)
        result = _run_marked(job, store, execute, progress, terms)
        lineage.finished(
            store,
            result.snapshot,
            result.rows,
            embedded=result.embedded,
            elapsed_s=progress.elapsed_s,
        )
        return result


@dataclasses.dataclass(frozen=True)
class _Terms:
    """What `run_job` is asked beside the job."""

    on_plan: Callable[[Plan], None]
    nominal_time: datetime.datetime | None
    full_refresh: bool
    foretold: Callable[[], Mapping[str, Any] | None]
    listing: Listing | None
    limit: int | None
    budget: Budget | None


def _run_marked(
    job: Job, store: Store, execute: Execute, progress: Progress, terms: _Terms
) -> Result:
    embedded = False
    resources: Mapping[str, float] = {}
    for number in range(MAX_ROUNDS):
        progress.enter(PLANNING)
        plan = make_plan(job, store, terms.limit, terms.listing if number == 0 else None)
        terms.on_plan(plan)
        if plan.nothing_to_do and plan.head:
            update_companions(store, job.spec)
            tables = lake.bring_up(store, job.spec.publish)
            rows = row_counts(store, plan.live, plan.done)
            damaged = damaged_shards(plan.done)
            return Result(plan, plan.head, progress, embedded, rows, damaged, _behind(tables))
        check_plan(plan, terms.full_refresh)
        splits = [todo.split for todo in plan.todo]
        create_run(store, plan.run_id, job.spec.to_yaml().encode(), splits)
        failpoint("after_plan")
        with recorded(store, plan.run_id, job.spec.name, progress):
            if plan.todo:
                progress.remaining = remaining_of(plan)
                embedded = True
                resources = execute(plan)
            progress.enter(COMMITTING)
            manifests = load_manifests(store, job.fingerprint, plan.done)
            unfinished = missing(plan.todo, manifests)
            is_over = bool(unfinished and terms.budget and terms.budget.is_used)
            if not unfinished or is_over:
                return _ended(plan, store, progress, manifests, resources, terms, is_over=is_over)
    raise InputError(
        f"{counted(len(unfinished), 'split')} {agreeing(len(unfinished), 'is', 'are')} unfinished "
        f"after {MAX_ROUNDS} plans, the first one of "
        f"{shown(unfinished[0].spans[0].shard.uri)}: its shards keep changing while they are read. "
        "Run again when the input no longer changes and is the same on every node; nothing "
        "finished is lost."
    )


def _ended(
    plan: Plan,
    store: Store,
    progress: Progress,
    manifests: Sequence[Manifest],
    resources: Mapping[str, float],
    terms: _Terms,
    *,
    is_over: bool,
) -> Result:
    """Commit, record and publish what a plan has made. is_over: whether its budget ended it before
    all was done; then nothing is published, and the head stays where the parts would not only add
    to it."""
    job = plan.job
    parts = plan.parts_of(manifests)
    left = None
    if not is_over:
        snapshot = finish(plan, store, parts, terms.nominal_time, terms.full_refresh)
    else:
        assert terms.budget is not None  # noqa: S101 - for mypy: only a budget can be over
        left = left_of(plan, progress, terms.budget)
        if plan.stale and plan.head:
            snapshot, parts = plan.head, list(plan.live)
        else:
            snapshot = commit_finished(plan, store, parts)
    rows = row_counts(store, plan.live, parts)
    damaged = damaged_shards(parts)
    facts = attempt_facts(plan, progress, snapshot, resources, rows, damaged, terms.nominal_time)
    done_ids = {part.part_id for part in plan.done}
    rates = rates_of([part for part in parts if part.part_id not in done_ids], job)
    estimate = None if is_over else terms.foretold()
    truth = what_came(progress)
    facts |= {
        "rates": [dataclasses.asdict(rate) for rate in rates],
        "estimate": estimate,
        "truth": truth,
    }
    record_attempt(store, plan.run_id, facts)
    update_companions(store, job.spec)
    progress.enter(PUBLISHING)
    tables = [] if is_over else lake.bring_up(store, job.spec.publish)
    return Result(
        plan=plan,
        snapshot=snapshot,
        progress=progress,
        embedded=bool(plan.todo),
        rows=rows,
        damaged=damaged,
        tables_behind=_behind(tables),
        rates=rates,
        estimate=estimate,
        truth=truth,
        left=left,
    )


def _behind(tables: Sequence[lake.Outcome]) -> list[str]:
    """A sentence for each table that could not be brought up to the snapshot."""
    return [f"{table.name} is behind: {table.error}" for table in tables if table.error]
