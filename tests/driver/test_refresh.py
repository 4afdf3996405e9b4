"""Scheduled refreshes: what the plan and the end say, what stops a listing that shrank, what two at
once do.

Oracle: the documents that the test wrote, and the requests that a proxy saw.
"""

from __future__ import annotations

import datetime
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.driver.cluster.on_ray import run as run_job
from pipeline.driver.commits import finish
from pipeline.driver.limits import check_plan
from pipeline.driver.planning.plan import Plan, make_plan
from pipeline.driver.planning.tally import row_counts
from pipeline.errors import CommitConflict, SpecError, TooManyDeletions
from pipeline.job.sections import RuntimeSpec
from pipeline.job.spec import JobSpec
from pipeline.output.dataset import open_dataset
from pipeline.output.snapshots import live_parts, load_manifests, load_snapshot, snapshot_numbers
from pipeline.storage.lineage import Manifest, Snapshot
from pipeline.tools.verify.verification import verify
from tests.cli.test_main import called
from tests.support import outputs
from tests.support.fault_proxy import FaultProxy
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

RUNTIME = {
    "part_bytes": 1024,
    # as in a spec of a user; make_spec of the helpers lifts the limit
    "max_delete_fraction": RuntimeSpec.model_fields["max_delete_fraction"].default,
}
WHEN = datetime.datetime(2026, 11, 23, 4, tzinfo=datetime.UTC)


def documents(first: int, stop: int) -> list[dict[str, Any]]:
    return [
        {"id": f"d{n}", "text": f"This is text {n}. " * 5, "lang": "en"} for n in range(first, stop)
    ]


def plan_of(spec: JobSpec) -> Plan:
    return make_plan(job_of(spec), store_of(spec))


def published(spec: JobSpec, plan: Plan) -> list[Manifest]:
    """The parts of a plan, all published now."""
    for prepared in prepared_parts(spec, plan):
        publish_prepared(prepared, plan.job, store_of(spec), HashEngine())
    return plan.parts_of(load_manifests(store_of(spec), plan.job.fingerprint))


def live_ids(spec: JobSpec) -> list[str]:
    return sorted(open_dataset(spec.output.uri).to_table(columns=["doc_id"])["doc_id"].to_pylist())


def alone(root: Path, model: Path, **sections: dict[str, Any]) -> JobSpec:
    """A spec with a real model, under which every shard has a split of its own."""
    runtime = {**RUNTIME, **sections.pop("runtime", {})}
    return outputs.make_spec(
        str(root / "in"), str(root / "out"), model, runtime=runtime, **sections
    )


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    """Five shards of ten documents, embedded."""
    for n in range(5):
        write_shard(tmp_path / f"in/{n}.jsonl", documents(n * 10, n * 10 + 10))
    spec = make_spec(tmp_path / "in", tmp_path / "out", runtime=RUNTIME)
    run(spec)
    return spec


def test_the_plan_and_the_end_of_a_run_say_what_changes(spec: JobSpec, tmp_path: Path) -> None:
    (tmp_path / "in/0.jsonl").unlink()  # 10 removed
    # 7 reused, 3 removed, 4 embedded
    write_shard(tmp_path / "in/1.jsonl", [*documents(10, 17), *documents(90, 94)])
    # 6 embedded, 1 rejected
    write_shard(tmp_path / "in/5.jsonl", [*documents(50, 56), {"id": "bad", "text": None}])
    plan = plan_of(spec)
    facts = plan.summary()
    assert facts["shard_changes"] == {"unchanged": 3, "changed": 1, "new": 1, "removed": 1}
    assert (facts["documents_done"], facts["documents_removed_at_most"]) == (30, 20)
    assert row_counts(store_of(spec), plan.live, published(spec, plan)) == {
        "carried": 30,
        "reused": 7,
        "embedded": 10,
        "removed": 13,
        "rejected": 1,
    }


def test_removed_counts_the_rows_whose_text_is_gone_whatever_else_took_their_vectors(
    spec: JobSpec, tmp_path: Path
) -> None:
    """Reused vectors also come from rows that stay, from rows copied twice, and from parts that
    left earlier."""
    write_shard(tmp_path / "in/0.jsonl", documents(0, 5))  # 5 to 9 leave
    run(spec)
    # 5 removed; 3 come back
    write_shard(tmp_path / "in/1.jsonl", [*documents(15, 20), *documents(6, 9)])
    (tmp_path / "in/2.jsonl").rename(tmp_path / "in/moved.jsonl")  # 10 moved
    (tmp_path / "in/3.jsonl").unlink()  # 10 removed
    # of rows that stay
    copies = [{**doc, "id": f"{doc['id']}-{n}"} for n in range(2) for doc in documents(40, 44)]
    write_shard(
        tmp_path / "in/copies.jsonl",
        [*copies, *({**doc, "id": "x"} for doc in documents(15, 17)), *documents(60, 62)],
    )
    plan = plan_of(spec)
    counts = row_counts(store_of(spec), plan.live, published(spec, plan))
    assert counts == {"carried": 15, "reused": 28, "embedded": 2, "removed": 15, "rejected": 0}


