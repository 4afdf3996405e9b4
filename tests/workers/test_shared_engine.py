"""Parts in several threads on one engine, and a part that has the device to itself.

Oracle: the same parts one after the other, and the vectors of the stand-in engine. Children are
real processes.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.driver.planning.plan import make_plan
from pipeline.embed.engine import Engine
from pipeline.embed.stats import EngineStats
from pipeline.errors import WorkerError
from pipeline.job.model.store import resolve
from pipeline.workers import guarded_steps, shared_engine, stages
from pipeline.workers.cells import pack, unpack
from pipeline.workers.clock import Clock
from pipeline.workers.isolate import Child
from pipeline.workers.shared_engine import SharedEngine
from pipeline.workers.steps import Embeds, embed_part
from pipeline.write.part import EmbeddedPart
from tests.support.engines import engine_of
from tests.support.killed_engine import (
    KILLS,
    RAISES,
    KilledEngine,
    load,
    load_short_of_memory,
)
from tests.support.outputs import write_shard
from tests.support.stand_in import HashEngine, job_of, make_spec, prepared_parts, store_of


@pytest.fixture(autouse=True)
def unreported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages without Ray: nothing is reported, and a part named in a test is careful."""
    monkeypatch.setattr(stages, "may_begin", lambda *_: True)
    monkeypatch.setattr(stages, "Advance", lambda *_: None)
    monkeypatch.setattr(shared_engine, "free_memory", lambda: None)


def careful(monkeypatch: pytest.MonkeyPatch, *part_ids: str) -> None:
    @contextmanager
    def working(_totals: Any, work: str) -> Iterator[bool]:
        yield work.removeprefix("part ") in part_ids

    monkeypatch.setattr(stages, "working", working)


def parts_of(folder: Path, *texts: list[str]) -> tuple[Any, list[Any]]:
    """A job, and a part for each list of texts, as embedders get them."""
    parts: list[Any] = []
    for number, own in enumerate(texts):
        documents = [{"id": f"{number}-{n}", "text": text} for n, text in enumerate(own)]
        write_shard(folder / f"{number}/in.jsonl", documents)
        spec = make_spec(folder / str(number), folder / "out")
        parts += prepared_parts(spec, make_plan(job_of(spec), store_of(spec)))
    assert len(parts) == len(texts)
    return job_of(spec), parts


def stage_of(job: Any, engine: SharedEngine) -> stages.EmbedParts:
    stage = object.__new__(stages.EmbedParts)
    stage.job, stage.totals, stage.has_budget = job, None, False
    stage.engine, stage.clock = engine, Clock()
    return stage


def embedded(batch: pa.Table) -> EmbeddedPart:
    return unpack(EmbeddedPart, batch)


def test_parts_in_two_threads_give_the_vectors_and_figures_of_parts_in_turn(
    bert_mean_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    careful(monkeypatch)
    chance = np.random.default_rng(0)
    texts = [["x" * n for n in chance.integers(1, 60, 40)] for _ in range(6)]
    job, prepared = parts_of(tmp_path, *texts)
    loaded = engine_of(resolve(str(bert_mean_dir)), max_batch_tokens=100)
    expected = {
        part.facts.part_id: embed_part(part, loaded, job, guarded_steps.embed_texts)
        for part in prepared
    }
    stage = stage_of(job, SharedEngine(lambda **_: loaded))
    started_s = time.perf_counter()
    with ThreadPoolExecutor(2) as threads:
        results = list(map(embedded, threads.map(stage, map(pack, prepared))))
    elapsed_s = time.perf_counter() - started_s
    assert len(results) == len(expected)
    for part in results:
        alone = expected[part.facts.part_id]
        np.testing.assert_array_equal(part.vectors, alone.vectors)
        assert part.facts.model_copy(update={"seconds": {}}) == alone.facts
        assert part.failures.num_rows == 0
    assert sum(sum(part.facts.seconds.values()) for part in results) <= elapsed_s + 0.01


@pytest.mark.process
@pytest.mark.parametrize("poison", ["raises", "kills"])
def test_a_poisoned_part_loses_its_own_text_and_its_neighbours_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poison: str
) -> None:
    bad = f"a text {(KILLS if poison == 'kills' else RAISES).decode()}"
    job, prepared = parts_of(tmp_path, ["one", "two"], ["three", bad, "four"], ["five"])
    part_ids = [part.facts.part_id for part in prepared]
    careful(monkeypatch, *part_ids[1:2] * (poison == "kills"))
    stage = stage_of(job, SharedEngine(load))
    with ThreadPoolExecutor(2) as threads:
        results = list(map(embedded, threads.map(stage, map(pack, prepared))))
    reasons = [part.failures.select(["document", "reason"]).to_pylist() for part in results]
    assert reasons == [[], [{"document": 1, "reason": "crashed_worker"}], []]
    for part, own in zip(results, prepared, strict=True):
        alone = embed_part(own, HashEngine(), job).vectors
        is_good = np.isfinite(part.vectors).all(axis=1)
        np.testing.assert_array_equal(part.vectors[is_good], alone[is_good])
        assert len(part.vectors) - is_good.sum() == (own is prepared[1])
        n_tokens = sum(map(len, own.tokens["ids"].to_pylist()))
        assert part.facts.n_embedded_tokens == n_tokens - len(bad) * (own is prepared[1])
    # a child is not tuned, and says so itself
    tuned = [part.facts.engine["tuned"] for part in results]
    assert tuned == ["True", str(poison == "raises"), "True"]


