"""Reuse by content: a refresh gives the rows that a full rebuild gives, and embeds each new text
and no other.

Oracles: a rebuild in a fresh output, and the texts that the test wrote.
"""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.driver.planning.plan import make_plan
from pipeline.job.spec import JobSpec
from pipeline.output import text_index
from pipeline.output.dataset import open_dataset
from pipeline.output.snapshots import live_parts, load_manifests
from pipeline.tools.vacuum import vacuum
from pipeline.write.vectors import restored_vectors, vector_columns
from tests.support.outputs import write_shard
from tests.support.stand_in import (
    ByteTokenizer,
    HashEngine,
    job_of,
    make_spec,
    prepared_parts,
    publish_prepared,
    run,
    store_of,
)

PRECISIONS = ("float32", "float16", "bfloat16", "int8", "ubinary")
Document = dict[str, Any]


def documents(first: int, stop: int, words: int = 3) -> list[Document]:
    return [
        {
            "id": f"d{n}",
            "text": f"This is text {n}. " * (1 + n % words),
            "lang": "ja" if n % 3 else "en",
        }
        for n in range(first, stop)
    ]


def refreshed(spec: JobSpec) -> int:
    """How many texts a run of `spec` embedded."""
    engine = HashEngine()
    run(spec, engine)
    assert len(engine.seen) == len(set(engine.seen))
    return len(engine.seen)


def rows(output: str | Path) -> pa.Table:
    """All rows but for the lineage that names a run or a part, in an order of their own."""
    table = open_dataset(str(output)).to_table()
    keys = [("doc_id", "ascending"), ("source_uri", "ascending"), ("chunk", "ascending")]
    return table.drop_columns(["part_id", "run_id"]).sort_by(keys)


def check_as_rebuilt(spec: JobSpec, scratch: Path, tokenizer: ByteTokenizer | None = None) -> None:
    """The newest snapshot of `spec` has, to the bit, the rows that a run into an empty output
    gives."""
    fresh = spec.model_copy(update={"output": spec.output.model_copy(update={"uri": str(scratch)})})
    run(fresh, tokenizer=tokenizer)
    assert rows(spec.output.uri).equals(rows(scratch))
    shutil.rmtree(scratch)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_stored_vectors_are_written_back_as_the_same_bytes(precision: str) -> None:
    draw = np.random.default_rng(3)
    # every mantissa and many exponents of a scale
    lengths = np.exp(draw.uniform(-30, 30, (50_000, 1)))
    vectors = (draw.standard_normal((50_000, 11)) * lengths).astype(np.float32)
    vectors[:3] = [[0] * 11, [-1] * 11, [3e38] + [0] * 10]
    stored = pa.table(vector_columns(vectors, precision))
    again = vector_columns(restored_vectors(stored, precision, 11), precision)
    assert pa.table(again).equals(stored)


@pytest.mark.thorough
def test_every_scale_of_an_int8_vector_comes_back() -> None:
    # [1, 2)
    largest = (np.arange(1 << 23, dtype=np.uint32) | np.float32(1).view(np.uint32)).view(
        np.float32
    )[:, None]
    stored = pa.table(vector_columns(largest, "int8"))
    again = pa.table(vector_columns(restored_vectors(stored, "int8", 1), "int8"))
    assert again["embedding_scale"].equals(stored["embedding_scale"])
    assert set(again["embedding"].combine_chunks().flatten().unique().to_pylist()) == {127}


@pytest.mark.parametrize(
    ("mode", "precision"),
    [("chunk", "float32"), ("chunk_and_pool", "float32"), *(("truncate", p) for p in PRECISIONS)],
)
def test_a_changed_shard_costs_only_its_new_texts_and_gives_the_rows_of_a_rebuild(
    tmp_path: Path, mode: str, precision: str
) -> None:
    prepare = {"long_documents": mode, "chunk": {"max_tokens": 40, "overlap_tokens": 0}}
    spec = make_spec(
        tmp_path / "in",
        tmp_path / "out",
        input={"keep_columns": ["lang"]},
        prepare=prepare,
        output={"vector_precision": precision, "partition_by": ["lang"]},
        runtime={"part_bytes": 2048},
    )
    tokenizer, old = ByteTokenizer(max_tokens=45, prompt="p: "), documents(0, 40, words=6)
    write_shard(tmp_path / "in/a.jsonl", old)
    run(spec, tokenizer=tokenizer)
    new = [
        {"id": "new", "text": "brand new", "lang": "en"},
        {**old[3], "text": "changed"},
        {**old[4], "id": "other id"},
    ]
    write_shard(tmp_path / "in/a.jsonl", [*new, *old[10:], *old[:10:2]])
    engine = HashEngine()
    snapshot = run(spec, engine, tokenizer=tokenizer)
    assert snapshot is not None
    assert sorted(bytes(text).replace(b"\0", b"") for text in engine.seen) == [
        b"p: brand new",
        b"p: changed",
    ]
    live = live_parts(store_of(spec), snapshot)
    assert sum(part.n_reused for part in live) == snapshot.n_rows - 2
    check_as_rebuilt(spec, tmp_path / "scratch", tokenizer)


