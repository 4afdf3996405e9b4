"""What a plan foretells from a sample: counts, margins, duplicates, the first document.

Oracle: the run itself, over all of the input, and its rows; for statistics, many seeds.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline.driver.estimate.cells as cells
import pipeline.driver.estimate.sample as sampling
from pipeline.driver.estimate.sample import Sample, sample
from pipeline.driver.planning.plan import Plan, make_plan
from pipeline.output.dataset import open_dataset
from tests.support.outputs import write_shard
from tests.support.stand_in import ByteTokenizer, job_of, make_spec, run, store_of

N_SEEDS = 12
PREPARE = {"long_documents": "chunk", "chunk": {"max_tokens": 64, "overlap_tokens": 0}}


def skewed(n_documents: int, seed: int = 0) -> list[dict[str, Any]]:
    """Documents whose lengths differ by a factor of a hundred, long ones late in the input."""
    chance = random.Random(seed)
    lengths = sorted(int(chance.lognormvariate(5, 1)) for _ in range(n_documents))
    order = sorted(range(n_documents), key=lambda n: n + chance.random() * n_documents)
    return [
        {"id": str(n), "text": " ".join("word" for _ in range(1 + lengths[place] // 5))}
        for n, place in enumerate(order)
    ]


def plan_of(folder: Path, out: Path, **sections: Any) -> Plan:
    spec = make_spec(folder, out, **sections)
    return make_plan(job_of(spec), store_of(spec))


def look(plan: Plan, seed: int | None = None) -> Sample:
    seen = sample(plan, store_of(plan.job.spec), ByteTokenizer(), seconds=60, seed=seed)
    assert seen
    return seen


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet", "a.csv"])
def test_a_small_input_is_counted_exactly(tmp_path: Path, name: str) -> None:
    documents = [*skewed(50), {"id": "empty", "text": " "}]
    write_shard(tmp_path / "in" / name, documents)
    plan = plan_of(tmp_path / "in", tmp_path / "out", prepare=PREPARE)
    seen = look(plan)
    snapshot = run(plan.job.spec)
    assert snapshot
    assert seen.is_whole
    for figure in ("records", "documents", "rejects", "rows", "tokens"):
        assert (seen[figure].value, seen[figure].margin) == (getattr(snapshot, f"n_{figure}"), 0)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "n_shards"),
    [
        ("a.jsonl.gz", 40),
        ("a.parquet", 2),
        pytest.param("a.jsonl", 1, marks=pytest.mark.slow),  # lines: see very_many_cells below
        pytest.param("a.csv", 40, marks=pytest.mark.slow),
    ],
)
def test_estimates_are_right_on_average_and_margins_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, n_shards: int
) -> None:
    """Cells are as small as the input, so that most of it is not read."""
    monkeypatch.setattr(sampling, "WHOLE_BYTES", 4 << 10)
    monkeypatch.setattr(sampling, "MIN_CELL_BYTES", 4 << 10)
    monkeypatch.setattr(sampling, "PREPARED_BYTES", 1 << 10)
    monkeypatch.setattr(sampling, "MIN_CELLS", 30)
    monkeypatch.setattr(sampling, "MARGIN", 0.1)
    documents = skewed(1500)
    step = -(-len(documents) // n_shards)
    for shard in range(n_shards):
        part = documents[shard * step : (shard + 1) * step]
        path = tmp_path / "in" / f"{shard}{name[1:]}"
        write_shard(path, part)
    if name.endswith(".parquet"):
        rewrite_with_larger_groups(tmp_path / "in")
    plan = plan_of(tmp_path / "in", tmp_path / "out", prepare=PREPARE)
    seen = [look(plan, seed) for seed in range(N_SEEDS)]
    snapshot = run(plan.job.spec)
    assert snapshot
    for figure in ("documents", "rows", "tokens"):
        truth = getattr(snapshot, f"n_{figure}")
        values = np.array([each[figure].value for each in seen])
        margins = np.array([each[figure].margin for each in seen], float)
        # four standard errors of the mean, and the bias of a ratio
        assert abs(values.mean() - truth) < 4 * values.std() / N_SEEDS**0.5 + 0.01 * truth
        n_held = int((abs(values - truth) <= margins * values + 1e-6).sum())
        # of twelve intervals of 95 %, eight or fewer hold once in 400 times
        assert n_held > 8, (figure, truth, values, margins)
    assert not any(each.is_whole for each in seen)


def rewrite_with_larger_groups(folder: Path) -> None:
    import pyarrow.parquet as pq

    for path in folder.glob("*.parquet"):
        pq.write_table(pq.read_table(path), path, row_group_size=40)


def test_the_same_plan_gives_the_same_sample(tmp_path: Path) -> None:
    write_shard(tmp_path / "in/a.jsonl", skewed(40))
    plan = plan_of(tmp_path / "in", tmp_path / "out")
    assert look(plan).figures == look(plan).figures


@pytest.mark.parametrize("whole_bytes", [0, 1 << 20])
def test_what_is_finished_and_what_has_a_vector_is_not_foretold_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole_bytes: int
) -> None:
    monkeypatch.setattr(sampling, "WHOLE_BYTES", whole_bytes)
    documents = skewed(60)
    runtime = {"part_bytes": "4KiB"}
    write_shard(tmp_path / "in/a.jsonl.gz", documents)
    spec = make_spec(tmp_path / "in", tmp_path / "out", runtime=runtime)
    run(spec, stop_after=2)
    plan = make_plan(job_of(spec), store_of(spec))
    n_done = sum(part.n_documents for part in plan.done)
    assert n_done
    assert look(plan)["documents"].value == pytest.approx(60 - n_done)
    run(spec)
    write_shard(tmp_path / "in/a.jsonl.gz", [*documents, {"id": "new", "text": "a new text"}])
    plan = make_plan(job_of(spec), store_of(spec))
    seen = look(plan)
    assert seen["rows"].value == pytest.approx(61)
    assert seen["reused"].value == pytest.approx(60)
    assert seen["embedded_tokens"].value == pytest.approx(len("a new text"))
    snapshot = run(spec)
    assert snapshot and snapshot.n_rows == 61


def test_the_first_document_is_the_text_that_the_run_embeds(tmp_path: Path) -> None:
    texts = ["", "first sentence of the text. " * 8, "second"]
    write_shard(
        tmp_path / "in/a.jsonl", [{"id": str(n), "text": text} for n, text in enumerate(texts)]
    )
    plan = plan_of(tmp_path / "in", tmp_path / "out", prepare=PREPARE)
    first = look(plan).first
    run(plan.job.spec)
    table = open_dataset(str(tmp_path / "out")).to_table().sort_by([("doc_id", "ascending")])
    rows = [row for row in table.to_pylist() if row["doc_id"] == "1"]
    rows.sort(key=lambda row: row["chunk"])
    assert first
    assert (first.doc_id, first.n_rows) == ("1", len(rows))
    assert [(text.text, text.n_tokens, text.char_start) for text in first.texts] == [
        (row["text"], row["n_tokens"], row["char_start"]) for row in rows[:3]
    ]


def test_repeated_texts_and_partitions_of_the_sample_are_counted(tmp_path: Path) -> None:
    rows = [{"id": str(n), "text": f"text {n % 8}", "lang": f"l{n % 3}"} for n in range(10)]
    write_shard(tmp_path / "in/a.jsonl", rows)
    plan = plan_of(
        tmp_path / "in",
        tmp_path / "out",
        input={"keep_columns": ["lang"]},
        output={"partition_by": ["lang"]},
    )
    seen = look(plan)
    observed = seen.observed
    assert (observed.n_rows, observed.n_repeated, len(observed.partitions)) == (10, 2, 3)
    # equal texts of a part go through the model once
    assert seen["embedded_tokens"].value == 8 * len("text 1")


@pytest.mark.thorough
def test_an_input_of_very_many_cells_is_sampled_without_a_list_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quarter of the cells is drawn first; the mean over seeds shows that none is preferred."""
    monkeypatch.setattr(cells, "MANY_CELLS", 64)
    monkeypatch.setattr(sampling, "WHOLE_BYTES", 4 << 10)
    monkeypatch.setattr(sampling, "MIN_CELL_BYTES", 1 << 10)
    documents = skewed(1500)
    write_shard(tmp_path / "in/a.jsonl", documents)
    write_shard(tmp_path / "in/b.jsonl.gz", documents[:20])
    plan = plan_of(tmp_path / "in", tmp_path / "out", runtime={"part_bytes": "64KiB"})
    values = np.array([look(plan, seed)["documents"].value for seed in range(N_SEEDS)])
    assert abs(values.mean() - 1520) < 4 * values.std() / N_SEEDS**0.5 + 15


def test_a_text_that_the_tokenizer_cannot_take_costs_a_note_and_not_the_plan(
    tmp_path: Path,
) -> None:
    class Fragile(ByteTokenizer):
        def encode(self, texts: Any) -> Any:
            if any("poison" in text for text in texts):
                raise RuntimeError("a panic of the library")
            return super().encode(texts)

    rows = [{"id": "0", "text": "poison"}, {"id": "1", "text": "good"}]
    write_shard(tmp_path / "in/a.jsonl", rows)
    write_shard(tmp_path / "in/b.jsonl.gz", [{"id": "2", "text": "good"}])
    plan = plan_of(tmp_path / "in", tmp_path / "out")
    seen = sample(plan, store_of(plan.job.spec), Fragile(), seconds=60)
    assert seen and seen.first and seen.first.doc_id == "1"
    assert "could not be prepared: RuntimeError: a panic" in seen.problems[0]