@pytest.mark.process
def test_a_careful_part_is_alone_and_its_child_loads_when_the_model_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU may hold the model only once, and a part that dies must not take others with it."""
    loaded: list[weakref.ref[Any]] = []
    events: list[str] = []

    def load_here(**_: Any) -> Embeds:
        engine = KilledEngine(True)
        engine.myself = engine  # as torch's modules: only the collector frees it
        loaded.append(weakref.ref(engine))
        events.append("load")
        return engine

    class Watched(Child):
        def __init__(self, load_in_child: Any, _: Any) -> None:
            events.append(f"child beside {sum(engine() is not None for engine in loaded)}")
            super().__init__(load_in_child, load)

    monkeypatch.setattr(shared_engine, "Child", Watched)
    from pipeline.embed.memory import free_memory

    monkeypatch.setattr(shared_engine, "free_memory", free_memory)
    engine = SharedEngine(load_here)
    is_under_way, may_end = threading.Event(), threading.Event()

    def slow(_: Embeds) -> None:
        is_under_way.set()
        assert may_end.wait(30)
        events.append("slow")

    def noted(name: str) -> Callable[[Embeds], None]:
        return lambda _: events.append(name)

    with ThreadPoolExecutor(3) as threads:
        calls = [threads.submit(engine.run, slow)]
        assert is_under_way.wait(30)
        calls.append(threads.submit(engine.run, noted("careful"), is_careful=True))
        while not engine._is_taken:
            time.sleep(0.01)
        calls.append(threads.submit(engine.run, noted("later")))
        may_end.set()
        for call in calls:
            call.result()
    assert events == ["load", "slow", "child beside 0", "careful", "load", "later"]


def test_the_weights_of_an_engine_that_is_given_up_are_free(
    bert_mean_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.embed.memory import free_memory

    monkeypatch.setattr(shared_engine, "free_memory", free_memory)
    weights: list[weakref.ref[Any]] = []

    def load_packed(*, is_tuned: bool) -> Engine:
        engine: Any = engine_of(resolve(str(bert_mean_dir)), is_tuned=is_tuned)
        weights.append(weakref.ref(engine._body._words))
        weights.append(weakref.ref(engine._body._layers[0].up))
        return engine

    class Nothing:
        def __init__(self, *_: Any) -> None:
            assert [weight() for weight in weights] == [None, None]
            raise InterruptedError

    monkeypatch.setattr(shared_engine, "Child", Nothing)
    engine = SharedEngine(load_packed)
    texts = np.array([5, 6], np.int32), np.array([0, 1, 2])
    engine.run(lambda loaded: loaded.embed(*texts, EngineStats()))
    assert all(weight() is not None for weight in weights)
    with pytest.raises(InterruptedError):
        engine.run(lambda _: None, is_careful=True)


@pytest.mark.process
def test_a_child_that_finds_no_memory_says_so_and_the_engine_is_loaded_again(
    tmp_path: Path,
) -> None:
    engine = SharedEngine(load_short_of_memory, tmp_path)
    with pytest.raises(WorkerError, match="not enough memory"):
        engine.run(lambda _: None, is_careful=True)
    assert engine.run(lambda loaded: loaded.dim) == HashEngine.dim
    assert len(list(tmp_path.iterdir())) == 3