def test_a_new_fingerprint_is_a_full_re_embed_that_carries_nothing(
    spec: JobSpec, tmp_path: Path
) -> None:
    other = make_spec(tmp_path / "in", tmp_path / "out", prepare={"unicode": "NFKC"})
    plan = plan_of(other)
    assert plan.changes.unchanged == 5
    assert row_counts(store_of(other), plan.live, published(other, plan)) == {
        "carried": 0,
        "reused": 0,
        "embedded": 50,
        "removed": 50,
        "rejected": 0,
    }


@pytest.mark.parametrize(
    ("sections", "n_gone", "stops"),
    [
        ({}, 1, False),
        ({}, 2, True),
        ({"runtime": {"max_delete_fraction": 0.4}}, 2, False),
        ({"runtime": {"max_delete_fraction": 1}}, 4, False),
        ({"runtime": {"max_delete_fraction": 0}}, 1, True),
        ({"prepare": {"unicode": "NFKC"}}, 1, False),
        ({"prepare": {"unicode": "NFKC"}}, 2, True),
    ],
)
def test_a_listing_that_shrank_too_much_stops_the_run_before_anything_is_embedded(
    tmp_path: Path, bert_mean_dir: Path, sections: dict[str, Any], n_gone: int, stops: bool
) -> None:
    for n in range(5):
        write_shard(tmp_path / f"in/{n}.jsonl", documents(n * 10, n * 10 + 10))
    first = outputs.run_without_ray(alone(tmp_path, bert_mean_dir))
    for n in range(n_gone):
        (tmp_path / f"in/{n}.jsonl").unlink()
    spec = alone(tmp_path, bert_mean_dir, **sections)
    if stops:
        with pytest.raises(
            TooManyDeletions,
            match=r"50 documents, and the input now has at most 3?4?0\. .*=1; otherwise",
        ):
            run_job(spec)
        assert load_snapshot(store_of(spec)) == first
        assert len(list((tmp_path / "out/_meta/runs").iterdir())) == 1
    elif "prepare" not in sections:  # nothing to embed: no cluster is needed
        result = run_job(spec, nominal_time=WHEN)
        assert (result.snapshot.n_documents, result.embedded, result.snapshot.nominal_time) == (
            50 - n_gone * 10,
            False,
            WHEN,
        )
        assert result.rows["removed"] == n_gone * 10
        assert run_job(spec, nominal_time=WHEN).snapshot == result.snapshot
        (attempt,) = (tmp_path / f"out/_meta/runs/{result.plan.run_id}").glob("attempt-*.json")
        record = json.loads(attempt.read_text())
        assert (record["rows"], record["nominal_time"]) == (result.rows, WHEN.isoformat())


def test_changed_shards_that_shrank_stop_the_run_before_its_commit(
    spec: JobSpec, tmp_path: Path
) -> None:
    for n in range(3):  # as many bytes, fewer documents
        long = [{"id": f"d{n}", "text": f"{n} " + "long " * 400}]
        write_shard(tmp_path / f"in/{n}.jsonl", long)
    plan, head = plan_of(spec), load_snapshot(store_of(spec))
    check_plan(plan)  # the plan cannot know
    parts = published(spec, plan)
    with pytest.raises(
        TooManyDeletions, match="snapshot 1 has 50 documents, and the next one would have 23"
    ):
        finish(plan, store_of(spec), parts)
    assert load_snapshot(store_of(spec)) == head
    allowed = make_spec(
        tmp_path / "in", tmp_path / "out", runtime={"part_bytes": 1024, "max_delete_fraction": 0.54}
    )
    assert finish(plan_of(allowed), store_of(spec), parts).n_documents == 23


def test_an_empty_listing_never_empties_an_output(spec: JobSpec, tmp_path: Path) -> None:
    before = load_snapshot(store_of(spec))
    for path in (tmp_path / "in").iterdir():
        path.unlink()
    with pytest.raises(SpecError, match=r"no input found there .* Check input\.uri"):
        plan_of(spec)
    assert load_snapshot(store_of(spec)) == before


