"""The limits of a spec on what a run may lose: records that are rejected, and documents that leave.

In: counts. Out: nothing, or the error that keeps a snapshot from being made. Cost: none.
"""

from __future__ import annotations

from pipeline.errors import TooManyDeletions, TooManyRejects
from pipeline.job.spec import JobSpec
from pipeline.storage import layout
from pipeline.storage.addresses import shown
from pipeline.storage.lineage import Snapshot


def check_deletions(spec: JobSpec, head: Snapshot | None, n_documents: int, found: str) -> None:
    """Stop a run whose next snapshot has `n_documents`, too few beside the head. `found`: who says so. Raises
    TooManyDeletions."""
    limit = spec.runtime.max_delete_fraction
    if head is not None and head.n_documents - n_documents > limit * head.n_documents:
        raise TooManyDeletions(
            f"{shown(spec.output.uri)}: snapshot {head.number} has {head.n_documents} documents, {found} {n_documents}. "
            f"runtime.max_delete_fraction allows {limit:.1%} fewer. If the input is meant to shrink, run again with "
            "--set runtime.max_delete_fraction=1; else mend input.uri or the input. No snapshot was made."
        )


def check_rejects(spec: JobSpec, records: int, rejects: int) -> None:
    limit = spec.runtime.max_reject_fraction
    if rejects > limit * records:
        raise TooManyRejects(
            f"{rejects} of {records} records were rejected ({rejects / records:.1%}; runtime.max_reject_fraction allows "
            f"{limit:.1%}). Reasons are in {shown(spec.output.uri)}/{layout.all_rejects()}. Mend the input or the spec, or raise "
            "the limit and run again: finished parts stay finished. No snapshot was made."
        )
