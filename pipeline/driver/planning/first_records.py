"""The first records of an input, before any work: a spec that does not fit it is refused at once.

A plan comes in, a preview of each format that it reads comes out (`pipeline/read/preview.py`).
Cost: one opened shard per format.
"""

from __future__ import annotations

from pipeline.driver.planning.plan import Plan
from pipeline.errors import SpecError
from pipeline.read.preview import Preview, previews


def first_records(plan: Plan) -> list[Preview]:
    """One preview for each format of the shards that a plan reads; none if nothing is to be read.

    Raises SpecError where a run would end with an error, and where no shard that was looked at has
    a record to embed although the spec limits rejects.
    """
    spec = plan.job.spec
    shards = {span.shard for todo in plan.todo for span in todo.split.spans}
    entries = previews(sorted(shards, key=lambda shard: shard.uri), spec.input)
    for entry in entries:
        if entry.is_error:
            raise SpecError(str(entry.problem))
        if entry.is_mistake and spec.runtime.max_reject_fraction < 1:
            raise SpecError(
                f"{entry.problem}. No record that was looked at can be embedded, of the first, the "
                "middle and the last shard. Fix the spec or the input; with "
                "runtime.max_reject_fraction 1 the run starts anyway."
            )
    return entries