def test_the_command_line_ends_with_5_and_says_how_to_allow_it(
    tmp_path: Path,
    bert_mean_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for n in range(2):
        write_shard(tmp_path / f"in/{n}.jsonl", documents(n * 10, n * 10 + 10))
    spec = alone(tmp_path, bert_mean_dir)
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    outputs.run_without_ray(spec)
    (tmp_path / "in/1.jsonl").unlink()
    assert called(monkeypatch, "run", str(path)) == 5
    output = " ".join(capsys.readouterr().err.split())
    assert "1 unchanged, 1 removed" in output
    assert "TooManyDeletions" in output
    assert called(monkeypatch, "run", str(path), "--nominal-time", "yesterday") == 2
    assert called(monkeypatch, "run", str(path), "--set", "runtime.max_delete_fraction=1") == 0
    assert "rows: 10 carried, 10 removed" in " ".join(capsys.readouterr().err.split())
    assert called(monkeypatch, "run", str(path)) == 0
    assert "nothing to do" in capsys.readouterr().err


def test_two_refreshes_at_once_end_in_one_snapshot_and_one_conflict_and_lose_nothing(
    spec: JobSpec, tmp_path: Path
) -> None:
    write_shard(tmp_path / "in/5.jsonl", documents(50, 55))
    early = plan_of(spec)
    write_shard(tmp_path / "in/0.jsonl", documents(3, 10))  # the second one lists a little later
    late = plan_of(spec)
    assert early.run_id != late.run_id
    together, results = threading.Barrier(2), []

    def refresh_now(plan: Plan) -> None:
        together.wait()
        parts = published(spec, plan)
        together.wait()
        try:
            results.append(finish(plan, store_of(spec), parts))
        except CommitConflict as error:
            results.append(error)

    racers = [threading.Thread(target=refresh_now, args=(plan,)) for plan in (early, late)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert sorted(type(result).__name__ for result in results) == ["CommitConflict", "Snapshot"]
    assert snapshot_numbers(store_of(spec)) == [1, 2]
    engine = HashEngine()
    last = run(spec, engine)  # the same command again, whoever lost
    assert engine.seen == []
    assert live_ids(spec) == sorted(doc["id"] for doc in documents(3, 55))
    assert run(spec) == last


def test_records_of_before_this_release_are_readable(spec: JobSpec) -> None:
    store = store_of(spec)
    snapshot = load_snapshot(store)
    assert snapshot is not None
    (part, *_) = live_parts(store, snapshot)
    old = json.loads(part.to_json())
    del old["n_reused"]
    assert Manifest.from_json(json.dumps(old).encode(), "old") == part
    old = json.loads(snapshot.to_json())
    del old["nominal_time"]
    assert Snapshot.from_json(json.dumps(old).encode(), "old") == snapshot


@pytest.mark.parametrize("mode", ["truncate", "chunk", "chunk_and_pool"])
def test_verify_holds_for_an_output_whose_rows_were_reused(
    tmp_path: Path, bert_mean_dir: Path, mode: str
) -> None:
    prepare = {"long_documents": mode, "chunk": {"max_tokens": 16, "overlap_tokens": 4}}
    spec = outputs.make_spec(
        str(tmp_path / "in"), str(tmp_path / "out"), bert_mean_dir, prepare=prepare
    )
    write_shard(tmp_path / "in/a.jsonl.gz", documents(0, 12))
    outputs.run_without_ray(spec)
    write_shard(tmp_path / "in/a.jsonl.gz", documents(4, 14))
    snapshot = outputs.run_without_ray(spec)
    assert snapshot is not None
    (part,) = live_parts(store_of(spec), snapshot)
    assert 0 < part.n_reused < part.n_rows
    verification = verify(str(tmp_path / "out"), sample=snapshot.n_rows)
    assert verification.ok, [check for check in verification.checks if not check.ok]


def test_unchanged_shards_are_carried_over_without_one_request_for_them(
    s3: Any, tmp_path: Path
) -> None:
    """One is a Parquet shard of several splits, whose footer a plan needs only once."""
    with FaultProxy(s3.endpoint_url) as proxy:
        options = {"storage_options": {"endpoint_url": proxy.endpoint_url}}
        spec = make_spec(
            f"{s3.uri}/in",
            f"{s3.uri}/out",
            input=options,
            output=options,
            runtime={"part_bytes": 1024},
        )
        for name, docs in {"a.parquet": documents(0, 80), "b.jsonl": documents(80, 90)}.items():
            s3.filesystem.put_file(str(write_shard(tmp_path / name, docs)), f"{s3.key}/in/{name}")
        run(spec)
        assert (
            len(
                {
                    part.split.split_id
                    for part in load_manifests(store_of(spec), job_of(spec).fingerprint)
                }
            )
            > 3
        )
        s3.filesystem.put_file(
            str(write_shard(tmp_path / "b.jsonl", documents(85, 95))), f"{s3.key}/in/b.jsonl"
        )
        seen = len(proxy.log)
        run(spec)
        requests = [(request.method, request.target.split("?")[0]) for request in proxy.log[seen:]]
    shards = {target.rpartition("/")[2] for method, target in requests if "/in/" in target}
    assert shards == {"b.jsonl"}
    assert sorted(
        open_dataset(f"{s3.uri}/out", storage_options=s3.storage_options)
        .to_table()["doc_id"]
        .to_pylist()
    ) == (sorted(doc["id"] for doc in documents(0, 80) + documents(85, 95)))
