"""What a run may lose: bytes and shards that cannot be read, documents that leave, rejects.

Oracle: the documents that the test wrote, and which of them it took away again.
"""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.driver.planning.plan import make_plan
from pipeline.errors import TooManyDeletions, TooManyRejects, TooMuchDamage
from pipeline.job.spec import JobSpec
from pipeline.output.damage import damaged_shards
from pipeline.output.snapshots import live_parts, load_snapshot
from pipeline.storage.lineage import Manifest
from tests.support.outputs import write_shard
from tests.support.stand_in import job_of, make_spec, run, store_of

STRICT = {"max_reject_fraction": 0.01, "max_damaged_fraction": 0.01, "max_delete_fraction": 0.2}


def documents(name: str, n: int) -> list[dict[str, Any]]:
    draw = random.Random(name)
    return [
        {"id": f"{name}-{i}", "text": f"{name} {i} {draw.randbytes(20).hex()}"} for i in range(n)
    ]


def strict(tmp_path: Path, folder: str = "in", **sections: dict[str, Any]) -> JobSpec:
    runtime = {**STRICT, **sections.pop("runtime", {})}
    return make_spec(tmp_path / folder, tmp_path / "out", runtime=runtime, **sections)


def cut(path: Path, share: float = 0.5) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def live(spec: JobSpec) -> list[Manifest]:
    return live_parts(store_of(spec), load_snapshot(store_of(spec)))


@pytest.mark.parametrize("suffix", ["jsonl.gz", "jsonl.zst", "jsonl.bz2", "csv.gz", "parquet"])
def test_a_run_stops_when_half_of_every_second_shard_is_gone(tmp_path: Path, suffix: str) -> None:
    for number in range(10):
        path = write_shard(tmp_path / f"in/{number}.{suffix}", documents(f"d{number}", 100))
        if number % 2:
            cut(path)
    with pytest.raises(TooMuchDamage, match=r"5 of its 10 shards are lost.*Damaged are file://.*/"):
        run(strict(tmp_path, runtime={"max_reject_fraction": 1.0}))
    assert load_snapshot(store_of(strict(tmp_path))) is None


def test_a_small_damage_is_allowed_and_counted_in_bytes(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "in/a.jsonl", documents("a", 5000))
    plain = path.read_bytes()
    path.unlink()
    data = gzip.compress(plain, mtime=0)
    (tmp_path / "in/a.jsonl.gz").write_bytes(data + b"garbage" * 10)
    spec = strict(tmp_path)
    snapshot = run(spec)
    assert snapshot is not None
    assert snapshot.n_documents == 5000
    (damaged,) = damaged_shards(live(spec))
    assert (damaged.lost_bytes, damaged.size_bytes) == (70, len(data) + 70)


def test_the_bytes_behind_a_break_in_the_middle_are_those_that_are_lost(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    members = [
        gzip.compress("".join(json.dumps(d) + "\n" for d in documents(f"d{n}", 100)).encode())
        for n in range(10)
    ]
    members[6] = b"overwritten" + members[6][11:]
    (tmp_path / "in/a.jsonl.gz").write_bytes(b"".join(members))
    spec = make_spec(tmp_path / "in", tmp_path / "out")
    snapshot = run(spec)
    assert snapshot is not None
    assert snapshot.n_documents == 600
    (damaged,) = damaged_shards(live(spec))
    assert damaged.lost_bytes == sum(map(len, members[6:]))


def test_a_row_group_that_cannot_be_decoded_costs_its_share_of_the_bytes(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "in/a.parquet", documents("a", 30))
    column = pq.read_metadata(path).row_group(4).column(1)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset : column.data_page_offset + 20] = b"\xff" * 20
    path.write_bytes(data)
    spec = make_spec(tmp_path / "in", tmp_path / "out")
    run(spec)
    (damaged,) = damaged_shards(live(spec))
    assert 0 < damaged.lost_bytes <= len(data) // 10 + 1


def test_bytes_between_records_of_a_warc_count_and_no_more(tmp_path: Path) -> None:
    def record(text: str) -> bytes:
        head = "WARC/1.0\r\nWARC-Type: conversion\r\nContent-Type: text/plain\r\n"
        return f"{head}Content-Length: {len(text)}\r\n\r\n{text}\r\n\r\n".encode()

    (tmp_path / "in").mkdir()
    garbage = b"x" * 99 + b"\n"
    data = b"".join([record("one"), garbage, record("two"), record("three")])
    (tmp_path / "in/a.warc").write_bytes(data)
    spec = make_spec(tmp_path / "in", tmp_path / "out", input={"id_column": None})
    run(spec)
    (damaged,) = damaged_shards(live(spec))
    assert damaged.lost_bytes == len(garbage)


