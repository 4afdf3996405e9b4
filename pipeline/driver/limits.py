"""The limits of a spec on what a run can lose: rejected records, input that cannot be read, and
documents that disappear.

`check_plan` is called before anything is embedded, `check_rejects`, `check_damage` and
`check_partitions` during a run, and `check_parts` before the commit. Each returns nothing, or
raises the error that keeps a snapshot from being made. Cost: a pass over the manifests; what
`departures` costs, where more documents change their part than may leave.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pipeline.driver.planning.plan import Plan
from pipeline.errors import (
    FullRefreshNeeded,
    TooManyDeletions,
    TooManyPartitions,
    TooManyRejects,
    TooMuchDamage,
)
from pipeline.output.damage import damage_problem, damaged_shards
from pipeline.output.departures import departures, leaving
from pipeline.output.snapshots import added_up
from pipeline.storage import data_files, layout
from pipeline.storage.addresses import shown
from pipeline.storage.lineage import Manifest
from pipeline.storage.store import Store

MAX_SHOWN = 3
"""How many shards a message names."""


def check_plan(plan: Plan, full_refresh: bool = False) -> None:
    """Raises FullRefreshNeeded when the plan replaces a whole output without `full_refresh`, and
    TooManyDeletions when the input, by a generous estimate, has too few documents."""
    unasked = None if full_refresh else plan.consent_wanted
    if unasked and plan.takeover.owner:
        raise FullRefreshNeeded(unasked)
    head = plan.head
    n_documents = plan.changes.max_documents
    if full_refresh and _replaces_other(plan):
        return
    if head is not None and head.n_documents - n_documents > _max_departures(plan):
        raise _too_many_deletions(plan, f"the input now has at most {n_documents}")
    if unasked:
        raise FullRefreshNeeded(unasked)


def check_parts(
    plan: Plan, store: Store, parts: Sequence[Manifest], full_refresh: bool = False
) -> None:
    """Raises TooMuchDamage, TooManyPartitions, TooManyRejects or TooManyDeletions for the parts of
    the next snapshot."""
    check_damage(plan, store, parts)
    check_partitions(plan, parts)
    check_rejects(plan, store, parts)
    if full_refresh and _replaces_other(plan):
        return
    limit = _max_departures(plan)
    if sum(part.n_documents for part in leaving(plan.live, parts)) <= limit:
        return
    has_ids = plan.job.spec.input.id_column is not None
    by_shard = departures(store, plan.live, parts, has_ids=has_ids)
    n_documents = sum(part.n_documents for part in parts)
    n_fewer = plan.head.n_documents - n_documents if plan.head else 0
    if max(by_shard.total(), n_fewer) > limit:
        raise _too_many_deletions(
            plan,
            f"the next one would have {n_documents}, without {by_shard.total()} of those "
            f"(neither their ids nor their texts are in it): {_most_of(by_shard)}",
        )


def check_damage(plan: Plan, store: Store, parts: Sequence[Manifest]) -> None:
    """Raises TooMuchDamage for parts of the plan, with the cause of the first damage."""
    damaged = damaged_shards(parts)
    limit = plan.job.spec.runtime.max_damaged_fraction
    input_bytes = sum(shard.size_bytes for shard in plan.shards)
    if problem := damage_problem(damaged, len(plan.shards), input_bytes, limit):
        cause = _first_reject(store, parts, "damaged_shard")
        raise TooMuchDamage(
            f"{problem} {cause}Fix these shards or copy them again from where they come from, or "
            "raise the limit, and run again: finished parts stay finished. No snapshot was made."
        )


def check_partitions(plan: Plan, parts: Sequence[Manifest]) -> None:
    """Raises TooManyPartitions."""
    limit = plan.job.spec.runtime.max_partitions
    folders = {layout.partition_folder(file.path) for part in parts for file in part.data_files}
    if len(folders) > limit:
        columns = ", ".join(plan.job.spec.output.partition_by)
        raise TooManyPartitions(
            f"{shown(plan.job.spec.output.uri)}: output.partition_by {columns} makes "
            f"{len(folders)} folders in {len(parts)} parts, for instance {min(folders)}; "
            f"runtime.max_partitions allows {limit}. Partition by a column with fewer values, or "
            "raise the limit, and run again: finished parts stay finished. No snapshot was made."
        )


def check_rejects(plan: Plan, store: Store, parts: Sequence[Manifest]) -> None:
    """Raises TooManyRejects, which says why: the reasons with their numbers, and the first
    reject."""
    spec = plan.job.spec
    n_records = sum(part.n_records for part in parts)
    n_rejects = sum(part.n_rejects for part in parts)
    limit = spec.runtime.max_reject_fraction
    if n_rejects <= limit * n_records:
        return
    reasons = Counter(added_up(part.reject_reasons for part in parts)).most_common()
    raise TooManyRejects(
        f"{n_rejects} of {n_records} records were rejected ({n_rejects / n_records:.1%}; "
        f"runtime.max_reject_fraction allows {limit:.1%}): "
        f"{', '.join(f'{reason} {number}' for reason, number in reasons)}. "
        f"{_first_reject(store, parts, reasons[0][0])}All are in "
        f"{shown(spec.output.uri)}/{layout.REJECTS}. Fix the input or the spec, or raise the "
        "limit, and run again: finished parts stay finished. No snapshot was made."
    )


def _first_reject(store: Store, parts: Sequence[Manifest], reason: str) -> str:
    """A sentence about the first reject for a reason; nothing where its file is gone."""
    for part in sorted(parts, key=lambda part: (part.split.spans[0].shard.uri, part.index)):
        if part.rejects_path is None or reason not in part.reject_reasons:
            continue
        if (data := store.read_or_none(part.rejects_path)) is not None:
            names = ("reason", "source_uri", "source_record", "detail")
            rejects = data_files.read_text(data, *names)
            row = rejects["reason"].index(reason)
            uri, record, detail = (rejects[name][row] for name in names[1:])
            return f"First: {shown(uri)} record {record}: {detail}. "
    return ""


def _replaces_other(plan: Plan) -> bool:
    """Whether the head is another job's, so that its documents are meant to leave."""
    return plan.takeover.owner is not None and plan.takeover.wants_consent


def _max_departures(plan: Plan) -> float:
    n_documents = plan.head.n_documents if plan.head else 0
    return plan.job.spec.runtime.max_delete_fraction * n_documents


def _most_of(by_shard: Counter[str]) -> str:
    names = [f"{number} of {shown(uri)}" for uri, number in by_shard.most_common(MAX_SHOWN)]
    if len(by_shard) > MAX_SHOWN:
        names.append(f"and those of {len(by_shard) - MAX_SHOWN} more shards")
    return ", ".join(names)


def _too_many_deletions(plan: Plan, problem: str) -> TooManyDeletions:
    """problem: the words behind the number of documents that the head has."""
    uri = shown(plan.job.spec.output.uri)
    limit = plan.job.spec.runtime.max_delete_fraction
    head = plan.head
    assert head is not None  # noqa: S101 - for mypy: the caller has compared with the head
    return TooManyDeletions(
        f"{uri}: snapshot {head.number} has {head.n_documents} documents, and {problem}. "
        f"runtime.max_delete_fraction allows that {limit:.1%} of them leave. If they are meant to, "
        "run again with --set runtime.max_delete_fraction=1; otherwise fix input.uri or the input. "
        "No snapshot was made."
    )