def test_moved_renamed_and_resharded_texts_are_not_embedded_again(tmp_path: Path) -> None:
    docs = documents(0, 90)
    for n in range(3):
        write_shard(tmp_path / f"in/{n}.jsonl.gz", docs[n * 30 : n * 30 + 30])
    spec = make_spec(tmp_path / "in", tmp_path / "out", runtime={"part_bytes": 1024})
    assert refreshed(spec) == 90
    (tmp_path / "in/0.jsonl.gz").rename(tmp_path / "in/moved.jsonl.gz")
    assert refreshed(spec) == 0
    shutil.rmtree(tmp_path / "in")
    mixed = np.random.default_rng(0).permutation(90)
    for n in range(4):
        write_shard(tmp_path / f"in/new-{n}.parquet", [docs[i] for i in mixed[n::4]])
    assert (
        refreshed(make_spec(tmp_path / "in", tmp_path / "out", runtime={"part_bytes": 4096})) == 0
    )
    check_as_rebuilt(spec, tmp_path / "scratch")


def test_texts_that_left_the_snapshot_are_reused_when_they_come_back(tmp_path: Path) -> None:
    spec = make_spec(tmp_path / "in", tmp_path / "out")
    for content, n_new in [((0, 40), 40), ((30, 50), 10), ((0, 45), 0), ((0, 60), 10)]:
        write_shard(tmp_path / "in/a.jsonl", documents(*content))
        assert refreshed(spec) == n_new
    check_as_rebuilt(spec, tmp_path / "scratch")


def index_files(spec: JobSpec) -> dict[str, bytes]:
    store = store_of(spec)
    return {path: store.read(path) for path in store.list("_meta/index")}


def test_no_index_is_made_where_nothing_can_be_reused(tmp_path: Path) -> None:
    spec = make_spec(tmp_path / "in", tmp_path / "out", runtime={"part_bytes": 1024})
    write_shard(tmp_path / "in/a.jsonl", documents(0, 40))
    write_shard(tmp_path / "in/b.jsonl", documents(40, 80))
    assert run(spec, stop_after=2) is None
    run(spec)  # the resume of a first run
    run(spec)  # nothing to do
    (tmp_path / "in/b.jsonl").unlink()
    run(spec)  # only less
    assert index_files(spec) == {}


def test_a_refresh_indexes_each_part_once_and_a_restart_makes_the_same_objects(
    tmp_path: Path,
) -> None:
    spec = make_spec(tmp_path / "in", tmp_path / "out", runtime={"part_bytes": 1024})
    write_shard(tmp_path / "in/a.jsonl", documents(0, 40))
    run(spec)
    write_shard(tmp_path / "in/b.jsonl", documents(40, 80))
    assert run(spec, stop_after=1) is None
    made = index_files(spec)
    assert len(made) == 2
    for path in made:
        (tmp_path / "out" / path).unlink()
    assert run(spec, stop_after=1) is None
    assert index_files(spec) == made
    run(spec)
    assert index_files(spec) == made
    write_shard(tmp_path / "in/c.jsonl", documents(80, 90))
    run(spec)
    after = index_files(spec)
    assert made.items() < after.items()
    covered = [
        text_index.IndexSegment.from_json(data, path).parts
        for path, data in after.items()
        if path.endswith("json")
    ]
    first, second = sorted(covered, key=len)
    assert set(first).isdisjoint(second)


def test_many_small_runs_become_one_and_vacuum_removes_those_it_replaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_index, "MANY_SEGMENTS", 4)
    spec, fingerprint = make_spec(tmp_path / "in", tmp_path / "out"), ""
    for night in range(7):
        write_shard(tmp_path / f"in/{night}.jsonl", documents(night * 10, night * 10 + 10))
        assert refreshed(spec) == 10
    store, fingerprint = store_of(spec), job_of(spec).fingerprint
    manifests = load_manifests(store, fingerprint)
    used = text_index.used_segments(store, fingerprint, [part.part_id for part in manifests])
    assert len(used) < 4 < len(index_files(spec)) / 2
    vacuum(spec.output.uri, older_than=datetime.timedelta(0), delete=True)
    assert sorted(index_files(spec)) == sorted(
        f"{run}.{suffix}" for run in used for suffix in ("arrow", "json")
    )
    for night in range(7):
        (tmp_path / f"in/{night}.jsonl").unlink()
    write_shard(tmp_path / "in/all.jsonl", documents(0, 70))
    assert refreshed(spec) == 0


def damaged(path: Path, position: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * position)] ^= 0x55
    path.write_bytes(data)


def vectors_damaged(path: Path) -> None:
    column = next(
        column
        for n in range(pq.read_metadata(path).num_columns)
        if (column := pq.read_metadata(path).row_group(0).column(n)).path_in_schema.startswith(
            "embedding"
        )
    )
    damaged(
        path, (column.data_page_offset + column.total_compressed_size / 2) / path.stat().st_size
    )


