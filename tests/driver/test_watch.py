"""The thread beside a run: it outlives its display, and it cannot die without ending the run.

Oracle: what the test makes fail, and the snapshots that are there afterwards. Ray is stood in for
by calls that answer at once.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pipeline.driver.cluster.watch as watch_module
from pipeline.driver.cluster.totals import Taken
from pipeline.driver.cluster.watch import watching
from pipeline.driver.interrupts import is_ours
from pipeline.driver.planning.plan import Plan, make_plan
from pipeline.errors import CorpusEmbedError, TooManyRejects, TooMuchDamage
from pipeline.observe.progress import Progress
from pipeline.output.snapshots import load_snapshot
from pipeline.workers.metrics import finished_part
from tests.support.outputs import write_shard
from tests.support.stand_in import (
    HashEngine,
    job_of,
    make_spec,
    prepared_parts,
    publish_prepared,
    run,
    store_of,
)

ACTOR_LOST = type("RayError", (Exception,), {})


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    exceptions = SimpleNamespace(RayError=ACTOR_LOST)
    monkeypatch.setattr(
        watch_module, "ray", SimpleNamespace(get=lambda value: value, exceptions=exceptions)
    )
    monkeypatch.setattr(watch_module, "POLL_S", 0.02)
    monkeypatch.setenv("RAY_enable_metrics_collection", "0")  # metrics are Ray's


def totals(*takes: Taken) -> Any:
    """An actor whose first answers are given."""
    waiting = list(takes)
    take = SimpleNamespace(remote=lambda: waiting.pop(0) if waiting else Taken())
    return SimpleNamespace(take=take, under_way=SimpleNamespace(remote=list))


def plan_with_one_finished_part(tmp_path: Path, **runtime: Any) -> tuple[Plan, Any, Any]:
    documents = [{"id": str(n), "text": f"text {n} " + "word " * 200} for n in range(4)]
    write_shard(tmp_path / "in/a.jsonl", documents)
    spec = make_spec(tmp_path / "in", tmp_path / "out", runtime={"part_bytes": 1024, **runtime})
    plan, store = make_plan(job_of(spec), store_of(spec)), store_of(spec)
    part = next(prepared_parts(spec, plan))
    return plan, store, publish_prepared(part, plan.job, store, HashEngine())


def watch_for(seconds: float, *arguments: Any) -> None:
    """As `execute` does: work, until watching stops it and says why."""
    try:
        with watching(*arguments):
            for _ in range(int(seconds * 20)):  # a long sleep would not be interrupted
                time.sleep(0.05)
    finally:
        assert is_ours()


def watch_until_committed(plan: Plan, store: Any, *arguments: Any) -> None:
    """Watch until there is a snapshot, a minute at most."""
    with watching(plan, store, *arguments):
        end_s = time.monotonic() + 60
        while load_snapshot(store) is None and time.monotonic() < end_s:
            time.sleep(0.05)


def failing(error: BaseException, times: int) -> Callable[..., None]:
    left = [error] * times

    def watch(progress: Progress, notes: list[str]) -> None:
        if left:
            raise left.pop()

    return watch


@pytest.mark.parametrize(
    "watch",
    [
        failing(OSError(errno.ENOSPC, "No space left on device"), 1),
        failing(BrokenPipeError(errno.EPIPE, "Broken pipe"), 10**6),
        failing(ValueError("I/O operation on closed file"), 10**6),
    ],
)
def test_a_display_that_fails_keeps_no_commit_from_being_made(
    tmp_path: Path, watch: Callable[..., None]
) -> None:
    plan, store, _ = plan_with_one_finished_part(tmp_path, commit_every="0.1s")
    watch_until_committed(plan, store, totals(), Progress(), watch)
    snapshot = load_snapshot(store)
    assert snapshot is not None
    assert (snapshot.complete, snapshot.n_parts) == (False, 1)


def test_the_death_of_the_watcher_ends_the_run_with_a_sentence_after_a_commit(
    tmp_path: Path,
) -> None:
    plan, store, _ = plan_with_one_finished_part(tmp_path, commit_every=None)
    impossible: Any = Taken(amounts=[{"parts": "text"}])  # type: ignore[dict-item]
    with pytest.raises(CorpusEmbedError, match=r"the thread that watches it failed: .* committed"):
        watch_for(100.0, plan, store, totals(impossible), Progress(), lambda *_: None)
    snapshot = load_snapshot(store)
    assert snapshot is not None
    assert snapshot.n_parts == 1


def test_a_run_that_is_ended_before_its_work_has_begun_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Thread(threading.Thread):
        def start(self) -> None:
            super().start()
            if self.name == "watch":
                self.join(60)

    monkeypatch.setattr(watch_module.threading, "Thread", Thread)
    plan, store, _ = plan_with_one_finished_part(tmp_path, commit_every=None)
    impossible: Any = Taken(amounts=[{"parts": "text"}])  # type: ignore[dict-item]
    with pytest.raises(CorpusEmbedError, match="the thread that watches it failed"):
        watch_for(0.0, plan, store, totals(impossible), Progress(), lambda *_: None)


def test_a_lost_actor_ends_nothing(tmp_path: Path) -> None:
    plan, store, _ = plan_with_one_finished_part(tmp_path, commit_every="0.1s")
    answers = totals()
    calls: list[int] = []

    def take() -> Any:
        calls.append(1)
        if len(calls) < 5:
            raise ACTOR_LOST
        return Taken()

    answers.take = SimpleNamespace(remote=take)
    watch_until_committed(plan, store, answers, Progress(), lambda *_: None)
    assert load_snapshot(store) is not None


def test_rejects_and_damage_end_a_run_while_it_works(tmp_path: Path) -> None:
    plan, store, manifest = plan_with_one_finished_part(tmp_path, max_reject_fraction=0.01)
    bad = manifest.model_copy(
        update={
            "part_id": "0" * 32,
            "index": 1,
            "n_records": 2000,
            "n_rejects": 2000,
            "reject_reasons": {"missing_text": 2000},
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.driver.commits.load_manifests", lambda *_: [manifest, bad])
        reports = totals(Taken([finished_part(manifest, 0.1), finished_part(bad, 0.1)]))
        with pytest.raises(TooManyRejects, match="missing_text 2000"):
            watch_for(100.0, plan, store, reports, Progress(), lambda *_: None)


def test_damage_ends_a_run_while_it_works(tmp_path: Path) -> None:
    plan, store, manifest = plan_with_one_finished_part(tmp_path, max_damaged_fraction=0.01)
    (source,) = manifest.sources
    lost = source.model_copy(update={"damaged": True, "lost_bytes": plan.shards[0].size_bytes // 2})
    bad = manifest.model_copy(update={"sources": (lost,)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.driver.commits.load_manifests", lambda *_: [bad])
        reports = totals(Taken([finished_part(bad, 0.1)]))
        with pytest.raises(TooMuchDamage, match=r"Damaged are file://.*50%"):
            watch_for(100.0, plan, store, reports, Progress(), lambda *_: None)


def test_a_run_without_workers_says_so_soon_and_names_what_the_cluster_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, store, _ = plan_with_one_finished_part(tmp_path)
    watch_module.ray.cluster_resources = lambda: {"CPU": 4.0}
    notes: list[str] = []
    watcher = watch_module.Watcher(
        plan, store, totals(), Progress(), lambda _, new: notes.extend(new)
    )
    watcher.patience_s = 0.0
    watcher.show()
    watcher.show()
    (note,) = notes
    assert "none is running" in note
    assert "It has 4 CPUs and 0 GPUs in all, and runtime.device is" in note


def test_a_shard_list_that_shares_nothing_with_the_head_is_named_in_the_plan(
    tmp_path: Path,
) -> None:
    plan, store, _ = plan_with_one_finished_part(tmp_path)
    run(plan.job.spec)
    write_shard(tmp_path / "other/a.jsonl", [{"id": "0", "text": "another"}])
    other = make_spec(tmp_path / "other", tmp_path / "out")
    text = make_plan(job_of(other), store).takeover.describe()
    assert text == "none of the shards of the live snapshot is in this input"
