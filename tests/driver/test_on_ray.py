"""The main job through Ray Data, on local disk: same rows as the input, same vectors as the oracle,
done once."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sentence_transformers import SentenceTransformer

from pipeline.driver.budget import Budget
from pipeline.driver.cluster import blocks as blocks_module
from pipeline.driver.cluster.on_ray import run
from pipeline.driver.cluster.totals import Totals
from pipeline.errors import TooManyRejects
from pipeline.observe.progress import Progress
from pipeline.output import dataset
from pipeline.output.snapshots import load_snapshot
from pipeline.storage.store import Store
from tests.support.outputs import make_spec, write_shard

pytestmark = [pytest.mark.usefixtures("ray_local")]

SENTENCES = (
    "文埋め込みは、文を固定長のベクトルに変換する技術です。",
    "東京は日本の首都で、人口が最も多い都市です。",
    "The library opens a stored file and reads its first line.",
    "極度乾燥しなさい",
)


def documents(n: int, first: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "id": f"d{i:04d}",
            "text": f"{i} " + SENTENCES[i % 4] * (1 + i % 7),
            "lang": "en" if i % 4 == 2 else "ja",
        }
        for i in range(first, first + n)
    ]


def rows_of(uri: Path | str) -> dict[str, dict[str, Any]]:
    return {row["doc_id"]: row for row in dataset.open_dataset(str(uri)).to_table().to_pylist()}


@pytest.mark.slow
def test_a_run_with_a_limit_leaves_the_output_of_the_job_alone(
    tmp_path: Path, bert_japanese_dir: Path
) -> None:
    docs = documents(40)
    write_shard(tmp_path / "in/a.jsonl.gz", docs[:5])
    write_shard(tmp_path / "in/b.jsonl", docs[5:])
    spec = make_spec(str(tmp_path / "in"), str(tmp_path / "out"), bert_japanese_dir)
    result = run(spec, limit=7)
    trial = result.plan.job.spec.output.uri
    assert sorted(rows_of(trial)) == [doc["id"] for doc in docs[:7]]
    assert not (tmp_path / "out").exists()
    shutil.rmtree(trial)


class UsedAfterOnePart(Budget):
    def check(self, progress: Progress, devices: Callable[[], Mapping[str, float]]) -> bool:
        self.is_used = progress["parts"] > 0
        return self.is_used


@pytest.mark.slow
def test_a_run_whose_budget_is_used_ends_in_order_and_the_next_one_goes_on(
    tmp_path: Path, bert_japanese_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class TotalsThatWait(Totals):
        """Whoever asks whether to begin a second part is answered once the run is told to stop: a
        driver that is slow to look would find the run at its end."""

        def __init__(self) -> None:
            super().__init__()
            self._has_stopped = asyncio.Event()

        async def is_stopping(self) -> bool:  # type: ignore[override]
            if "embedding" in self._begun:
                await self._has_stopped.wait()
            return super().is_stopping()

        async def stop(self) -> None:  # type: ignore[override]
            super().stop()
            self._has_stopped.set()

    docs = documents(200)
    write_shard(tmp_path / "in/a.jsonl", docs)
    spec = make_spec(
        str(tmp_path / "in"),
        str(tmp_path / "out"),
        bert_japanese_dir,
        runtime={"part_bytes": "1KiB", "embedders": 1},
    )
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.driver.cluster.execution.Totals", TotalsThatWait)
        result = run(spec, budget=UsedAfterOnePart(max_seconds=1e9))
    assert result.left is not None
    assert (result.snapshot.complete, result.snapshot.n_parts) == (False, 1)
    assert 0 < len(rows_of(tmp_path / "out")) < 200
    result = run(spec)
    assert (result.left, result.snapshot.complete) == (None, True)
    assert set(rows_of(tmp_path / "out")) == {doc["id"] for doc in docs}


def test_every_document_gets_the_oracles_vector_and_exact_lineage_and_a_second_run_does_nothing(
    tmp_path: Path, bert_japanese_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORPUS_EMBED_CACHE", str(tmp_path / "cache"))
    docs = documents(90)
    write_shard(tmp_path / "in/a.jsonl.gz", docs[:50])
    write_shard(tmp_path / "in/b.jsonl", docs[50:70])
    write_shard(tmp_path / "in/c.parquet", docs[70:])
    spec = make_spec(
        str(tmp_path / "in"),
        str(tmp_path / "out"),
        bert_japanese_dir,
        output={"partition_by": ["lang"]},
        runtime={"part_bytes": "2KiB"},
    )
    shown: list[Any] = []
    result = run(spec, on_estimate=shown.append)
    rows = rows_of(tmp_path / "out")
    assert set(rows) == {doc["id"] for doc in docs}
    oracle = SentenceTransformer(str(bert_japanese_dir), device="cpu").encode(
        [doc["text"] for doc in docs]
    )
    for doc, expected in zip(docs, oracle, strict=True):
        row = rows[doc["id"]]
        vector = np.array(row["embedding"])
        cosine = vector @ expected / np.linalg.norm(vector) / np.linalg.norm(expected)
        assert cosine > 0.99999  # float32 against float32: only the order of sums differs
        assert (row["text"], row["lang"], row["chunk"]) == (doc["text"], doc["lang"], 0)
        assert row["text_sha256"] == hashlib.sha256(doc["text"].encode()).hexdigest()
        assert (row["char_start"], row["char_end"]) == (0, len(doc["text"]))
        assert (row["run_id"], row["fingerprint"]) == (
            result.plan.run_id,
            result.plan.job.fingerprint,
        )
    # the compressed shard too was cut into parts while it was read
    assert result.snapshot.n_parts > 6
    assert len(list((tmp_path / "out/data").glob("lang=*"))) == 2
    record = json.loads(
        (tmp_path / "out/_meta/runs" / result.plan.run_id / "attempt-0001.json").read_text()
    )
    assert (record["counts"]["n_documents"], record["model"]["license"]) == (90, "cc-by-sa-4.0")
    assert record["versions"]["unidic-lite"]
    # what was foretold, what came of it, and its speed
    assert [estimate.record() for estimate in shown] == [record["estimate"]]
    for name in ("documents", "rows", "tokens", "embedded_tokens"):
        assert record["estimate"][name] == record["truth"][name] == result.truth[name]
    (rate,) = record["rates"]
    assert rate["device_name"] and rate["n_tokens"] == result.truth["embedded_tokens"]
    (kept,) = (tmp_path / "cache/rates").glob("*.json")
    assert json.loads(kept.read_text())["tokens_per_s"] == rate["tokens_per_s"]
    # a second run does nothing and makes no snapshot
    files = sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
    second = run(spec)
    assert (result.embedded, second.embedded) == (True, False)
    assert second.snapshot == result.snapshot
    assert sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file()) == files


# tests/driver/test_refresh_on_ray.py refreshes through Ray by content, tests/driver/test_refresh.py
# by shards without it
@pytest.mark.slow
def test_a_refresh_embeds_only_new_and_changed_shards_and_drops_removed_ones(
    tmp_path: Path, bert_mean_dir: Path
) -> None:
    # each shard is larger than a quarter of a part: none shares a part. Two thirds of the
    # documents go, by id and by text, which is allowed.
    big = {"runtime": {"part_bytes": "1KiB", "max_delete_fraction": 0.7}}
    for name, first in (("keep", 0), ("change", 20), ("remove", 40)):
        write_shard(tmp_path / f"in/{name}.jsonl", documents(20, first))
    spec = make_spec(str(tmp_path / "in"), str(tmp_path / "out"), bert_mean_dir, **big)
    first = run(spec)
    write_shard(tmp_path / "in/change.jsonl", documents(15, 100))
    (tmp_path / "in/remove.jsonl").unlink()
    write_shard(tmp_path / "in/new.jsonl", documents(5, 200))
    second = run(spec)
    expected = {doc["id"] for doc in documents(20) + documents(15, 100) + documents(5, 200)}
    rows = rows_of(tmp_path / "out")
    assert set(rows) == expected
    assert second.progress["n_documents"] == 20
    assert {row["run_id"] for row in rows.values()} == {first.plan.run_id, second.plan.run_id}
    assert set(
        dataset.open_dataset(str(tmp_path / "out"), snapshot=1).to_table()["doc_id"].to_pylist()
    ) == {doc["id"] for doc in documents(60)}


@pytest.mark.slow  # tests/driver/test_refresh.py has it without Ray
def test_another_model_is_a_full_new_version_and_the_old_one_stays_readable(
    tmp_path: Path, bert_mean_dir: Path, bert_dense_dir: Path
) -> None:
    write_shard(tmp_path / "in/a.jsonl", documents(10))
    run(make_spec(str(tmp_path / "in"), str(tmp_path / "out"), bert_mean_dir))
    other = make_spec(str(tmp_path / "in"), str(tmp_path / "out"), bert_dense_dir)
    second = run(other, full_refresh=True)
    assert any(name.startswith("model.") for name in second.plan.changed_identity)
    assert second.snapshot.number == 2
    old = dataset.open_dataset(str(tmp_path / "out"), snapshot=1).to_table()
    new = dataset.open_dataset(str(tmp_path / "out")).to_table()
    assert (old.num_rows, new.num_rows) == (10, 10)
    assert set(old["fingerprint"].to_pylist()).isdisjoint(new["fingerprint"].to_pylist())


def test_bad_records_become_rejects_with_reason_and_place_and_the_rest_is_embedded(
    tmp_path: Path, bert_japanese_dir: Path
) -> None:
    good = {"id": "good", "text": "東京は日本の首都です。", "lang": "ja"}
    bad = {
        b"{broken": "malformed_json",
        b'["a list"]': "not_an_object",
        b'{"id": "m", "lang": "ja"}': "missing_text",
        b'{"id": "n", "text": null, "lang": "ja"}': "null_text",
        b'{"id": "i", "text": 12, "lang": "ja"}': "text_not_a_string",
        b'{"id": "e", "text": "", "lang": "ja"}': "empty_text",
        b'{"id": "w", "text": " \\n\\u3000", "lang": "ja"}': "empty_text",
        b'{"id": "u", "text": "\xff\xfe", "lang": "ja"}': "invalid_utf8",
        b'{"id": "0", "text": "a\\u0000b", "lang": "ja"}': "nul_character",
        b'{"id": "s", "text": "\\ud800", "lang": "ja"}': "lone_surrogate",
        json.dumps(
            {"id": "big", "text": "x" * 2_000_000, "lang": "ja"}
        ).encode(): "record_too_large",
    }
    long_run = {"id": "long", "text": "漢" * 400_000, "lang": "ja"}
    lines = [json.dumps(good).encode(), *bad, json.dumps(long_run, ensure_ascii=False).encode()]
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    (tmp_path / "in/empty.jsonl").write_bytes(b"")
    (tmp_path / "in/broken.parquet").write_bytes(b"PAR1 this is no parquet file PAR1")
    spec = make_spec(
        str(tmp_path / "in"),
        str(tmp_path / "out"),
        bert_japanese_dir,
        input={"max_record_bytes": "1500KiB"},
    )
    snapshot = run(spec).snapshot
    rows = rows_of(tmp_path / "out")
    assert set(rows) == {"good", "long"}
    assert rows["long"]["truncated"]
    assert rows["long"]["n_tokens"] == 512
    rejects = [
        row
        for path in (tmp_path / "out/_meta/rejects").rglob("*.parquet")
        for row in pq.read_table(path).to_pylist()
    ]
    data = (tmp_path / "in/a.jsonl").read_bytes()
    for line, reason in bad.items():
        line_rejects = [
            row
            for row in rejects
            if row["source_record"] == data.index(line) and row["source_uri"].endswith("a.jsonl")
        ]
        assert [row["reason"] for row in line_rejects] == [reason], line[:60]
    assert [row["reason"] for row in rejects if row["source_uri"].endswith("broken.parquet")] == [
        "damaged_shard"
    ]
    assert snapshot.n_records == len(lines) + 1 == snapshot.n_documents + snapshot.n_rejects


@pytest.mark.slow  # tests/driver/test_limits.py and test_watch.py have limits without Ray
def test_too_many_rejects_stop_the_run_and_a_raised_limit_goes_on_without_embedding_again(
    tmp_path: Path, bert_mean_dir: Path
) -> None:
    write_shard(tmp_path / "in/a.jsonl", [*documents(8), {"id": "x", "text": None, "lang": "en"}])
    spec = make_spec(
        str(tmp_path / "in"),
        str(tmp_path / "out"),
        bert_mean_dir,
        runtime={"max_reject_fraction": 0.05},
    )
    with pytest.raises(TooManyRejects, match=r"1 of 9 records"):
        run(spec)
    assert load_snapshot(Store(str(tmp_path / "out"))) is None
    lenient = make_spec(
        str(tmp_path / "in"),
        str(tmp_path / "out"),
        bert_mean_dir,
        runtime={"max_reject_fraction": 0.5},
    )
    result = run(lenient)
    assert not result.embedded
    assert (result.snapshot.n_documents, result.snapshot.reject_reasons) == (8, {"null_text": 1})


@pytest.mark.slow  # tests/tools/test_verify.py has duplicate ids without Ray
def test_duplicate_ids_are_kept_and_flagged(tmp_path: Path, bert_mean_dir: Path) -> None:
    write_shard(tmp_path / "in/a.jsonl", documents(5))
    write_shard(tmp_path / "in/b.jsonl", documents(5, 4))
    snapshot = run(make_spec(str(tmp_path / "in"), str(tmp_path / "out"), bert_mean_dir)).snapshot
    assert (snapshot.n_documents, snapshot.n_duplicate_ids) == (10, 1)


def test_a_shard_that_changes_or_vanishes_after_planning_is_planned_again_and_never_mixed(
    tmp_path: Path, bert_mean_dir: Path
) -> None:
    write_shard(tmp_path / "in/changes.jsonl", documents(12))
    write_shard(tmp_path / "in/vanishes.jsonl", documents(6, 50))
    write_shard(tmp_path / "in/stays.jsonl", documents(6, 80))
    plans = []

    def disturb_once(plan: Any) -> None:
        plans.append(plan)
        if len(plans) == 1:
            write_shard(tmp_path / "in/changes.jsonl", documents(9, 100))
            (tmp_path / "in/vanishes.jsonl").unlink()

    spec = make_spec(
        str(tmp_path / "in"), str(tmp_path / "out"), bert_mean_dir, runtime={"part_bytes": "1KiB"}
    )
    result = run(spec, on_plan=disturb_once)
    assert set(rows_of(tmp_path / "out")) == {
        doc["id"] for doc in documents(9, 100) + documents(6, 80)
    }
    assert len(plans) == 2
    assert result.snapshot.n_documents == 15


@pytest.mark.parametrize("n_splits", [1, 2, 7, 8, 9, 20, 1000])
def test_splits_share_blocks_only_where_they_are_too_many_and_never_the_last_ones(
    n_splits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks_module, "MAX_BLOCKS", 8)
    todo = [SimpleNamespace(to_json=lambda n=n: f"split {n}") for n in range(n_splits)]
    blocks = [block["todo"].to_pylist() for block in blocks_module.blocks_of(todo)]
    assert [split for block in blocks for split in block] == [split.to_json() for split in todo]
    assert len(blocks) == min(n_splits, len(blocks), 8)
    assert all(len(block) == 1 for block in (blocks if n_splits <= 8 else blocks[-4:]))


@pytest.mark.slow  # blocks_of has quick tests
def test_splits_that_share_a_block_are_embedded_as_ever(
    tmp_path: Path, bert_mean_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks_module, "MAX_BLOCKS", 4)
    docs = documents(120)
    for n in range(0, 120, 12):
        write_shard(tmp_path / f"in/{n:03}.jsonl", docs[n : n + 12])
    spec = make_spec(
        str(tmp_path / "in"), str(tmp_path / "out"), bert_mean_dir, runtime={"part_bytes": "1KiB"}
    )
    result = run(spec)
    assert len(result.plan.todo) > 8
    assert {doc_id: row["text"] for doc_id, row in rows_of(tmp_path / "out").items()} == {
        doc["id"]: doc["text"] for doc in docs
    }
