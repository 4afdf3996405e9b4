"""`run --limit N`: the first N records, at once, into an output that is nobody's.

Oracle: the documents that the test wrote, in the order of their files; shards behind the limit are
no data at all, so that whoever reads them fails.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.driver.planning.plan import make_plan
from pipeline.driver.planning.trial import trial_of
from pipeline.job.sections import PublishSpec
from pipeline.output.dataset import open_dataset
from pipeline.output.snapshots import live_parts
from tests.support.outputs import write_shard
from tests.support.stand_in import job_of, make_spec, run, store_of

PER_SHARD = 5


def documents(shard: str, n: int = PER_SHARD) -> list[dict[str, Any]]:
    return [{"id": f"{shard}-{i}", "text": f"text {i} of {shard}", "lang": "en"} for i in range(n)]


def ids_of(uri: str) -> list[str]:
    return sorted(open_dataset(uri).to_table(columns=["doc_id"])["doc_id"].to_pylist())


@pytest.mark.parametrize("limit", [1, 5, 7, 10, 15, 100])
@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "csv", "parquet"])
def test_a_trial_has_the_first_records_in_the_order_of_the_listing(
    tmp_path: Path, limit: int, suffix: str
) -> None:
    expected = []
    for shard in "abc":
        write_shard(tmp_path / f"in/{shard}.{suffix}", documents(shard))
        expected += [document["id"] for document in documents(shard)]
    spec = make_spec(tmp_path / "in", tmp_path / "out")
    snapshot = run(spec, limit=limit)
    assert snapshot is not None
    assert snapshot.complete
    assert ids_of(spec.output.uri) == expected[:limit]


@pytest.mark.parametrize("suffix", ["jsonl.gz", "parquet"])
def test_nothing_behind_the_limit_is_read(tmp_path: Path, suffix: str) -> None:
    write_shard(tmp_path / f"in/a.{suffix}", documents("a"))
    for name in "bcd":
        (tmp_path / f"in/{name}.{suffix}").write_bytes(b"\0 no data " * 1000)
    spec = make_spec(tmp_path / "in", tmp_path / "out", runtime={"max_damaged_fraction": 0.0})
    snapshot = run(spec, limit=PER_SHARD)
    assert snapshot is not None
    assert (snapshot.n_documents, snapshot.n_rejects) == (PER_SHARD, 0)


def test_empty_shards_before_the_first_record_are_passed(tmp_path: Path) -> None:
    write_shard(tmp_path / "in/z.jsonl", documents("z"))
    for number in range(20):
        (tmp_path / f"in/a{number:02}.jsonl").write_bytes(b"")
    spec = make_spec(tmp_path / "in", tmp_path / "out")
    assert run(spec, limit=2)
    assert ids_of(spec.output.uri) == ["z-0", "z-1"]


def test_a_whole_run_into_the_output_of_a_trial_reads_what_the_trial_left(tmp_path: Path) -> None:
    for shard in "ab":
        write_shard(tmp_path / f"in/{shard}.jsonl", documents(shard))
    spec = make_spec(tmp_path / "in", tmp_path / "out")
    run(spec, limit=2)
    snapshot = run(spec)
    assert snapshot is not None
    expected = [document["id"] for shard in "ab" for document in documents(shard)]
    assert ids_of(spec.output.uri) == expected
    assert sum(part.n_reused for part in live_parts(store_of(spec), snapshot)) == 2


def test_a_rejected_record_counts_as_one_of_the_first(tmp_path: Path) -> None:
    lines = [json.dumps(document) for document in documents("a")]
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_text("\n".join([lines[0], "no json", *lines[1:]]) + "\n")
    spec = make_spec(tmp_path / "in", tmp_path / "out")
    snapshot = run(spec, limit=3)
    assert snapshot is not None
    assert (snapshot.n_documents, snapshot.n_rejects) == (2, 1)


def test_many_records_become_small_parts(tmp_path: Path) -> None:
    long = [{**document, "text": "word " * 20_000} for document in documents("a", 20)]
    write_shard(tmp_path / "in/a.jsonl", long)
    spec = make_spec(tmp_path / "in", tmp_path / "out", runtime={"part_bytes": "32MiB"})
    snapshot = run(spec, limit=12)
    assert snapshot is not None
    assert snapshot.n_documents == 12
    assert snapshot.n_parts >= 4


def test_the_plan_of_a_trial_is_one_split_of_few_bytes(tmp_path: Path) -> None:
    for number in range(30):
        write_shard(tmp_path / f"in/{number}.jsonl", documents("a", 2000))
    spec = make_spec(tmp_path / "in", tmp_path / "out")
    plan = make_plan(job_of(spec), store_of(spec), limit=10)
    assert (len(plan.todo), plan.todo[0].max_records, plan.todo_parts) == (1, 10, 1)
    assert plan.todo_bytes < 100_000 < sum(shard.size_bytes for shard in plan.shards)


def test_the_output_of_a_trial_is_its_own_and_nothing_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    # another test of this process can have joined a cluster
    monkeypatch.setattr("pipeline.driver.planning.trial.is_alone", lambda address: address is None)
    spec = make_spec(
        tmp_path / "in",
        "s3://lake/vectors/",
        publish={"delta": True},
        output={"storage_options": {"endpoint_url": "http://127.0.0.1:1"}},
    )
    alone, again = trial_of(spec), trial_of(spec)
    assert Path(alone.output.uri).is_dir()
    assert len({spec.output.uri, alone.output.uri, again.output.uri}) == 3
    assert (alone.publish, alone.output.storage_options) == (PublishSpec(), {})
    on_cluster = trial_of(spec, "ray-head:6379")
    assert on_cluster.output.uri.startswith("s3://lake/vectors-limit-")
    assert on_cluster.output.storage_options == spec.output.storage_options
    for trial in (alone, on_cluster):  # the vectors are those of the job
        assert job_of(trial).fingerprint == job_of(spec).fingerprint
        Path(alone.output.uri).rmdir() if trial is alone else None
    Path(again.output.uri).rmdir()
