"""The plan as set arithmetic: whatever was done before, in whatever pieces, each record ends up
live exactly once.

Oracle: the documents that the test itself wrote.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.driver.cluster.job_plan import plan_job
from pipeline.driver.planning.plan import Plan, make_plan
from pipeline.driver.planning.splits import claim, cut_rest, estimated_bytes, part_bytes_of
from pipeline.output.dataset import open_dataset
from pipeline.output.snapshots import load_manifests
from pipeline.read.input import shards as shards_module
from pipeline.read.input.shards import list_shards
from pipeline.read.parts import Todo
from pipeline.storage.lineage import Manifest, Shard, Span, Split
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


def documents(name: str, n: int, words: int = 12) -> list[dict[str, Any]]:
    return [
        {"id": f"{name}-{i}", "text": f"{name} {i} " + "word " * (1 + i * 7 % words)}
        for i in range(n)
    ]


def plan_of(spec: Any) -> Plan:
    return make_plan(job_of(spec), store_of(spec))


def live_ids(output: Path) -> list[str]:
    return sorted(open_dataset(str(output)).to_table(columns=["doc_id"])["doc_id"].to_pylist())


def files(root: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def test_a_fresh_plan_has_everything_to_do_and_writes_nothing(tmp_path: Path) -> None:
    write_shard(tmp_path / "in/a.jsonl", documents("a", 100))
    spec = make_spec(tmp_path / "in", tmp_path / "out", runtime={"part_bytes": 2048})
    plan = plan_of(spec)
    assert not (tmp_path / "out").exists()
    assert not plan.nothing_to_do
    assert (plan.done, plan.stale, plan.head) == ([], [], None)
    size = (tmp_path / "in/a.jsonl").stat().st_size
    assert plan.summary()["input_bytes"] == plan.todo_bytes == size
    assert abs(plan.todo_parts - size / 2048) <= 1


def test_a_plan_of_a_finished_output_has_nothing_to_do_and_writes_nothing(tmp_path: Path) -> None:
    write_shard(tmp_path / "in/a.jsonl", documents("a", 50))
    spec = make_spec(tmp_path / "in", tmp_path / "out", runtime={"part_bytes": 2048})
    run(spec)
    before = files(tmp_path / "out")
    plan = plan_of(spec)
    assert (plan.nothing_to_do, plan.todo_bytes, plan.todo_parts) == (True, 0, 0)
    assert files(tmp_path / "out") == before


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.csv"])
@pytest.mark.parametrize("stop_after", [0, 1, 3])
def test_a_resume_does_only_the_parts_that_have_no_manifest(
    tmp_path: Path, name: str, stop_after: int
) -> None:
    docs = documents("d", 200)
    write_shard(tmp_path / "in" / name, docs)
    spec = make_spec(tmp_path / "in", tmp_path / "out", runtime={"part_bytes": 2048})
    planned = plan_of(spec)
    first, second = HashEngine(), HashEngine()
    assert run(spec, first, stop_after=stop_after) is None
    resumed = plan_of(spec)
    assert len(resumed.done) == stop_after
    assert resumed.run_id == planned.run_id
    run(spec, second)
    assert len(first.seen) + len(second.seen) == len(docs)
    assert set(first.seen).isdisjoint(second.seen)
    assert live_ids(tmp_path / "out") == sorted(doc["id"] for doc in docs)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet", "a.csv"])
@pytest.mark.parametrize(
    ("before", "after"), [(1024, 5000), (5000, 1024), (1500, 1 << 20), (1 << 20, 1024)]
)
def test_another_part_bytes_keeps_finished_parts_and_neither_doubles_nor_loses_a_record(
    tmp_path: Path, name: str, before: int, after: int
) -> None:
    docs = documents("d", 150)
    write_shard(tmp_path / "in" / name, docs)
    first, second = HashEngine(), HashEngine()
    run(
        make_spec(tmp_path / "in", tmp_path / "out", runtime={"part_bytes": before}),
        first,
        stop_after=2,
    )
    run(make_spec(tmp_path / "in", tmp_path / "out", runtime={"part_bytes": after}), second)
    assert live_ids(tmp_path / "out") == sorted(doc["id"] for doc in docs)
    assert len(first.seen) + len(second.seen) == len(docs)


def test_small_shards_share_a_split_and_large_ones_do_not(tmp_path: Path) -> None:
    for number in range(40):
        write_shard(tmp_path / f"in/small-{number:02d}.jsonl", documents(f"s{number}", 2))
    write_shard(tmp_path / "in/large.jsonl", documents("l", 40))
    plan = plan_of(make_spec(tmp_path / "in", tmp_path / "out", runtime={"part_bytes": 4096}))
    groups = [todo.split for todo in plan.todo if len(todo.split.spans) > 1]
    alone = [todo.split for todo in plan.todo if len(todo.split.spans) == 1]
    assert sum(len(split.spans) for split in groups) >= 39
    assert len(groups) < 6
    assert any(split.spans[0].shard.uri.endswith("large.jsonl") for split in alone)
    for split in groups:
        # a group ends with the shard that fills it
        assert estimated_bytes(split, "auto") < 4096 + 1024


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_large_shard_is_cut_into_several_splits(tmp_path: Path, name: str) -> None:
    write_shard(tmp_path / "in" / name, documents("d", 600, words=40))
    plan = plan_of(make_spec(tmp_path / "in", tmp_path / "out", runtime={"part_bytes": 4096}))
    spans = [span for todo in plan.todo for span in todo.split.spans]
    assert len(plan.todo) > 5
    assert [span.start for span in spans[1:]] == [span.stop for span in spans[:-1]]
    assert (spans[0].start, spans[-1].stop) == (0, None)
    text = sum(len(doc["text"]) for doc in documents("d", 600, words=40))
    # an estimate of the bytes read; JSON adds keys and ids
    assert 0.5 < plan.todo_bytes / text < 2.5


def test_a_compressed_shard_is_one_split(tmp_path: Path) -> None:
    write_shard(tmp_path / "in/a.jsonl.gz", documents("d", 600))
    plan = plan_of(make_spec(tmp_path / "in", tmp_path / "out", runtime={"part_bytes": 1024}))
    assert len(plan.todo) == 1
    assert plan.todo_parts > 1


def test_a_changed_identity_makes_all_live_parts_stale_and_names_what_changed(
    tmp_path: Path,
) -> None:
    write_shard(tmp_path / "in/a.jsonl", documents("a", 10))
    spec = make_spec(tmp_path / "in", tmp_path / "out")
    run(spec)
    other = make_spec(
        tmp_path / "in",
        tmp_path / "out",
        prepare={"unicode": "NFKC"},
        output={"include_text": False},
    )
    plan = plan_of(other)
    assert list(plan.changed_identity) == ["output.include_text", "prepare.unicode"]
    assert (len(plan.stale), len(plan.done), plan.nothing_to_do) == (1, 0, False)
    run(other)
    assert live_ids(tmp_path / "out") == sorted(doc["id"] for doc in documents("a", 10))
    assert "text" not in open_dataset(str(tmp_path / "out")).schema.names
    assert open_dataset(str(tmp_path / "out"), snapshot=1).count_rows() == 10


def test_runtime_settings_do_not_change_the_fingerprint(tmp_path: Path) -> None:
    one = job_of(make_spec("in", "out", runtime={"part_bytes": 1024}))
    other = job_of(
        make_spec("in", "elsewhere", runtime={"part_bytes": 4096, "max_batch_tokens": 7})
    )
    assert one.fingerprint == other.fingerprint


def test_two_splits_over_the_same_records_are_never_both_kept() -> None:
    """Two runs with different part_bytes at once leave overlapping finished splits; the live one,
    then a whole one stays."""
    shard = Shard(uri="file:///a.jsonl", etag="1", size_bytes=100)

    def part(start: int, stop: int | None, index: int, last: bool) -> Manifest:
        split = Split(spans=(Span(shard=shard, start=start, stop=stop),), part_bytes=1024)
        return Manifest(
            part_id=f"{start}-{stop}-{index}",
            fingerprint="f",
            run_id="r",
            split=split,
            index=index,
            last=last,
            sources=(),
            data_files=(),
            rejects_path=None,
            n_records=0,
            n_documents=0,
            n_rejects=0,
            n_rows=0,
            n_tokens=0,
            n_padded_tokens=0,
            n_truncated=0,
            record_bytes=0,
            n_embedded=0,
            reject_reasons={},
            seconds={},
            engine={},
        )

    half, whole, live = (
        part(0, 60, 0, last=False),
        part(40, None, 0, last=True),
        part(0, 50, 0, last=True),
    )
    kept, claims = claim([shard], [half, whole], set())
    assert [parts[0].part_id for parts in kept] == [whole.part_id]
    kept, claims = claim([shard], [half, whole, live], {live.part_id})
    assert [parts[0].part_id for parts in kept] == [live.part_id]
    spec = make_spec("in", "out", runtime={"part_bytes": 1024})
    assert [
        (s.start, s.stop) for split in cut_rest(spec, [shard], claims) for s in split.spans
    ] == [(50, None)]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([1000], 256 << 10),
        ([512 << 20], 2 << 20),
        ([256 << 20] * 2, 2 << 20),
        ([1 << 40], 32 << 20),
    ],
)
def test_parts_follow_the_size_of_the_input_within_bounds(sizes: list[int], expected: int) -> None:
    shards = [
        Shard(uri=f"file:///{n}.jsonl", etag="1", size_bytes=size) for n, size in enumerate(sizes)
    ]
    assert part_bytes_of(make_spec("in", "out"), shards) == expected
    on_gpu = part_bytes_of(make_spec("in", "out"), shards, "cuda")
    assert on_gpu == max(expected, 4 << 20)
    assert part_bytes_of(make_spec("in", "out", runtime={"part_bytes": "5MiB"}), shards) == 5 << 20
    assert {split.part_bytes for split in cut_rest(make_spec("in", "out"), shards, {})} == {
        expected
    }


def ids_of_finished_parts(output: Path) -> set[str]:
    """Ids in the data files of every part that has a manifest, live or not."""
    manifests = [
        Manifest.from_json(path.read_bytes(), path.name)
        for path in output.glob("_meta/manifests/*/*.json")
    ]
    paths = [output / file.path for manifest in manifests for file in manifest.data_files]
    return {
        doc_id
        for path in paths
        for doc_id in pq.read_table(path, columns=["doc_id"])["doc_id"].to_pylist()
    }


SUFFIXES = ("jsonl", "jsonl.gz", "jsonl.zst", "parquet", "csv")


class World:
    """An input that changes, an output that is worked on by runs that are killed, and what must be
    in the output."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.random, self.version = root, random.Random(seed), 0
        self.content: dict[str, list[str]] = {}
        for _ in range(self.random.randint(2, 7)):
            self.add()

    def add(self) -> None:
        self.version += 1
        self.write(f"{self.random.randrange(10**6):06d}.{self.random.choice(SUFFIXES)}")

    def write(self, name: str) -> None:
        self.version += 1
        n = self.random.choice([1, 3, 12, 60, 150])
        docs = documents(f"{name}@{self.version}", n, words=self.random.choice([2, 12, 40]))
        write_shard(self.root / "in" / name, docs)
        self.content[name] = [doc["id"] for doc in docs]

    def change(self) -> None:
        action = self.random.choice(["add", "change", "remove", "nothing", "nothing"])
        if action == "add":
            self.add()
        elif action == "change":
            self.write(self.random.choice(sorted(self.content)))
        elif action == "remove" and len(self.content) > 1:
            name = self.random.choice(sorted(self.content))
            (self.root / "in" / name).unlink()
            del self.content[name]

    def spec(self) -> Any:
        part_bytes = self.random.choice([1024, 1500, 4096, 20_000, 1 << 20])
        return make_spec(self.root / "in", self.root / "out", runtime={"part_bytes": part_bytes})

    def killed_run(self) -> None:
        """Any subset of the parts gets published, in any order; sometimes a partial snapshot is
        committed."""
        spec = self.spec()
        plan, store = plan_of(spec), store_of(spec)
        prepared = list(prepared_parts(spec, plan))
        for part in self.random.sample(prepared, self.random.randint(0, len(prepared))):
            publish_prepared(part, plan.job, store, HashEngine())
        finished = load_manifests(store, plan.job.fingerprint, plan.done)
        if self.random.random() < 0.3 and not plan.stale and finished:
            commit_plan(plan, store, finished, complete=False)

    def expected(self) -> Counter[str]:
        return Counter(doc_id for ids in self.content.values() for doc_id in ids)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "seed", [*range(4), *(pytest.param(n, marks=pytest.mark.slow) for n in range(4, 24))]
)
def test_after_any_history_of_kills_and_changes_the_rows_are_exactly_those_of_the_input(
    tmp_path: Path, seed: int
) -> None:
    world = World(tmp_path, seed)
    for _ in range(4):
        for _ in range(world.random.randint(0, 2)):
            world.killed_run()
            world.change()
        spec = world.spec()
        published = ids_of_finished_parts(tmp_path / "out")
        engine = HashEngine()
        run(spec, engine)
        assert Counter(live_ids(tmp_path / "out")) == world.expected()
        # no text of a finished part went through the model again, wherever it stands now (every
        # text here is different)
        assert len(engine.seen) == len(set(world.expected()) - published)
        assert plan_of(spec).nothing_to_do
        world.change()


