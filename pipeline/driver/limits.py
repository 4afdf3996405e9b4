"""The limits of a spec on what a run can lose: rejected records, and documents that disappear.

`check_plan` is called before anything is embedded, `check_rejects` during a run, and `check_parts`
before the commit. Each returns nothing, or raises the error that keeps a snapshot from being made.
Cost: a pass over the manifests.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.driver.plan import Plan
from pipeline.errors import TooManyDeletions, TooManyRejects
from pipeline.job.spec import JobSpec
from pipeline.storage import layout
from pipeline.storage.addresses import shown
from pipeline.storage.lineage import Manifest


def check_plan(plan: Plan) -> None:
    """Raises TooManyDeletions when the input, by a generous estimate, has too few documents."""
    _check_deletions(plan, plan.changes.max_documents, "the input now has at most")


def check_parts(plan: Plan, parts: Sequence[Manifest]) -> None:
    """Raises TooManyRejects or TooManyDeletions for the parts of the next snapshot."""
    n_records = sum(part.n_records for part in parts)
    n_rejects = sum(part.n_rejects for part in parts)
    check_rejects(plan.job.spec, n_records, n_rejects)
    n_documents = sum(part.n_documents for part in parts)
    _check_deletions(plan, n_documents, "the next one would have")


def check_rejects(spec: JobSpec, n_records: int, n_rejects: int) -> None:
    """Raises TooManyRejects."""
    limit = spec.runtime.max_reject_fraction
    if n_rejects > limit * n_records:
        raise TooManyRejects(
            f"{n_rejects} of {n_records} records were rejected ({n_rejects / n_records:.1%}; "
            f"runtime.max_reject_fraction allows {limit:.1%}). The reasons are in "
            f"{shown(spec.output.uri)}/{layout.REJECTS}. Fix the input or the spec, or raise "
            "the limit, and run again: finished parts stay finished. No snapshot was made."
        )


def _check_deletions(plan: Plan, n_documents: int, source: str) -> None:
    """source: the words before `n_documents` in the message."""
    spec = plan.job.spec
    head = plan.head
    limit = spec.runtime.max_delete_fraction
    if head is not None and head.n_documents - n_documents > limit * head.n_documents:
        raise TooManyDeletions(
            f"{shown(spec.output.uri)}: snapshot {head.number} has {head.n_documents} documents, "
            f"and {source} {n_documents}. runtime.max_delete_fraction allows {limit:.1%} fewer. If "
            "the input is meant to shrink, run again with --set runtime.max_delete_fraction=1; "
            "otherwise fix input.uri or the input. No snapshot was made."
        )
