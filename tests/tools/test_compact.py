"""Compaction: the same rows in fewer files, which plan, verify, trace, vacuum and the change feed
treat as any others.

Oracle: the rows of the snapshot before, row for row; the documents that the test wrote; verify with
the real model.
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.driver.planning.plan import make_plan
from pipeline.errors import CommitConflict, OutputError
from pipeline.output.change_feed import changes
from pipeline.output.dataset import open_dataset
from pipeline.output.snapshots import live_parts, load_manifests, load_snapshot, snapshot_numbers
from pipeline.read.parts import cut
from pipeline.storage import failpoints, layout
from pipeline.storage.lineage import by_split
from pipeline.tools.compact import compact
from pipeline.tools.trace import trace
from pipeline.tools.vacuum import vacuum
from pipeline.tools.verify.verification import verify
from pipeline.write.create import create_manifest
from tests.cli.test_main import called
from tests.support import outputs, stand_in
from tests.support.outputs import DOCUMENTS, write_shard
from tests.support.stand_in import HashEngine, job_of, make_spec, run, store_of

NO_GRACE: dict[str, Any] = {"older_than": datetime.timedelta(0), "delete": True}


def corpus(root: Path) -> None:
    """Shards small and cut, a compressed one with a half of a record, rejects, a document of null
    partition."""
    for number, name in enumerate(["a.jsonl", "b.jsonl.gz", "c.parquet", "d.jsonl"]):
        docs = [
            {"id": f"{name}{n}", "text": f"{name} text {n} " * 6, "lang": ["en", "ja", None][n % 3]}
            for n in range(20 + number)
        ]
        write_shard(root / f"in/{name}", docs)
    with (root / "in/d.jsonl").open("a") as file:
        file.write('{"id": "no text"}\n{"id": "broken\n')


def spec_of(root: Path, **output: Any) -> Any:
    return make_spec(
        root / "in",
        root / "out",
        input={"keep_columns": ["lang"]},
        output=output,
        runtime={"part_bytes": 1024},
    )


def rows(root: Path, number: int | None = None) -> list[dict[str, Any]]:
    table = open_dataset(str(root / "out"), number).to_table().drop_columns(["part_id"])
    return sorted(
        table.to_pylist(), key=lambda row: (row["source_uri"], row["source_record"], row["chunk"])
    )


def head_parts(root: Path) -> list[Any]:
    store = store_of(spec_of(root))
    return live_parts(store, load_snapshot(store))


@pytest.fixture
def scene(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    corpus(tmp_path)
    run(spec_of(tmp_path, **getattr(request, "param", {})))
    return tmp_path


@pytest.mark.parametrize(
    "scene", [{}, {"partition_by": ["lang"]}, {"vector_precision": "int8"}], indirect=True
)
def test_the_same_rows_are_in_one_file_a_partition_and_nothing_is_to_do(scene: Path) -> None:
    folders = {part.path.rpartition("/")[0] for m in head_parts(scene) for part in m.data_files}
    spec = spec_of(scene)
    before = rows(scene)
    if len(folders) == 3:
        spec = spec_of(scene, partition_by=["lang"])
    elif "embedding_scale" in before[0]:
        spec = spec_of(scene, vector_precision="int8")
    compaction = compact(str(scene / "out"))
    assert compaction.n_parts_joined > 8
    assert (compaction.snapshot, compaction.n_files) == (2, len(folders))
    assert rows(scene) == before == rows(scene, 1)
    (part,) = head_parts(scene)
    assert {
        path.parent.name for path in (scene / "out/data").rglob(f"part-{part.part_id}.parquet")
    } == {Path(folder).name for folder in folders}
    assert make_plan(job_of(spec), store_of(spec)).nothing_to_do
    engine = HashEngine()
    assert run(spec, engine).number == 2
    assert engine.seen == []
    feed = changes(str(scene / "out"), 1, 2)
    assert [*feed.upserts(), *feed.deletes()] == []
    assert compact(str(scene / "out")).n_parts_joined == 0
    assert snapshot_numbers(store_of(spec)) == [1, 2]


def test_the_joined_split_read_again_is_one_part_with_the_same_records(scene: Path) -> None:
    compact(str(scene / "out"))
    (joined,) = head_parts(scene)
    (again,) = cut(joined.split, job_of(spec_of(scene)))
    assert (again.index, again.last) == (0, True)
    assert again.records.num_rows == joined.n_records == 20 + 21 + 22 + 23 + 2
    assert joined.n_rejects == 2
    letters = pq.read_table(scene / "out" / joined.rejects_path).to_pylist()
    assert (
        {row["reason"] for row in letters}
        == {"missing_text", "malformed_json"}
        == set(joined.reject_reasons)
    )
    assert {row["part_id"] for row in letters} == {joined.part_id}


def test_one_changed_shard_is_read_with_the_others_of_its_part_and_all_is_right_again(
    scene: Path,
) -> None:
    compact(str(scene / "out"))
    docs = [{"id": f"new{n}", "text": f"new {n}", "lang": "en"} for n in range(7)]
    write_shard(scene / "in/a.jsonl", docs)
    run(spec_of(scene))
    ids = [row["doc_id"] for row in rows(scene)]
    assert len(ids) == len(set(ids)) == 7 + 21 + 22 + 23
    assert {f"new{n}" for n in range(7)} <= set(ids)


def test_target_bytes_bounds_the_files_and_large_splits_stay(scene: Path) -> None:
    sizes = {
        split: sum(f.size_bytes for part in manifests for f in part.data_files)
        for split, manifests in by_split(head_parts(scene)).items()
    }
    target = sorted(sizes.values())[-2]
    large = {split for split, size in sizes.items() if size >= target}
    before = rows(scene)
    compact(str(scene / "out"), target_bytes=target)
    assert large <= set(by_split(head_parts(scene)))
    assert rows(scene) == before


def test_a_run_that_commits_first_is_a_conflict_and_nothing_is_lost(
    scene: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish = create_manifest

    def and_meanwhile_a_run(store: Any, manifest: Any) -> Any:
        monkeypatch.setattr("pipeline.tools.joined_part.create_manifest", publish)
        write_shard(scene / "in/e.jsonl", [{"id": "e", "text": "e", "lang": "en"}])
        run(spec_of(scene))
        return publish(store, manifest)

    monkeypatch.setattr("pipeline.tools.joined_part.create_manifest", and_meanwhile_a_run)
    assert called(monkeypatch, "compact", str(scene / "out")) == 4
    assert "CommitConflict" in (message := capsys.readouterr().err)
    assert "Nothing is lost" in message
    assert "e" in {row["doc_id"] for row in rows(scene)}
    before = rows(scene)
    assert compact(str(scene / "out")).snapshot == 3
    assert rows(scene) == before


def test_a_run_planned_before_a_compaction_is_a_conflict_and_the_next_one_is_right(
    scene: Path,
) -> None:
    write_shard(scene / "in/e.jsonl", [{"id": "e", "text": "e", "lang": "en"}])
    spec = spec_of(scene)
    store = store_of(spec)
    job = job_of(spec)
    plan = make_plan(job, store)
    for prepared in stand_in.prepared_parts(spec, plan):
        stand_in.publish_prepared(prepared, job, store, HashEngine())
    compact(str(scene / "out"))
    with pytest.raises(CommitConflict):
        stand_in.commit_plan(plan, store, load_manifests(store, job.fingerprint, plan.done))
    engine = HashEngine()
    assert run(spec, engine).number == 3
    assert engine.seen == []  # the part that the first attempt finished is kept
    assert len(rows(scene)) == 20 + 21 + 22 + 23 + 1


def test_a_damaged_file_is_refused(scene: Path) -> None:
    path = next((scene / "out/data").rglob("*.parquet"))
    data = path.read_bytes()
    path.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    with pytest.raises(OutputError, match="SHA-256"):
        compact(str(scene / "out"))
    assert snapshot_numbers(store_of(spec_of(scene))) == [1]


@pytest.fixture
def real(tmp_path: Path, bert_mean_dir: Path) -> tuple[Path, Any]:
    """An output with a real model, some of its parts of an earlier run."""
    write_shard(tmp_path / "in/a.jsonl", DOCUMENTS[:5])
    spec = outputs.make_spec(
        str(tmp_path / "in"), str(tmp_path / "out"), bert_mean_dir, runtime={"part_bytes": 1024}
    )
    outputs.run_without_ray(spec)
    write_shard(tmp_path / "in/b.csv", DOCUMENTS[5:])
    (tmp_path / "in/c.jsonl").write_text('{"id": "no text"}\n')
    outputs.run_without_ray(spec)
    return tmp_path, spec


def test_verify_trace_and_vacuum_treat_a_compacted_output_as_any_other(
    real: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, _ = real
    before = rows(root)
    out = str(root / "out")
    assert called(monkeypatch, "compact", out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["n_files"] == 1
    verification = verify(out, sample=8)
    assert verification.ok, [check for check in verification.checks if not check.ok]
    for row in before:
        traced = trace(out, row["doc_id"])
        assert traced.ok
        assert [r.run_id for r in traced.rows] == [row["run_id"]]  # the run that embedded it
    removed = vacuum(out, keep_snapshots=1, **NO_GRACE).paths
    assert [path for path in removed if path.startswith("data/")]
    assert rows(root) == before
    assert verify(out, sample=2).ok
    for run_id in {row["run_id"] for row in before}:
        assert (root / f"out/_meta/runs/{run_id}/spec.yaml").exists()
    assert called(monkeypatch, "compact", out, "--target-bytes", "many") == 2


@pytest.mark.faults
@pytest.mark.parametrize("point", ["after_data_put", "after_manifest_put", "after_file_list_put"])
def test_a_killed_compaction_goes_on_where_it_stopped(
    scene: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    def kill(name: str) -> None:
        if name == point:
            raise Killed

    before = rows(scene)
    monkeypatch.setattr("pipeline.write.create.failpoint", kill)
    monkeypatch.setattr("pipeline.output.snapshots.failpoint", kill)
    with pytest.raises(Killed):
        compact(str(scene / "out"))
    assert rows(scene) == before
    monkeypatch.setattr("pipeline.write.create.failpoint", failpoints.failpoint)
    monkeypatch.setattr("pipeline.output.snapshots.failpoint", failpoints.failpoint)
    # its unfinished objects do not disturb a plan
    assert make_plan(job_of(spec_of(scene)), store_of(spec_of(scene))).nothing_to_do
    written = {path: path.stat().st_mtime_ns for path in records_and_data(scene)}
    compact(str(scene / "out"))
    assert rows(scene) == before
    assert written.items() <= {p: p.stat().st_mtime_ns for p in records_and_data(scene)}.items()


def records_and_data(root: Path) -> list[Path]:
    """The files of an output, but for its card and its list of files, which are replaced."""
    folders = (root / "out/_meta", root / "out/data")
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if path != root / "out" / layout.CURRENT]
