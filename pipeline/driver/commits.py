"""Finished parts of a plan become a snapshot: all of them at its end, or those that there are.

In: a plan, the store of its output, and manifests. Out: a snapshot, with its dataset card.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from pipeline.driver.limits import check_parts
from pipeline.driver.planning.plan import Plan
from pipeline.output.companions import update_companions
from pipeline.output.id_index import count_duplicate_ids
from pipeline.output.snapshots import commit_snapshot, load_manifests
from pipeline.storage.lineage import Manifest, Snapshot
from pipeline.storage.store import Store


def commit_finished(plan: Plan, store: Store, parts: Sequence[Manifest]) -> Snapshot:
    """Make finished parts readable before all are done, where that only adds to the head."""
    snapshot = commit_snapshot(
        store,
        parts,
        run_id=plan.run_id,
        fingerprint=plan.job.fingerprint,
        parent=plan.head,
        complete=False,
    )
    update_companions(store, plan.job.spec)
    return snapshot


def finish(
    plan: Plan,
    store: Store,
    parts: Sequence[Manifest],
    nominal_time: datetime.datetime | None = None,
    full_refresh: bool = False,
) -> Snapshot:
    """Check the finished parts of a whole plan and make them the head.

    Raises TooManyRejects, TooMuchDamage, TooManyDeletions or CommitConflict.
    """
    check_parts(plan, store, parts, full_refresh)
    n_duplicate_ids = None
    if plan.job.spec.input.id_column is not None:
        n_duplicate_ids = count_duplicate_ids(store, parts)
    return commit_snapshot(
        store,
        parts,
        run_id=plan.run_id,
        fingerprint=plan.job.fingerprint,
        parent=plan.head,
        complete=True,
        n_duplicate_ids=n_duplicate_ids,
        nominal_time=nominal_time,
    )


def finished_parts(plan: Plan, store: Store) -> list[Manifest]:
    """The parts of the planned content that have a manifest by now."""
    return plan.parts_of(load_manifests(store, plan.job.fingerprint, plan.done))


def waiting_parts(plan: Plan, store: Store) -> list[Manifest]:
    """The finished parts of the planned content that the head does not have: what a run that was
    stopped leaves to the next one."""
    live_ids = {part.part_id for part in plan.live}
    return [part for part in finished_parts(plan, store) if part.part_id not in live_ids]
