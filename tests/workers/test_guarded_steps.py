"""The work of the stages round poison: children that really die, and rejects with the position of
what killed them.

Oracle: the documents written, and the vectors that the stand-in engine gives each text alone.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.driver.planning.plan import make_plan
from pipeline.embed.stats import EngineStats
from pipeline.errors import WorkerError
from pipeline.job.resolve import Job
from pipeline.job.spec import JobSpec
from pipeline.output.dataset import open_dataset
from pipeline.read.parts import Part, read
from pipeline.tokenize.tokens import Tokens
from pipeline.workers import guarded_steps, steps
from pipeline.workers.isolate import Child, in_process
from tests.support.outputs import write_shard
from tests.support.poison import KILLS_READER, n_deaths, poison
from tests.support.stand_in import (
    ByteTokenizer,
    HashEngine,
    commit_plan,
    job_of,
    make_spec,
    store_of,
    vector_of_text,
)

KILLS, RAISES, TOO_BIG, NAN = "<kills>", "<raises>", "<too big>", "<nan>"


class PoisonedTokenizer(ByteTokenizer):
    """Segfaults on one kind of text and raises on another."""

    def encode(self, texts: Sequence[str]) -> Tokens:
        if any(KILLS in text for text in texts):
            ctypes.string_at(0)
        if any(RAISES in text for text in texts):
            raise ValueError("cannot be tokenized")
        return super().encode(texts)


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


class PoisonedEngine(HashEngine):
    """Raises on some texts and gives NaN for one."""

    def embed(self, ids: np.ndarray, offsets: np.ndarray, stats: EngineStats) -> np.ndarray:
        texts = [bytes(ids[a:b].tolist()).decode() for a, b in itertools.pairwise(offsets)]
        if any(TOO_BIG in text for text in texts):
            raise OutOfMemoryError("CUDA out of memory")
        if any(RAISES in text for text in texts):
            raise ValueError("cannot be embedded")
        vectors = super().embed(ids, offsets, stats)
        vectors[[NAN in text for text in texts]] = np.nan
        return vectors


def load_poisoned(job: Job) -> Callable[[Part], steps.PreparedPart]:
    return preparer(job, PoisonedTokenizer())


def preparer(job: Job, tokenizer: ByteTokenizer) -> Callable[[Part], steps.PreparedPart]:
    return functools.partial(steps.prepare_part, job=job, tokenizer=tokenizer, run_id="0" * 16)


def run(
    spec: JobSpec,
    engine: HashEngine,
    attempt: Callable[[Part], steps.PreparedPart] | None = None,
) -> None:
    """A run whose steps are guarded, as the stages guard them."""
    store, job = store_of(spec), job_of(spec)
    plan = make_plan(job, store)
    attempt = attempt or in_process(preparer(job, ByteTokenizer()))
    prepare = functools.partial(guarded_steps.prepare_part, attempt=attempt)
    embed = functools.partial(
        steps.embed_part, engine=engine, job=job, embed_texts=guarded_steps.embed_texts
    )
    commit_plan(plan, store, list(steps.do_splits(plan.todo, prepare, embed, job, store)))


def rejects_of(spec: JobSpec) -> dict[str, tuple[str, str, int]]:
    rows = [
        row
        for path in Path(spec.output.uri).glob("_meta/rejects/**/*.parquet")
        for row in pq.read_table(path).to_pylist()
    ]
    return {row["doc_id"]: (row["reason"], row["detail"], row["source_record"]) for row in rows}


def write(
    tmp_path: Path, poisons: dict[int, str], n: int = 40
) -> tuple[JobSpec, list[dict[str, Any]], list[int]]:
    """A spec over one shard, its documents and the byte position of each."""
    docs = [{"id": f"d{i}", "text": f"text {i} {poisons.get(i, '')}"} for i in range(n)]
    path = write_shard(tmp_path / "in/a.jsonl", docs)
    lengths = [len(line) for line in path.read_bytes().splitlines(keepends=True)]
    spec = make_spec(tmp_path / "in", tmp_path / "out", runtime={"part_bytes": 1024})
    return spec, docs, [0, *itertools.accumulate(lengths)]


def check_rows(spec: JobSpec, docs: list[dict[str, Any]], poisons: dict[int, str]) -> None:
    rows = {row["doc_id"]: row for row in open_dataset(spec.output.uri).to_table().to_pylist()}
    assert set(rows) == {doc["id"] for n, doc in enumerate(docs) if n not in poisons}
    for doc in docs:
        if doc["id"] in rows:
            np.testing.assert_array_equal(
                np.float32(rows[doc["id"]]["embedding"]), vector_of_text(doc["text"])
            )


def test_texts_the_engine_fails_on_are_rejects_with_position_and_their_neighbours_are_not(
    tmp_path: Path,
) -> None:
    poisons = {0: RAISES, 3: NAN, 11: TOO_BIG, 12: TOO_BIG, 39: RAISES}
    spec, docs, positions = write(tmp_path, poisons)
    run(spec, PoisonedEngine())
    check_rows(spec, docs, poisons)
    crashed = ("crashed_worker", "ValueError: cannot be embedded")
    memory = ("out_of_memory", "OutOfMemoryError: CUDA out of memory")
    nan = ("not_finite", "the vector holds NaN or infinity")
    whys = {0: crashed, 3: nan, 11: memory, 12: memory, 39: crashed}
    assert rejects_of(spec) == {f"d{n}": (*why, positions[n]) for n, why in whys.items()}


def test_equal_texts_and_all_chunks_of_a_document_share_the_fate_of_a_poison_text(
    tmp_path: Path,
) -> None:
    long = {"id": "long", "text": f"One sentence here. Another {RAISES} one. A third one."}
    docs = [
        {"id": "a", "text": f"same {RAISES}"},
        {"id": "b", "text": f"same {RAISES}"},
        long,
        {"id": "ok", "text": "fine"},
    ]
    write_shard(tmp_path / "in/a.jsonl", docs)
    chunking = {"long_documents": "chunk", "chunk": {"max_tokens": 24, "overlap_tokens": 0}}
    spec = make_spec(tmp_path / "in", tmp_path / "out", prepare=chunking)
    run(spec, PoisonedEngine())
    assert open_dataset(spec.output.uri).to_table()["doc_id"].to_pylist() == ["ok"]
    assert {doc_id: reject[0] for doc_id, reject in rejects_of(spec).items()} == dict.fromkeys(
        ["a", "b", "long"], "crashed_worker"
    )


@pytest.mark.faults
def test_texts_that_kill_the_tokenizer_are_rejects_with_position(tmp_path: Path) -> None:
    poisons = {9: RAISES, 11: KILLS}
    spec, docs, positions = write(tmp_path, poisons, n=12)
    with Child(load_poisoned, job_of(spec)) as child:
        run(spec, HashEngine(), child.ask)
    check_rows(spec, docs, poisons)
    whys = {9: "ValueError: cannot be tokenized", 11: "the worker process died: SIGSEGV"}
    assert rejects_of(spec) == {
        f"d{n}": ("crashed_worker", why, positions[n]) for n, why in whys.items()
    }


def test_an_engine_that_fails_on_everything_stops_the_run_and_rejects_nothing(
    tmp_path: Path,
) -> None:
    class Broken(HashEngine):
        def embed(self, ids: np.ndarray, offsets: np.ndarray, stats: EngineStats) -> np.ndarray:
            raise RuntimeError("out of order")

    spec, _, _ = write(tmp_path, {}, n=2)
    with pytest.raises(WorkerError, match="out of order"):
        run(
            spec,
            Broken(),
        )
    assert not list(Path(spec.output.uri).glob("_meta/manifests/**/*.json"))


@pytest.mark.faults
def test_a_shard_that_kills_its_reader_ends_there_and_other_shards_of_the_split_come_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filler = "x" * 400
    for name in "abc":
        docs = [
            {"id": f"{name}{i}", "text": f"{i} {filler}"} for i in range(4000 if name == "b" else 5)
        ]
        if name == "b":
            docs[3900]["text"] += KILLS_READER
        write_shard(tmp_path / f"in/{name}.jsonl.gz", docs)
    poison(tmp_path / "poison")
    monkeypatch.syspath_prepend(str(tmp_path / "poison"))  # as a child inherits it
    spec = make_spec(tmp_path / "in", tmp_path / "out", runtime={"part_bytes": "32MiB"})
    job = job_of(spec)
    (todo,) = make_plan(job, store_of(spec)).todo
    undisturbed = list(read(todo.split, job))
    batches = list(guarded_steps.read_in_child(todo.split, job))
    assert n_deaths(tmp_path / "poison") == 2
    ids = [doc_id for _, table in batches for doc_id in table["doc_id"].to_pylist()]
    killed = next(
        n
        for n, (_, table) in enumerate(undisturbed)
        if KILLS_READER in "".join(table["text"].to_pylist())
    )
    assert [table.equals(undisturbed[n][1]) for n, (_, table) in enumerate(batches[:killed])] == [
        True
    ] * killed
    assert ids[-6:] == [None, "c0", "c1", "c2", "c3", "c4"]
    (reject,) = [row for _, table in batches for row in table.to_pylist() if row["reason"]]
    assert (reject["reason"], reject["detail"]) == (
        "damaged_shard",
        "reading on from here: the worker process died: SIGSEGV",
    )
    assert reject["source_record"] > undisturbed[killed - 1][1]["source_record"][-1].as_py() > 0