@pytest.mark.parametrize(
    "spoil",
    [
        Path.unlink,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(b"PAR1 no Parquet at all PAR1"),
        vectors_damaged,
        # as many rows, other texts
        lambda path: shutil.copy(path.parent.parent / "other.parquet", path),
        lambda path: pq.write_table(pq.read_table(path).slice(0, 1), path),
        lambda path: pq.write_table(pq.read_table(path).drop_columns(["embedding"]), path),
    ],
    ids=["gone", "empty", "cut", "garbage", "flipped", "another", "shorter", "columnless"],
)
def test_what_a_data_file_no_longer_gives_is_embedded_again(
    tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    spec = make_spec(tmp_path / "in", tmp_path / "out")
    write_shard(tmp_path / "in/a.jsonl", documents(0, 20))
    run(spec)
    write_shard(tmp_path / "in/b.jsonl", documents(20, 30))
    run(spec)  # indexes the file of a
    (old,) = [
        path for path in (tmp_path / "out/data").iterdir() if pq.read_metadata(path).num_rows == 20
    ]
    pq.write_table(pq.read_table(old).take(list(range(19, -1, -1))), tmp_path / "out/other.parquet")
    spoil(old)
    write_shard(tmp_path / "in/a.jsonl", documents(5, 35))
    assert refreshed(spec) == 20  # 5 to 20 are lost, 20 to 30 are reused, 30 to 35 are new
    check_as_rebuilt(spec, tmp_path / "scratch")


@pytest.mark.parametrize("position", [0.0, 0.2, 0.4, 0.6, 0.8, 0.999])
def test_a_damaged_index_costs_an_embedding_and_never_a_wrong_vector(
    tmp_path: Path, position: float
) -> None:
    spec = make_spec(tmp_path / "in", tmp_path / "out")
    write_shard(tmp_path / "in/a.jsonl", documents(0, 50))
    run(spec)
    write_shard(tmp_path / "in/b.jsonl", documents(50, 60))
    run(spec)
    (index,) = (tmp_path / "out/_meta/index").rglob("*.arrow")
    damaged(index, position)
    write_shard(tmp_path / "in/a.jsonl", documents(0, 49))
    assert refreshed(spec) <= 49
    check_as_rebuilt(spec, tmp_path / "scratch")


@pytest.mark.parametrize("lost", [0, 1])
def test_a_text_that_lies_in_two_files_is_found_in_the_one_that_is_left(
    tmp_path: Path, lost: int
) -> None:
    spec = make_spec(tmp_path / "in", tmp_path / "out")
    job, both = job_of(spec), []
    for n in range(2):  # two runs at once that knew nothing of each other, with the same texts
        write_shard(
            tmp_path / "in/a.jsonl", [{**doc, "id": f"{doc['id']}-{n}"} for doc in documents(0, 15)]
        )
        both += prepared_parts(spec, make_plan(job, store_of(spec)))
    for prepared in both:
        publish_prepared(prepared, job, store_of(spec), HashEngine())
    text_index.update_index(
        store_of(spec), job.fingerprint, load_manifests(store_of(spec), job.fingerprint)
    )
    sorted((tmp_path / "out/data").iterdir())[lost].unlink()
    write_shard(tmp_path / "in/a.jsonl", documents(0, 15))
    assert refreshed(spec) == 0


def test_another_fingerprint_reuses_nothing(tmp_path: Path) -> None:
    write_shard(tmp_path / "in/a.jsonl", documents(0, 20))
    assert refreshed(make_spec(tmp_path / "in", tmp_path / "out")) == 20
    assert (
        refreshed(make_spec(tmp_path / "in", tmp_path / "out", prepare={"unicode": "NFKC"})) == 20
    )


def test_on_s3_a_node_fetches_each_run_of_the_index_once(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORPUS_EMBED_CACHE", str(tmp_path / "cache"))
    options = {"storage_options": s3.storage_options}
    spec = make_spec(
        f"{s3.uri}/in", f"{s3.uri}/out", input=options, output=options, runtime={"part_bytes": 1024}
    )

    def put(name: str, docs: list[Document]) -> None:
        s3.filesystem.put_file(str(write_shard(tmp_path / name, docs)), f"{s3.key}/in/{name}")

    put("a.jsonl", documents(0, 40))
    put("b.jsonl", documents(40, 60))
    assert refreshed(spec) == 60
    put("a.jsonl", documents(5, 45))
    s3.filesystem.rm_file(f"{s3.key}/in/b.jsonl")
    assert refreshed(spec) == 0
    (copied,) = (tmp_path / "cache/index").iterdir()
    before = copied.stat().st_mtime_ns
    put("a.jsonl", documents(0, 70))
    assert refreshed(spec) == 10
    assert copied.stat().st_mtime_ns == before
    assert len(list((tmp_path / "cache/index").iterdir())) == 2
