"""Ids that documents share are counted exactly, and a refresh reads the ids of what has changed.

Oracle: `collections.Counter` over the ids that the test wrote.
"""

from __future__ import annotations

import datetime
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.output import id_index
from pipeline.output.snapshots import live_parts, load_snapshot
from pipeline.storage.store import Store
from pipeline.tools.compact import compact
from pipeline.tools.vacuum import vacuum
from tests.support.outputs import write_shard
from tests.support.stand_in import make_spec, run

Shards = dict[str, list[str]]


def write(root: Path, shards: Shards) -> None:
    for name, ids in shards.items():
        documents = [{"id": doc_id, "text": f"text of {doc_id} in {name}"} for doc_id in ids]
        write_shard(root / "in" / f"{name}.jsonl", documents)


def n_shared(shards: Shards) -> int:
    counts = Counter(doc_id for ids in shards.values() for doc_id in ids)
    return sum(count > 1 for count in counts.values())


def segments(root: Path) -> list[Path]:
    return sorted((root / "out/_meta/ids").rglob("*.parquet"))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of all files that counting reads."""
    paths: list[str] = []
    read_columns = id_index.read_columns

    def recorded(store: Store, path: str, *columns: Any) -> Any:
        paths.append(path)
        return read_columns(store, path, *columns)

    monkeypatch.setattr(id_index, "read_columns", recorded)
    return paths


def spec_of(root: Path) -> Any:
    return make_spec(root / "in", root / "out", runtime={"part_bytes": 1024})


@pytest.mark.thorough
def test_a_refresh_of_one_shard_reads_the_ids_of_that_shard_alone(
    tmp_path: Path, reads: list[str]
) -> None:
    shards = {f"s{n:02d}": [f"{n}-{m}" for m in range(60)] for n in range(20)}
    shards["s19"][0] = "0-0"
    write(tmp_path, shards)
    assert run(spec_of(tmp_path)).n_duplicate_ids == 1
    store = Store(str(tmp_path / "out"))
    before = {part.part_id for part in live_parts(store, load_snapshot(store))}
    n_first = len([path for path in reads if path.startswith("data/")])
    reads.clear()
    shards["s07"] = ["1-1", "2-2", *shards["s07"][2:]]
    write(tmp_path, {"s07": shards["s07"]})
    snapshot = run(spec_of(tmp_path))
    assert snapshot.n_duplicate_ids == n_shared(shards) == 3
    new = {
        file.path
        for part in live_parts(store, snapshot)
        if part.part_id not in before
        for file in part.data_files
    }
    data_reads = {path for path in reads if path.startswith("data/")}
    assert data_reads == new
    assert 0 < len(data_reads) < n_first / 5


@pytest.mark.thorough
def test_any_sequence_of_refreshes_compactions_and_lost_segments_counts_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(id_index, "MANY_SEGMENTS", 4)
    chance = random.Random(5)
    shards: Shards = {}
    for step in range(25):
        name = f"s{chance.randrange(8)}"
        if name in shards and len(shards) > 3 and chance.random() < 0.3:
            del shards[name]
            (tmp_path / "in" / f"{name}.jsonl").unlink()
        else:
            shards[name] = [str(chance.randrange(150)) for _ in range(chance.randrange(1, 25))]
            write(tmp_path, {name: shards[name]})
        for path in segments(tmp_path):
            if (draw := chance.random()) < 0.1:
                path.unlink()
            elif draw < 0.2:
                path.write_bytes(path.read_bytes()[: -chance.randrange(1, 500)])
            elif draw < 0.3:
                data = bytearray(path.read_bytes())
                data[chance.randrange(len(data))] ^= 0x55
                path.write_bytes(data)
        if chance.random() < 0.2 and step:
            compact(str(tmp_path / "out"), target_bytes=10_000)
        if chance.random() < 0.3 and step:
            vacuum(
                str(tmp_path / "out"),
                older_than=datetime.timedelta(0),
                keep_snapshots=1,
                delete=True,
            )
        assert run(spec_of(tmp_path)).n_duplicate_ids == n_shared(shards)


def test_vacuum_keeps_the_segments_that_are_in_use_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[str]
) -> None:
    monkeypatch.setattr(id_index, "MANY_SEGMENTS", 4)
    for night in range(7):
        write(tmp_path, {f"s{night}": [f"{night}-{n}" for n in range(10)]})
        run(spec_of(tmp_path))
    assert len(segments(tmp_path)) > 6
    grace = datetime.timedelta(0)
    vacuum(str(tmp_path / "out"), older_than=grace, delete=True)
    assert 0 < len(segments(tmp_path)) < 5
    reads.clear()
    store = Store(str(tmp_path / "out"))
    assert id_index.count_duplicate_ids(store, live_parts(store, load_snapshot(store))) == 0
    assert not [path for path in reads if path.startswith("data/")]