def test_the_pinned_plan_names_every_span_with_its_etag(tmp_path: Path) -> None:
    write_shard(tmp_path / "in/a.jsonl", documents("a", 100))
    spec = make_spec(tmp_path / "in", tmp_path / "out", runtime={"part_bytes": 1024})
    plan = plan_of(spec)
    run(spec)
    table = pq.read_table(tmp_path / f"out/_meta/runs/{plan.run_id}/plan.parquet")
    assert table.num_rows == len(plan.todo)
    assert set(table["etag"].to_pylist()) == {plan.shards[0].etag}
    assert pa.compute.min(table["start"]).as_py() == 0


def test_a_shard_that_changes_while_it_is_planned_is_listed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_shard(tmp_path / "in/a.parquet", documents("d", 300))
    spec = make_spec(tmp_path / "in", tmp_path / "out", runtime={"part_bytes": 1024})
    listed, calls = list_shards, []

    def changes_after_the_first_listing(*arguments: Any) -> list[Shard]:
        shards = listed(*arguments)
        if not calls:
            write_shard(path, documents("e", 200))
        calls.append(shards)
        return shards

    monkeypatch.setattr(shards_module, "list_shards", changes_after_the_first_listing)
    plan = plan_of(spec)
    assert len(calls) == 2
    assert list(plan.shards) == calls[1]
    run(spec)
    assert live_ids(tmp_path / "out") == sorted(doc["id"] for doc in documents("e", 200))


def test_a_folder_is_listed_once_for_its_formats_and_for_its_plan(
    tmp_path: Path, bert_mean_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(tmp_path / "in/a.parquet", documents("d", 3))
    answers = shards_module.listed
    questions = []

    def counted(*arguments: Any) -> Any:
        questions.append(arguments[2])
        return answers(*arguments)

    monkeypatch.setattr(shards_module, "listed", counted)
    spec = make_spec(tmp_path / "in", tmp_path / "out", model={"path": str(bert_mean_dir)})
    assert len(plan_job(spec).shards) == 1
    assert questions == list(spec.input.uri)


def test_what_is_to_do_survives_the_trip_to_a_worker() -> None:
    shards = [Shard(uri=f"s3://in/日本 {n}.jsonl", etag='"e"', size_bytes=10 + n) for n in range(2)]
    spans = (Span(shard=shards[0]), Span(shard=shards[1], start=3, stop=7))
    todo = Todo(Split(spans=spans, part_bytes=1 << 20, part_records=5), frozenset({0, 2}))
    read_back = Todo.from_json(todo.to_json())
    assert read_back == todo
    assert read_back.split.split_id == todo.split.split_id
