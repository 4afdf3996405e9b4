"""Whole runs over documents that kill whoever touches them: those become rejects, all others get
their vectors.

The driver is a process of its own with its own Ray; poison reaches every process below it
(tests/support/poison.py). Oracle: the documents, and the output of an undisturbed run over the good
ones.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.job.resolve import resolve
from pipeline.output.dataset import open_dataset
from pipeline.tokenize import load_tokenizer
from tests.support import poison
from tests.support.outputs import make_spec, run_without_ray, write_shard

pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(1000)]


def good(n: int, first: int = 0) -> list[dict[str, Any]]:
    return [
        {"id": f"d{i}", "text": f"{i} A function returns its argument. " * (1 + i % 3)}
        for i in range(first, first + n)
    ]


class Poisons:
    """Texts that break things, made for one model."""

    def __init__(self, model: Path) -> None:
        job = resolve(make_spec("unused", "unused", model), "cpu")
        self.tokenizer = load_tokenizer(job.model(), max_tokens=job.max_tokens)

    def of_length(self, n_tokens: int) -> str:
        for n_words in range(1, n_tokens):
            text = f"{'file ' * n_words}end"
            if len(self.tokenizer.encode([text]).ids) == n_tokens:
                return text
        raise AssertionError("the vocabulary does not give this number of tokens")


@pytest.fixture
def poisons(bert_mean_dir: Path) -> Poisons:
    return Poisons(bert_mean_dir)


def run(
    tmp_path: Path, model: Path, shards: dict[str, Sequence[dict[str, Any]]], **runtime: Any
) -> subprocess.CompletedProcess[str]:
    for name, docs in shards.items():
        write_shard(tmp_path / "in" / name, docs)
    fields = {
        "name": "poison",
        "input": {"uri": str(tmp_path / "in"), "id_column": "id"},
        "model": {"path": str(model)},
        "output": {"uri": str(tmp_path / "out")},
        "runtime": {
            "device": "cpu",
            "part_bytes": "1KiB",
            "embedders": 1,
            "max_reject_fraction": 0.5,
            "max_damaged_fraction": 0.5,
            **runtime,
        },
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(fields))
    command = [sys.executable, "-m", "pipeline", "run", str(tmp_path / "job.yaml"), "--json"]
    environment = {**os.environ, **poison.poison(tmp_path / "poison")}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=900, check=False
    )


def rejects_of(tmp_path: Path) -> dict[str | None, dict[str, Any]]:
    paths = (tmp_path / "out/_meta/rejects").rglob("*.parquet")
    return {row["doc_id"]: row for path in paths for row in pq.read_table(path).to_pylist()}


def check_rows(tmp_path: Path, model: Path, expected: Sequence[dict[str, Any]]) -> None:
    write_shard(tmp_path / "oracle-in/a.jsonl", expected)
    run_without_ray(
        make_spec(
            str(tmp_path / "oracle-in"), str(tmp_path / "oracle"), model, input={"keep_columns": []}
        )
    )
    oracle, rows = (
        open_dataset(str(tmp_path / name)).to_table().sort_by("doc_id")
        for name in ("oracle", "out")
    )
    for column in ("doc_id", "text_sha256", "n_tokens"):
        assert rows[column].to_pylist() == oracle[column].to_pylist()
    vectors = [np.stack(table["embedding"].to_numpy()) for table in (rows, oracle)]
    # float32 sums in other orders, as in tests/embed/test_engine.py
    np.testing.assert_allclose(*vectors, atol=2e-5)


def test_records_that_kill_or_break_workers_become_rejects_and_all_others_come_out(
    tmp_path: Path, bert_mean_dir: Path, poisons: Poisons
) -> None:
    docs = good(40)
    bad = {
        "first": poisons.of_length(poison.KILLS_ENGINE),
        "too big": poisons.of_length(poison.NEEDS_MEMORY),
        "raises": poisons.of_length(poison.RAISES_IN_ENGINE),
        "last": poison.KILLS_TOKENIZER,
        "cuda": poisons.of_length(poison.BREAKS_CUDA),
    }
    letters = {name: {"id": name, "text": text} for name, text in bad.items()}
    shards = {
        "a.jsonl": [letters["first"], *docs[:10]],
        "b.jsonl": [*docs[10:20], letters["raises"], *docs[20:30], letters["last"]],
        "c.jsonl": [docs[30], letters["cuda"], *docs[31:], letters["too big"]],
    }
    done = run(tmp_path, bert_mean_dir, shards)
    assert done.returncode == 0, done.stderr[-3000:]
    reasons = {
        "first": ("crashed_worker", "the worker process died: SIGSEGV"),
        "too big": ("out_of_memory", "OutOfMemoryError: CUDA out of memory"),
        "raises": ("crashed_worker", "RuntimeError: this text cannot be embedded"),
        "last": ("crashed_worker", "the worker process died: SIGSEGV"),
        "cuda": ("crashed_worker", "the worker process died: exit code 70"),
    }
    rejects = rejects_of(tmp_path)
    assert {doc_id: (row["reason"], row["detail"]) for doc_id, row in rejects.items()} == reasons
    for shard, lines in shards.items():
        data = (tmp_path / "in" / shard).read_bytes()
        for doc in lines:
            if doc["id"] in reasons:
                row = rejects[doc["id"]]
                assert row["source_uri"].endswith(shard)
                assert data[row["source_record"] :].startswith(json.dumps(doc).encode())
    check_rows(tmp_path, bert_mean_dir, docs)
    figures = json.loads(done.stdout)["run"]
    assert figures["n_crashed_records"] == len(reasons)
    assert figures["n_oom_halvings"] > 0  # down to the one text that does not fit
    # two deaths of an actor a poison part, and up to three parts in flight beside it
    assert 6 <= figures["worker_restarts"] <= 12


def test_a_shard_that_kills_its_reader_is_damaged_from_there_on(
    tmp_path: Path, bert_mean_dir: Path
) -> None:
    docs = good(30)
    shards = {
        "a.jsonl": docs[:10],
        "b.jsonl": [{"id": "killer", "text": poison.KILLS_READER}],
        "c.jsonl": docs[10:],
    }
    done = run(tmp_path, bert_mean_dir, shards, part_bytes="1MiB")
    assert done.returncode == 0, done.stderr[-3000:]
    (reject,) = rejects_of(tmp_path).values()
    assert reject["reason"] == "damaged_shard"
    assert reject["source_uri"].endswith("b.jsonl")
    check_rows(tmp_path, bert_mean_dir, docs)
    # the process of the estimate, two tokenizing workers, then two readers of the careful one
    assert poison.n_deaths(tmp_path / "poison") == 5


def test_a_corpus_of_poison_stops_at_the_reject_budget(
    tmp_path: Path, bert_mean_dir: Path, poisons: Poisons
) -> None:
    killer = poisons.of_length(poison.KILLS_ENGINE)
    docs = [{"id": f"k{n}", "text": killer} for n in range(4)]
    done = run(
        tmp_path,
        bert_mean_dir,
        {"a.jsonl": [*docs, *good(3)]},
        part_bytes="1MiB",
        max_reject_fraction=0.1,
    )
    assert done.returncode == 3, done.stderr[-3000:]
    assert "4 of 7 records were rejected" in done.stderr
