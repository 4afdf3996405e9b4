"""The loop of a run with executions of the test's own, without Ray.

Oracle: the plans that the execution was given, and the documents that the test wrote.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.driver.planning.plan import Plan
from pipeline.driver.run import MAX_ROUNDS, run_job
from pipeline.errors import InputError
from pipeline.observe.progress import Progress
from pipeline.output.snapshots import load_snapshot
from tests.support.outputs import write_shard
from tests.support.stand_in import job_of, make_spec, store_of


def test_splits_that_stay_unfinished_are_planned_again_and_then_end_the_run(tmp_path: Path) -> None:
    write_shard(tmp_path / "in/a.jsonl", [{"id": "1", "text": "one"}])
    spec = make_spec(tmp_path / "in", tmp_path / "out")
    plans: list[Plan] = []

    def finish_nothing(plan: Plan) -> dict[str, float]:
        plans.append(plan)
        return {}

    with pytest.raises(InputError, match=rf"1 split is unfinished after {MAX_ROUNDS} plans"):
        run_job(job_of(spec), store_of(spec), finish_nothing, Progress())
    assert len(plans) == MAX_ROUNDS
    assert load_snapshot(store_of(spec)) is None
