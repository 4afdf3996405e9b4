"""`run --max-time` and `--max-cost`: a run ends in order before its budget does, and the next one
goes on from there.

Oracle: the documents that the test wrote; the texts that the stand-in engine was given, each once
over all runs; prices and hours multiplied by hand.
"""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.cli.endings import show_result
from pipeline.cli.options import console
from pipeline.driver import budget as budget_module
from pipeline.driver.budget import Budget, hourly_cost
from pipeline.driver.estimate.prices import price_per_hour
from pipeline.driver.planning.plan import Plan
from pipeline.driver.run import Result, run_job
from pipeline.errors import CorpusEmbedError, SpecError
from pipeline.job.spec import JobSpec
from pipeline.observe.progress import Progress
from pipeline.output.dataset import open_dataset
from pipeline.output.snapshots import load_snapshot
from pipeline.workers import steps
from pipeline.workers.metrics import increments
from tests.support.outputs import write_shard
from tests.support.stand_in import HashEngine, job_of, make_spec, preparer, store_of

N = 12


def documents(version: str = "") -> list[dict[str, Any]]:
    return [{"id": f"d{i:02}", "text": f"text {i}{version} " + "word " * 300} for i in range(N)]


def spec_of(tmp_path: Path) -> JobSpec:
    return make_spec(tmp_path / "in", tmp_path / "out", runtime={"part_bytes": 1500})


def run_for(spec: JobSpec, n_parts: int | None, engine: HashEngine) -> Result:
    """A run whose budget is used after some parts."""
    store, job, progress = store_of(spec), job_of(spec), Progress()
    budget = Budget(max_seconds=1e9)

    def execute(plan: Plan) -> dict[str, float]:
        embed = functools.partial(steps.embed_part, engine=engine, job=job)
        manifests = steps.do_splits(plan.todo, preparer(spec, plan), embed, job, store)
        for manifest in itertools.islice(manifests, n_parts):
            progress.add(increments(manifest))
        budget.is_used = n_parts is not None
        return {}

    return run_job(job, store, execute, progress, full_refresh=True, budget=budget)


def ids_of(spec: JobSpec) -> list[str]:
    return sorted(open_dataset(spec.output.uri).to_table(columns=["doc_id"])["doc_id"].to_pylist())


def test_what_is_finished_is_committed_and_the_next_run_does_the_rest_alone(tmp_path: Path) -> None:
    write_shard(tmp_path / "in/a.jsonl", documents())
    spec, engine = spec_of(tmp_path), HashEngine()
    first = run_for(spec, 3, engine)
    assert first.left is not None
    assert not first.snapshot.complete
    n_first = first.snapshot.n_documents
    assert 0 < n_first == len(ids_of(spec)) < N
    assert first.left.parts >= 1
    assert first.left.documents == pytest.approx(N - n_first, abs=2)
    second = run_for(spec, None, engine)
    assert (second.left, second.snapshot.complete) == (None, True)
    assert ids_of(spec) == [document["id"] for document in documents()]
    assert len(engine.seen) == len(set(engine.seen)) == N


def test_a_quiet_run_says_what_its_budget_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shard(tmp_path / "in/a.jsonl", documents())
    result = run_for(spec_of(tmp_path), 2, HashEngine())
    monkeypatch.setattr(console, "quiet", True)
    show_result(result, as_json=False)
    head, *others = capsys.readouterr().err.splitlines()
    assert head.startswith("snapshot 1 of ")
    assert "budget of this run is used" in " ".join(others)


def test_where_live_rows_would_drop_out_the_head_stays_and_finished_parts_are_kept(
    tmp_path: Path,
) -> None:
    write_shard(tmp_path / "in/a.jsonl", documents())
    spec, engine = spec_of(tmp_path), HashEngine()
    head = run_for(spec, None, engine).snapshot
    write_shard(tmp_path / "in/a.jsonl", documents(" changed"))
    stopped = run_for(spec, 3, engine)
    assert stopped.left is not None
    assert stopped.snapshot == head == load_snapshot(store_of(spec))
    last = run_for(spec, None, engine)
    assert last.snapshot.complete
    assert ids_of(spec) == [document["id"] for document in documents()]
    assert len(engine.seen) == len(set(engine.seen)) == 2 * N


def test_a_budget_in_which_nothing_is_finished_is_an_error_that_says_so(tmp_path: Path) -> None:
    write_shard(tmp_path / "in/a.jsonl", documents())
    with pytest.raises(CorpusEmbedError, match="before a part was finished"):
        run_for(spec_of(tmp_path), 0, HashEngine())
    assert load_snapshot(store_of(spec_of(tmp_path))) is None


def progress_after(seconds: float, **totals: float) -> Progress:
    progress = Progress(started=0.0, clock=lambda: seconds)
    progress.add({name.replace("__", "."): value for name, value in totals.items()})
    return progress


@pytest.mark.parametrize(
    ("seconds", "is_over"), [(10, False), (3500, False), (3579, False), (3581, True), (4000, True)]
)
def test_time_is_kept_for_the_parts_under_way(seconds: float, is_over: bool) -> None:
    # two parts of 10 s each are still under way: 20 s before the hour
    progress = progress_after(seconds, seconds__embed=100.0, parts=10)
    assert Budget(max_seconds=3600).check(progress, dict) is is_over


def test_slow_parts_leave_half_of_a_budget_to_work_in() -> None:
    progress = progress_after(40, seconds__embed=1000.0, parts=1)
    assert not Budget(max_seconds=100).check(progress, dict)
    assert Budget(max_seconds=79).check(progress, dict)


@pytest.mark.parametrize(("max_cost", "is_over"), [(12.1, False), (11.9, True)])
def test_money_is_devices_times_price_times_time(
    max_cost: float, is_over: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget_module, "time", SimpleNamespace(monotonic=lambda: 3 * 3600.0))
    h100 = price_per_hour("NVIDIA H100 80GB HBM3")
    assert h100 is not None
    budget = Budget(max_cost=max_cost * h100)
    assert budget.check(progress_after(3 * 3600), lambda: {"H100": 4}) is is_over
    assert budget.cost == pytest.approx(12 * h100)


def test_a_price_can_be_ones_own_and_a_device_without_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "prices.yaml"
    table.write_text("X1: {price_per_hour: 2.5}\ncpu core: {price_per_hour: 0.01}\n")
    monkeypatch.setenv("CORPUS_EMBED_PRICES", str(table))
    assert hourly_cost({"Maker x1 Ultra": 2, "cpu core": 100}) == pytest.approx(6.0)
    with pytest.raises(SpecError, match="no price for the device 'H100'"):
        hourly_cost({"H100": 1})
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("X1: cheap\n")
    monkeypatch.setenv("CORPUS_EMBED_PRICES", str(wrong))
    with pytest.raises(SpecError, match="for instance H100"):
        price_per_hour("X1")


@pytest.mark.parametrize("amounts", [{"max_seconds": 0.0}, {"max_cost": -1.0}])
def test_a_budget_of_nothing_is_a_mistake(amounts: dict[str, float]) -> None:
    with pytest.raises(SpecError, match="more than 0"):
        Budget(**amounts)
