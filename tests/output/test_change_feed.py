"""The change feed takes a store from any kept snapshot to any other, exactly.

Oracle: both snapshots read whole by DuckDB from the paths of their file lists, and a store that is
a plain dict.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

import pipeline
from pipeline.errors import OutputError, SpecError
from pipeline.output.change_feed import Changes, changes
from pipeline.output.snapshots import live_parts
from pipeline.storage import layout
from pipeline.storage.store import Store
from tests.cli.test_main import called
from tests.support.outputs import write_shard
from tests.support.stand_in import make_spec, run

Rows = dict[tuple[str, int], Counter[str]]
LINEAGE = {"source_uri", "source_etag", "source_record", "part_id", "run_id"}


def spec_of(root: Path, **sections: Any) -> Any:
    sections = {"input": {"keep_columns": {"lang": "string", "stars": "float64"}}, **sections}
    return make_spec(root / "in", root / "out", runtime={"part_bytes": 1024}, **sections)


def value_of(row: dict[str, Any]) -> str:
    """Everything but lineage, the vector included."""
    return repr(sorted((name, value) for name, value in row.items() if name not in LINEAGE))


def content(root: Path, number: int) -> Rows:
    """A snapshot, whole, by DuckDB."""
    snapshot = json.loads((root / f"out/_meta/snapshots/{number:020d}.json").read_text())
    lists = duckdb.sql(
        f"select unnest(paths) from read_parquet('{root}/out/{snapshot['file_list']}')"
    ).fetchall()
    rows: Rows = {}
    if lists:
        paths = [f"{root}/out/{path}" for (path,) in lists]
        answer = duckdb.sql(
            f"select * from read_parquet({paths}, hive_partitioning = true, "
            "hive_types_autocast = false)"
        )
        for row in answer.to_arrow_table().to_pylist():
            rows.setdefault((row["doc_id"], row["chunk"]), Counter())[value_of(row)] += 1
    return rows


def apply(store: Rows, feed: Changes) -> int:
    """Bring a store up to date; returns the number of rows that were put."""
    n_rows = 0
    for batch in feed.deletes():
        for row in batch.to_pylist():
            del store[row["doc_id"], row["chunk"]]  # a key that is not there is an error
    put: Rows = {}
    for batch in feed.upserts():
        n_rows += len(batch)
        for row in batch.to_pylist():
            put.setdefault((row["doc_id"], row["chunk"]), Counter())[value_of(row)] += 1
    store.update(put)
    return n_rows


def some_night(root: Path, rng: random.Random, *, shared_ids: bool) -> None:
    """Documents come, go, change and move between shards; one shard stays as it is, with ids that
    others share."""
    if not (root / "in").exists():
        still = [{"id": f"{'d' if shared_ids else 'still'}{n}", "text": "still"} for n in range(5)]
        write_shard(root / "in/still.jsonl", still)
    shards = sorted((root / "in").glob("[01]*.jsonl"))
    docs = [[json.loads(line) for line in shard.read_text().splitlines()] for shard in shards]
    docs += [[] for _ in range(2 - len(docs))]
    for shard in docs:
        for doc in shard:
            if rng.random() < 0.1:
                doc["text"] += " changed"
            if rng.random() < 0.05:
                doc["stars"] = rng.choice([None, 0.5, 1.0])
            if rng.random() < 0.05:
                doc["lang"] = rng.choice([None, "ja", "漢 字"])
        shard[:] = [doc for doc in shard if rng.random() > 0.1]
        ids = 8 if shared_ids else 1 << 40
        shard += [
            {
                "id": f"d{rng.randrange(ids)}",
                "text": f"t{rng.randrange(99)} " * 5,
                "lang": "en",
                "stars": 1.5,
            }
            for _ in range(rng.randrange(1, 6))
        ]
    docs[0], docs[1] = docs[0] + docs[1][:3], docs[1][3:]
    for shard in shards:
        shard.unlink()
    for number, shard in enumerate(docs):
        if shard:
            write_shard(root / f"in/{rng.randrange(2)}{number}.jsonl", shard)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("seed", "partition_by", "shared_ids"),
    [
        (1, [], True),
        (1, ["lang"], False),
        *(
            pytest.param(seed, partition_by, shared_ids, marks=pytest.mark.slow)
            for seed in range(2, 12)
            for partition_by in ([], ["lang"])
            for shared_ids in (False, True)
        ),
    ],
)
def test_feeds_applied_one_after_another_give_every_snapshot(
    tmp_path: Path,
    seed: int,
    partition_by: list[str],
    shared_ids: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # several passes by hash of the key
    monkeypatch.setattr("pipeline.output.change_feed.PASS_ROWS", 16)
    rng = random.Random(seed)
    store: Rows = {}
    last = 0
    for _night in range(6):
        some_night(tmp_path, rng, shared_ids=shared_ids)
        snapshot = run(spec_of(tmp_path, output={"partition_by": partition_by}))
        assert snapshot is not None
        before = {key: Counter(value) for key, value in store.items()}
        feed = changes(str(tmp_path / "out"), last)
        n_rows = apply(store, feed)
        assert store == content(tmp_path, snapshot.number)
        # nothing is put or deleted needlessly
        assert n_rows == sum(
            sum(rows.values()) for key, rows in store.items() if before.get(key) != rows
        )
        last = snapshot.number
    first: Rows = {}
    apply(first, changes(str(tmp_path / "out"), 0, 1))
    assert first == content(tmp_path, 1)
    apply(store, changes(str(tmp_path / "out"), last, 1))  # and all the way back
    assert store == first


def test_only_parts_of_one_of_the_snapshots_are_read(tmp_path: Path) -> None:
    for name in "abc":
        write_shard(
            tmp_path / f"in/{name}.jsonl",
            [{"id": f"{name}{n}", "text": f"{name} {n}" * 20} for n in range(30)],
        )
    first = run(spec_of(tmp_path))
    write_shard(
        tmp_path / "in/b.jsonl", [{"id": f"b{n}", "text": f"b {n}" * 20} for n in range(29)]
    )
    run(spec_of(tmp_path))
    store = Store(str(tmp_path / "out"))
    for part in live_parts(store, first):
        if not part.sources[0].uri.endswith("b.jsonl"):
            for file in part.data_files:
                (tmp_path / "out" / file.path).unlink()
    feed = pipeline.changes(str(tmp_path / "out"), 1)
    assert [row for batch in feed.deletes() for row in batch.to_pylist()] == [
        {"doc_id": "b29", "chunk": 0}
    ]
    assert list(feed.upserts()) == []


def test_a_new_fingerprint_upserts_everything_and_deletes_what_is_gone(tmp_path: Path) -> None:
    write_shard(tmp_path / "in/a.jsonl", [{"id": f"a{n}", "text": f"a {n}"} for n in range(10)])
    run(spec_of(tmp_path))
    write_shard(tmp_path / "in/a.jsonl", [{"id": f"a{n}", "text": f"a {n}"} for n in range(9)])
    run(spec_of(tmp_path, output={"vector_precision": "int8", "include_text": False}))
    feed = pipeline.changes(str(tmp_path / "out"), 1, 2)
    rows = pa.Table.from_batches(feed.upserts())
    assert sorted(rows["doc_id"].to_pylist()) == [f"a{n}" for n in range(9)]
    assert "embedding_scale" in rows.column_names and "text" not in rows.column_names
    assert [row["doc_id"] for batch in feed.deletes() for row in batch.to_pylist()] == ["a9"]
    assert [batch.schema.names for batch in feed.upserts(["embedding"])] == [["embedding"]]


def test_a_moved_shard_changes_nothing(tmp_path: Path) -> None:
    write_shard(tmp_path / "in/a.jsonl", [{"id": f"a{n}", "text": f"a {n}"} for n in range(10)])
    run(spec_of(tmp_path))
    (tmp_path / "in/a.jsonl").rename(tmp_path / "in/moved.jsonl")
    assert run(spec_of(tmp_path)).number == 2
    feed = pipeline.changes(str(tmp_path / "out"), 1)
    assert [*feed.upserts(), *feed.deletes()] == []


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    write_shard(tmp_path / "in/a.jsonl", [{"id": "a", "text": "a"}])
    run(make_spec(tmp_path / "in", tmp_path / "out"))
    with pytest.raises(
        SpecError, match=r"snapshot 1 has no columns \['vector'\]; it has \['doc_id', "
    ):
        next(pipeline.changes(str(tmp_path / "out"), 0).upserts(["doc_id", "vector"]))


def test_a_snapshot_that_is_not_kept_is_named(tmp_path: Path) -> None:
    write_shard(tmp_path / "in/a.jsonl", [{"id": "a", "text": "a"}])
    run(spec_of(tmp_path))
    with pytest.raises(OutputError, match="no snapshot 7; kept: 1 to 1"):
        pipeline.changes(str(tmp_path / "out"), 7)


def test_diff_counts_and_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shard(tmp_path / "in/a.jsonl", [{"id": f"a{n}", "text": f"a {n}"} for n in range(3)])
    run(spec_of(tmp_path))
    write_shard(tmp_path / "in/a.jsonl", [{"id": f"a{n}", "text": f"a {n}"} for n in range(1, 5)])
    run(spec_of(tmp_path))
    out = str(tmp_path / "out")
    assert called(monkeypatch, "diff", out, "1", "2") == 0
    assert capsys.readouterr().out.split() == ["2", "upserts,", "1", "delete"]
    assert called(monkeypatch, "diff", out, "1", "2", "--rows") == 0
    assert sorted(capsys.readouterr().out.splitlines()[1:]) == ["+ a3 0", "+ a4 0", "- a0 0"]
    assert called(monkeypatch, "diff", out, "1", "2", "--rows", "--json") == 0
    counts = json.loads(capsys.readouterr().out)
    assert (counts["since"], counts["until"], counts["n_upserts"], counts["n_deletes"]) == (
        1,
        2,
        2,
        1,
    )
    assert counts["deletes"] == [{"doc_id": "a0", "chunk": 0}]
    assert {row["doc_id"] for row in counts["upserts"]} == {"a3", "a4"}


def test_a_cursor_knows_its_snapshot_after_a_roll_back_and_a_number_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = make_spec(tmp_path / "in", tmp_path / "out")
    for number in (1, 2):
        write_shard(tmp_path / "in/a.jsonl", [{"id": f"d{number}", "text": f"text {number}"}])
        run(spec)
    cursor = changes(spec.output.uri, 0).cursor
    assert cursor.startswith("2-")
    (tmp_path / "out" / layout.snapshot(2)).unlink()
    write_shard(tmp_path / "in/a.jsonl", [{"id": "another", "text": "another text"}])
    run(spec)
    assert changes(spec.output.uri, 2).since == 2  # what a number can say
    with pytest.raises(OutputError, match=r"not the one that this cursor has seen.*since=0"):
        changes(spec.output.uri, cursor)
    (tmp_path / "out" / layout.snapshot(2)).unlink()
    with pytest.raises(OutputError, match="no snapshot 2"):
        changes(spec.output.uri, cursor)
    with pytest.raises(SpecError, match="give a number, or the cursor"):
        changes(spec.output.uri, "newest")
    write_shard(tmp_path / "in/b.jsonl", [{"id": "b", "text": "b"}])
    run(spec)
    first = changes(spec.output.uri, 0, 1).cursor
    assert called(monkeypatch, "diff", spec.output.uri, first, "2", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["cursor"] == changes(spec.output.uri, 0, 2).cursor
    assert (facts["since"], facts["until"]) == (1, 2)