def test_damage_does_not_move_the_bounds_of_parts(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "in/a.jsonl.gz", documents("a", 400))
    cut(path, 0.9)
    spec = make_spec(tmp_path / "in", tmp_path / "out", runtime={"part_bytes": 2048})
    run(spec)
    parts = sorted(live(spec), key=lambda part: part.index)
    assert all(part.record_bytes >= 2048 for part in parts[:-1])
    assert sum(part.record_bytes for part in parts) < path.stat().st_size * 4


def test_an_upload_that_ended_early_is_found_in_a_manifest_without_the_new_field() -> None:
    old = {"uri": "s3://a", "etag": "e", "first_record": 0, "n_records": 1, "n_rejects": 1}
    source = Manifest.model_fields["sources"].annotation.__args__[0].model_validate(old)
    assert (source.damaged, source.lost_bytes) == (False, 0)


def test_another_corpus_of_the_same_size_replaces_nothing(tmp_path: Path) -> None:
    write_shard(tmp_path / "production/a.jsonl", documents("production", 100))
    write_shard(tmp_path / "staging/a.jsonl", documents("staging", 100))
    run(strict(tmp_path, "production"))
    with pytest.raises(
        TooManyDeletions, match=r"have 100, without 100 of those.*100 of .*production"
    ):
        run(strict(tmp_path, "staging"))
    assert load_snapshot(store_of(strict(tmp_path))).number == 1


def test_a_corpus_in_the_place_of_another_is_known_by_its_ids(tmp_path: Path) -> None:
    write_shard(tmp_path / "in/a.jsonl", documents("one", 100))
    run(strict(tmp_path))
    write_shard(tmp_path / "in/a.jsonl", documents("two", 100))
    with pytest.raises(TooManyDeletions):
        run(strict(tmp_path))


@pytest.mark.parametrize("id_column", ["id", None])
def test_renamed_shards_lose_no_document(tmp_path: Path, id_column: str | None) -> None:
    for number in range(4):
        write_shard(tmp_path / f"in/{number}.jsonl", documents(f"d{number}", 30))
    spec = strict(tmp_path, input={"id_column": id_column})
    run(spec)
    for number in range(4):
        (tmp_path / f"in/{number}.jsonl").rename(tmp_path / f"in/renamed-{number}.jsonl")
    snapshot = run(spec)
    assert snapshot is not None
    assert (snapshot.number, snapshot.n_documents) == (2, 120)


@pytest.mark.parametrize("id_column", ["id", None])
def test_edited_documents_are_not_deleted_ones(tmp_path: Path, id_column: str | None) -> None:
    edited = documents("d", 50)
    write_shard(tmp_path / "in/a.jsonl", edited)
    spec = strict(tmp_path, input={"id_column": id_column})
    run(spec)
    for document in edited:
        document["text"] = "edited " + document["text"]
    write_shard(tmp_path / "in/a.jsonl", edited)
    snapshot = run(spec)
    assert snapshot is not None
    assert (snapshot.number, snapshot.n_documents) == (2, 50)


def test_documents_that_move_between_shards_stay(tmp_path: Path) -> None:
    all_documents = documents("d", 90)
    for number in range(3):
        write_shard(tmp_path / f"in/{number}.jsonl", all_documents[30 * number :][:30])
    run(strict(tmp_path))
    for number in range(3):
        write_shard(tmp_path / f"in/{number}.jsonl", all_documents[number::3])
    snapshot = run(strict(tmp_path))
    assert snapshot is not None
    assert snapshot.number == 2


def test_a_fifth_of_the_documents_may_leave_and_more_may_not(tmp_path: Path) -> None:
    all_documents = documents("d", 100)
    fresh = documents("fresh", 100)
    write_shard(tmp_path / "in/a.jsonl", all_documents)
    run(strict(tmp_path))
    write_shard(tmp_path / "in/a.jsonl", all_documents[20:] + fresh)
    assert run(strict(tmp_path)).number == 2
    write_shard(tmp_path / "in/a.jsonl", all_documents[20:80] + fresh[:83])
    with pytest.raises(TooManyDeletions, match=r"would have 143, without 37 of those"):
        run(strict(tmp_path))


def test_too_many_rejects_are_explained_by_reasons_and_the_first_record(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    lines = [json.dumps({"id": str(n), "body": "text"}) for n in range(60)]
    (tmp_path / "in/a.jsonl").write_text("\n".join([*lines, "{"]))
    with pytest.raises(TooManyRejects) as raised:
        run(strict(tmp_path))
    message = str(raised.value)
    assert "61 of 61 records were rejected" in message
    assert "missing_text 60, malformed_json 1. First: file://" in message
    assert "in/a.jsonl record 0: " in message


def test_the_plan_of_a_finished_output_passes_its_own_limits(tmp_path: Path) -> None:
    write_shard(tmp_path / "in/a.jsonl", documents("d", 10))
    run(strict(tmp_path))
    assert make_plan(job_of(strict(tmp_path)), store_of(strict(tmp_path))).nothing_to_do
