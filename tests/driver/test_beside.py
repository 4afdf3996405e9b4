"""The estimate of a run waits for the first part that is embedded, and the end of a run for it.

Oracle: the number of documents, and the order of the phases.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from pipeline.driver.beside import Beside
from pipeline.driver.cluster.job_plan import plan_job
from pipeline.observe.progress import (
    COMMITTING,
    CONNECTING,
    EMBEDDING,
    LOADING,
    STARTING,
    Progress,
)
from tests.support.outputs import DOCUMENTS, make_spec, write_shard
from tests.support.stand_in import store_of


def is_under_way() -> bool:
    return any(thread.name == "estimate" for thread in threading.enumerate())


def test_an_estimate_begins_with_the_embedding_and_is_there_at_the_end(
    tmp_path: Path, bert_mean_dir: Path
) -> None:
    write_shard(tmp_path / "in/a.jsonl", DOCUMENTS)
    spec = make_spec(str(tmp_path / "in"), str(tmp_path / "out"), bert_mean_dir)
    shown: list[Any] = []
    beside = Beside(True, shown.append)
    watch = beside.shown_by(lambda progress, notes: None)
    progress = Progress(on_change=lambda: watch(progress, []))
    beside.prepare(plan_job(spec), store_of(spec))
    for phase in (CONNECTING, STARTING, LOADING):
        progress.enter(phase)
        assert not is_under_way(), phase
    progress.enter(EMBEDDING)
    record = beside.record()
    assert record
    assert record["documents"] == len(DOCUMENTS)
    progress.enter(COMMITTING)
    assert [estimate.record() for estimate in shown] == [record]


def test_a_run_without_an_embedding_has_no_estimate(tmp_path: Path, bert_mean_dir: Path) -> None:
    write_shard(tmp_path / "in/a.jsonl", DOCUMENTS)
    spec = make_spec(str(tmp_path / "in"), str(tmp_path / "out"), bert_mean_dir)
    beside = Beside(True)
    assert beside.record() is None
    beside.prepare(plan_job(spec), store_of(spec))
    assert beside.record() is None
