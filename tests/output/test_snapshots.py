"""The commit protocol: who is second adopts, who conflicts stops, and only a snapshot makes
anything visible.

Oracle: the documents written, and the objects in the store.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.driver.planning.plan import Plan, make_plan
from pipeline.driver.planning.splits import missing
from pipeline.errors import CommitConflict, OutputError
from pipeline.job.spec import JobSpec
from pipeline.output.dataset import open_dataset
from pipeline.output.snapshots import (
    commit_snapshot,
    load_generation,
    load_manifests,
    load_snapshot,
    snapshot_numbers,
)
from pipeline.storage.lineage import DataFile, Manifest, Snapshot
from pipeline.storage.store import Store
from pipeline.write import parquet
from pipeline.write.create import create_data_file, create_generation, create_manifest
from tests.support.outputs import write_shard
from tests.support.stand_in import (
    HashEngine,
    commit_plan,
    job_of,
    make_spec,
    prepared_parts,
    publish_prepared,
    run,
    store_of,
)

DOCS = [{"id": f"d{n}", "text": f"text {n} " * 20} for n in range(30)]
METADATA = {"part_id": "p1"}


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    write_shard(tmp_path / "in/a.jsonl", DOCS)
    return make_spec(tmp_path / "in", tmp_path / "out", runtime={"part_bytes": 1024})


def finished(spec: JobSpec) -> tuple[Plan, Store, list[Manifest]]:
    """A plan whose parts are all published and not committed."""
    store, job = store_of(spec), job_of(spec)
    plan = make_plan(job, store)
    for prepared in prepared_parts(spec, plan):
        publish_prepared(prepared, job, store, HashEngine())
    manifests = load_manifests(store, job.fingerprint)
    assert not missing(plan.todo, manifests)
    return plan, store, manifests


def rows(n: int, first: int = 0) -> pa.Table:
    numbers = range(first, first + n)
    return pa.table(
        {
            "doc_id": [str(i) for i in numbers],
            "chunk": pa.array([0] * n, pa.int32()),
            "text_sha256": [f"{i:064x}" for i in numbers],
            "source_record": list(numbers),
        }
    )


def publish(
    store: Store, folder: str, partition: dict[str, Any], table: pa.Table, metadata: dict[str, Any]
) -> DataFile:
    data = parquet.encode(table, metadata)
    return create_data_file(store, "p1", folder, partition, table.num_rows, data)


def test_nothing_is_visible_before_the_snapshot_and_everything_after_it(spec: JobSpec) -> None:
    plan, store, parts = finished(spec)
    with pytest.raises(OutputError, match="has no snapshot yet"):
        open_dataset(spec.output.uri)
    snapshot = commit_plan(plan, store, parts)
    assert (snapshot.number, snapshot.parent, snapshot.n_documents) == (1, None, len(DOCS))
    assert sorted(open_dataset(spec.output.uri).to_table()["doc_id"].to_pylist()) == sorted(
        d["id"] for d in DOCS
    )
    assert load_snapshot(store) == snapshot


def test_a_data_file_is_created_once_and_a_second_attempt_adopts_it(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    first = publish(store, "", {}, rows(3), METADATA)
    before = store.read(first.path)
    # another attempt: same rows, another byte sequence
    second = publish(store, "", {}, rows(3), {**METADATA, "engine": "another device"})
    assert second == first
    assert store.read(first.path) == before
    assert list(store.list("data")) == ["data/part-p1.parquet"]


@pytest.mark.parametrize(
    "content", ["another part", "no Parquet", "Parquet of another program", "empty"]
)
def test_a_file_of_somebody_else_is_neither_adopted_nor_overwritten(
    tmp_path: Path, content: str
) -> None:
    store, path = Store(str(tmp_path)), tmp_path / "data/part-p1.parquet"
    path.parent.mkdir()
    if content == "another part":
        path.write_bytes(parquet.encode(rows(3), {"part_id": "p2"}))
    elif content == "Parquet of another program":
        pq.write_table(rows(3), path)
    else:
        path.write_bytes(b"" if content == "empty" else b"hello")
    before = path.read_bytes()
    with pytest.raises(OutputError, match=r"part-p1\.parquet: already there.*another output\.uri"):
        publish(store, "", {}, rows(3), METADATA)
    assert path.read_bytes() == before


@pytest.mark.parametrize("earlier", [rows(2), rows(3, first=1)])
def test_other_rows_of_the_same_part_are_not_adopted_and_do_not_block_it(
    tmp_path: Path, earlier: pa.Table
) -> None:
    """An attempt that died before its manifest had a broken vector that this one has not: its file
    is not ours."""
    store = Store(str(tmp_path))
    orphan = publish(store, "lang=en", {"lang": "en"}, earlier, METADATA)
    ours = publish(store, "lang=en", {"lang": "en"}, rows(3), METADATA)
    again = publish(store, "lang=en", {"lang": "en"}, rows(3), METADATA)
    assert ours == again
    assert ours.path != orphan.path
    assert ours.path.startswith("data/lang=en/part-p1")
    assert pq.read_table(tmp_path / ours.path, columns=["doc_id"]).equals(
        rows(3).select(["doc_id"])
    )
    assert pq.read_table(tmp_path / orphan.path, columns=["doc_id"]).equals(
        earlier.select(["doc_id"])
    )


def test_a_data_file_that_rotted_before_its_manifest_is_written_beside(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    orphan = publish(store, "", {}, rows(3), METADATA)
    column = pq.read_metadata(tmp_path / orphan.path).row_group(0).column(2)
    data = bytearray((tmp_path / orphan.path).read_bytes())
    data[column.data_page_offset + column.total_compressed_size - 1] ^= 1
    (tmp_path / orphan.path).write_bytes(data)
    ours = publish(store, "", {}, rows(3), METADATA)
    assert ours.path != orphan.path
    assert pq.read_table(tmp_path / ours.path, page_checksum_verification=True).num_rows == 3


def test_a_manifest_is_created_once_and_the_first_one_counts(spec: JobSpec) -> None:
    _, store, parts = finished(spec)
    other = parts[0].model_copy(update={"run_id": "later", "n_padded_tokens": 99})
    assert create_manifest(store, other) == parts[0]


class LosesAnswers(Store):
    """The write lands, its answer does not, and the retry is refused: what a client sees after a
    lost response."""

    def put_if_absent(self, relative: str, data: bytes) -> bool:
        super().put_if_absent(relative, data)
        return super().put_if_absent(relative, data)


def test_lost_answers_of_every_write_end_in_the_same_output(spec: JobSpec) -> None:
    store, job = LosesAnswers(spec.output.uri), job_of(spec)
    plan = make_plan(job, store)
    made = [publish_prepared(p, job, store, HashEngine()) for p in prepared_parts(spec, plan)]
    snapshot = commit_plan(plan, store, made)
    assert snapshot_numbers(store) == [1]
    assert snapshot == load_snapshot(store)
    assert open_dataset(spec.output.uri).count_rows() == len(DOCS)


def test_the_same_content_makes_no_second_snapshot(spec: JobSpec) -> None:
    plan, store, parts = finished(spec)
    first = commit_plan(plan, store, parts)
    assert commit_plan(make_plan(plan.job, store), store, parts) == first
    # planned before the first commit
    assert commit_plan(plan, store, list(reversed(parts))) == first
    assert commit_plan(plan, store, parts, complete=False) == first
    assert snapshot_numbers(store) == [1]


def test_committers_of_one_run_agree_on_one_snapshot(spec: JobSpec) -> None:
    plan, store, parts = finished(spec)
    results: list[Any] = []
    racers = [
        threading.Thread(target=lambda: results.append(commit_plan(plan, Store(store.uri), parts)))
        for _ in range(6)
    ]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert len(results) == 6
    assert {snapshot.number for snapshot in results} == {1}
    assert snapshot_numbers(store) == [1]


def test_a_run_that_was_planned_before_another_one_committed_is_in_conflict(
    spec: JobSpec, tmp_path: Path
) -> None:
    plan, store, parts = finished(spec)
    write_shard(tmp_path / "in/b.jsonl", [{"id": "new", "text": "new"}])
    winner = run(spec)
    with pytest.raises(CommitConflict, match=r"committed snapshot 1.*run the same command again"):
        commit_plan(plan, store, parts)
    assert load_snapshot(store) == winner
    assert run(spec) == winner  # the same command again sees that everything is there


def test_a_partial_snapshot_is_followed_by_the_complete_one(spec: JobSpec) -> None:
    plan, store, parts = finished(spec)
    some = sorted(parts, key=lambda part: part.part_id)[:2]
    partial = commit_plan(plan, store, some, complete=False)
    assert (partial.number, partial.complete, partial.n_parts) == (1, False, 2)
    assert open_dataset(spec.output.uri).count_rows() == partial.n_rows < len(DOCS)
    assert not make_plan(plan.job, store).nothing_to_do
    # still planned on no head at all: its own snapshot is built upon
    complete = commit_plan(plan, store, parts)
    assert (complete.number, complete.parent, complete.complete) == (2, 1, True)
    assert commit_plan(plan, store, parts) == complete


def test_a_slow_attempt_does_not_take_parts_away_that_a_faster_one_made_visible(
    spec: JobSpec,
) -> None:
    plan, store, parts = finished(spec)
    more = commit_plan(plan, store, parts[:4], complete=False)
    # listed its manifests earlier, stood still, commits now
    late = commit_plan(plan, store, parts[:2], complete=False)
    assert late == more == load_snapshot(store)


def test_a_complete_snapshot_follows_a_partial_one_of_the_same_parts(spec: JobSpec) -> None:
    plan, store, parts = finished(spec)
    partial = commit_plan(plan, store, parts, complete=False)
    complete = commit_plan(plan, store, parts)
    assert (partial.file_list, partial.number + 1) == (complete.file_list, complete.number)
    assert make_plan(plan.job, store).nothing_to_do


def test_every_snapshot_stays_readable_as_it_was(spec: JobSpec, tmp_path: Path) -> None:
    expected: list[set[str]] = []
    for n in (10, 25, 5):
        docs = [{"id": f"{n}-{i}", "text": f"{n} {i}"} for i in range(n)]
        write_shard(tmp_path / "in/a.jsonl", docs)
        run(spec)
        expected.append({doc["id"] for doc in docs})
    for number, ids in enumerate(expected, start=1):
        assert (
            set(open_dataset(spec.output.uri, snapshot=number).to_table()["doc_id"].to_pylist())
            == ids
        )
    with pytest.raises(OutputError, match="no snapshot 9; kept: 1 to 3"):
        open_dataset(spec.output.uri, snapshot=9)


@pytest.mark.parametrize(
    "change",
    [
        {"n_records": 1000},
        {"n_documents": 0},
        {"n_rejects": 1},
        {"n_rows": 0},
        {"data_files": ()},
        {"fingerprint": "another"},
    ],
)
def test_a_part_that_does_not_count_up_is_never_committed(
    spec: JobSpec, change: dict[str, Any]
) -> None:
    plan, store, parts = finished(spec)
    with pytest.raises(OutputError, match=parts[0].part_id):
        commit_plan(plan, store, [parts[0].model_copy(update=change), *parts[1:]])
    assert snapshot_numbers(store) == []


def test_a_part_listed_twice_is_never_committed(spec: JobSpec) -> None:
    plan, store, parts = finished(spec)
    with pytest.raises(OutputError, match="listed 2 times"):
        commit_plan(plan, store, [*parts, parts[0]])


def test_a_split_without_all_its_parts_is_never_in_a_complete_snapshot(
    spec: JobSpec, tmp_path: Path
) -> None:
    write_shard(tmp_path / "in/a.jsonl.gz", DOCS)  # one split of many parts
    plan, store, parts = finished(spec)
    last = max(parts, key=lambda part: part.index)
    for lost in (
        last,
        next(part for part in parts if part.split == last.split and part.index == 1),
    ):
        with pytest.raises(OutputError, match=f"split {last.split.split_id}: has the parts"):
            commit_plan(plan, store, [part for part in parts if part != lost])


def test_two_splits_over_the_same_records_are_never_committed(
    spec: JobSpec, tmp_path: Path
) -> None:
    plan, store, parts = finished(spec)
    other = make_spec(tmp_path / "in", tmp_path / "out", runtime={"part_bytes": 1 << 20})
    job, fresh = job_of(other), Store(str(tmp_path / "elsewhere"))
    doubled = [
        publish_prepared(p, job, store, HashEngine())
        for p in prepared_parts(other, make_plan(job, fresh))
    ]
    with pytest.raises(OutputError, match="read twice"):
        commit_snapshot(
            store,
            [*parts, *doubled],
            run_id=plan.run_id,
            fingerprint=job.fingerprint,
            parent=None,
            complete=True,
        )


def test_a_dimension_that_changed_under_one_fingerprint_is_refused(spec: JobSpec) -> None:
    _, store, parts = finished(spec)
    generation = load_generation(store, parts[0].fingerprint)
    assert generation is not None
    assert create_generation(store, generation) == generation
    with pytest.raises(OutputError, match="dimension 8"):
        create_generation(store, generation.model_copy(update={"dimension": 16}))


def test_the_file_list_names_the_paths_of_all_data_files_for_other_engines(
    spec: JobSpec, tmp_path: Path
) -> None:
    snapshot = run(spec)
    assert isinstance(snapshot, Snapshot)
    paths = [
        path
        for row in pq.read_table(tmp_path / "out" / snapshot.file_list)["paths"].to_pylist()
        for path in row
    ]
    on_disk = {
        str(path.relative_to(tmp_path / "out"))
        for path in (tmp_path / "out/data").rglob("*")
        if path.is_file()
    }
    assert set(paths) == on_disk
    assert len(paths) == snapshot.n_files


def test_the_whole_protocol_holds_on_a_real_s3_server(s3: Any, tmp_path: Path) -> None:
    write_shard(tmp_path / "a.jsonl", DOCS)
    s3.filesystem.put_file(str(tmp_path / "a.jsonl"), f"{s3.key}/in/a.jsonl")
    options = {"storage_options": s3.storage_options}
    spec = make_spec(
        f"{s3.uri}/in", f"{s3.uri}/out", input=options, output=options, runtime={"part_bytes": 1024}
    )
    assert run(spec, stop_after=3) is None
    first = run(spec)
    assert run(spec) == first
    table = open_dataset(f"{s3.uri}/out", storage_options=s3.storage_options).to_table()
    assert sorted(table["doc_id"].to_pylist()) == sorted(doc["id"] for doc in DOCS)
    s3.filesystem.rm_file(f"{s3.key}/in/a.jsonl")
    s3.filesystem.pipe_file(f"{s3.key}/in/b.jsonl", b'{"id": "b", "text": "b"}\n')
    plan, store = make_plan(job_of(spec), store_of(spec)), store_of(spec)
    second = run(spec)
    assert second is not None
    assert (second.number, second.n_documents) == (2, 1)
    with pytest.raises(CommitConflict):
        commit_snapshot(
            store, [], run_id="other", fingerprint=plan.job.fingerprint, parent=first, complete=True
        )
