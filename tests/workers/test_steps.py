"""The way of one part to its vectors: bounds that never move, every record accounted for, each text
embedded once.

Oracle: plain Python over the documents that the test wrote.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.driver.planning.plan import make_plan
from pipeline.embed.stats import EngineStats
from pipeline.job.spec import JobSpec
from pipeline.output.dataset import open_dataset
from pipeline.read import parts
from pipeline.read.input.shards import list_shards
from pipeline.read.parts import cut
from pipeline.storage import schema
from pipeline.storage.lineage import Manifest, Span, Split
from pipeline.workers.cells import pack, unpack
from pipeline.workers.steps import PreparedPart
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
    vector_of_text,
)

WORDS = "αβγδ word 漢字かな "


def documents(n: int) -> list[dict[str, Any]]:
    return [{"id": f"d{i}", "text": f"{i} " + WORDS * (i % 13)} for i in range(n)]


def split_of(path: Path, part_bytes: int, **more: Any) -> Split:
    shards = list_shards([str(path)], {})
    return Split(spans=tuple(Span(shard=shard) for shard in shards), part_bytes=part_bytes, **more)


def rebatched(tables: list[pa.Table], sizes: list[int]) -> list[pa.Table]:
    """The same rows in other batches."""
    whole = pa.concat_tables(tables)
    batches: list[pa.Table] = []
    start = 0
    while start < whole.num_rows:
        n = sizes[len(batches) % len(sizes)]
        batches.append(whole.slice(start, n))
        start += n
    return batches


def bounds(split: Split, spec: JobSpec) -> list[list[tuple[str, int]]]:
    """(source_uri, source_record) of every record, part by part."""
    columns = ("source_uri", "source_record")
    return [
        list(zip(*(part.records[name].to_pylist() for name in columns), strict=True))
        for part in cut(split, job_of(spec))
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_bounds_of_parts_do_not_depend_on_the_batches_of_a_reader(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(tmp_path / "in" / name, documents(200))
    spec = make_spec(tmp_path / "in", tmp_path / "out")
    split = split_of(tmp_path / "in", 2000, part_records=23)
    expected = bounds(split, spec)
    assert len(expected) > 8
    read = parts.read_span
    for sizes in ([1], [7, 1, 300], [random.Random(4).randint(1, 50) for _ in range(20)]):

        def other(*arguments: Any, sizes: list[int] = sizes) -> list[pa.Table]:
            return rebatched(list(read(*arguments)), sizes)

        monkeypatch.setattr(parts, "read_span", other)
        assert bounds(split, spec) == expected


def test_a_part_ends_with_the_record_that_fills_it_in_bytes_or_number(tmp_path: Path) -> None:
    write_shard(tmp_path / "in/a.jsonl", documents(150))
    write_shard(tmp_path / "in/b.jsonl", documents(5))
    spec = make_spec(tmp_path / "in", tmp_path / "out")
    split = split_of(tmp_path / "in", 1500, part_records=20)
    cut_parts = list(cut(split, job_of(spec)))
    assert [part.index for part in cut_parts] == list(range(len(cut_parts)))
    assert [part.last for part in cut_parts] == [False] * (len(cut_parts) - 1) + [True]
    for part in cut_parts:
        sizes = part.records["record_bytes"].to_pylist()
        assert len(sizes) <= 20
        assert sum(sizes[:-1]) < 1500
        assert part.last or sum(sizes) >= 1500 or len(sizes) == 20
    lines = (tmp_path / "in/a.jsonl").read_bytes().splitlines()
    assert sum(part.records.num_rows for part in cut_parts) == len(lines) + 5


def test_a_split_without_records_is_one_empty_part_with_a_manifest(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"\n\n")
    snapshot = run(make_spec(tmp_path / "in", tmp_path / "out"))
    assert snapshot is not None
    assert (snapshot.n_parts, snapshot.n_files, snapshot.n_records) == (1, 0, 0)
    assert open_dataset(str(tmp_path / "out")).count_rows() == 0


def test_a_part_of_nothing_but_rejects_survives_its_way_through_ipc(tmp_path: Path) -> None:
    """Ray carries tables as IPC streams, in which a table without rows has no chunk at all."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_bytes(b"{broken\n" * 3)
    spec = make_spec(tmp_path / "in", tmp_path / "out")
    plan = make_plan(job_of(spec), store_of(spec))
    (prepared,) = prepared_parts(spec, plan)

    received = unpack(PreparedPart, pack(prepared))
    manifest = publish_prepared(received, plan.job, store_of(spec), HashEngine())
    assert (manifest.n_records, manifest.n_rejects, manifest.data_files) == (3, 3, ())
    assert manifest.reject_reasons == {"malformed_json": 3}


def test_without_an_id_column_the_id_is_uri_and_record(tmp_path: Path) -> None:
    write_shard(tmp_path / "in/a.jsonl", documents(3))
    run(make_spec(tmp_path / "in", tmp_path / "out", input={"id_column": None}))
    rows = open_dataset(str(tmp_path / "out")).to_table().to_pylist()
    data = (tmp_path / "in/a.jsonl").read_bytes()
    starts = [0, data.index(b"\n") + 1, data.index(b"\n", data.index(b"\n") + 1) + 1]
    uri = f"file://{tmp_path}/in/a.jsonl"
    assert [row["doc_id"] for row in rows] == [f"{uri}#{start}" for start in starts]


def test_each_distinct_text_of_a_part_goes_through_the_model_once_and_every_row_gets_its_vector(
    tmp_path: Path,
) -> None:
    docs = [{"id": str(i), "text": f"text {i % 4}"} for i in range(20)]
    write_shard(tmp_path / "in/a.jsonl", docs)
    engine = HashEngine()
    run(make_spec(tmp_path / "in", tmp_path / "out"), engine)
    assert len(engine.seen) == len(set(engine.seen)) == 4
    rows = open_dataset(str(tmp_path / "out")).to_table().to_pylist()
    assert [row["doc_id"] for row in rows] == [doc["id"] for doc in docs]
    for row, doc in zip(rows, docs, strict=True):
        np.testing.assert_array_equal(np.float32(row["embedding"]), vector_of_text(doc["text"]))
        assert row["text_sha256"] == hashlib.sha256(doc["text"].encode()).hexdigest()
        assert (row["n_tokens"], row["truncated"]) == (len(doc["text"].encode()), False)
    (manifest,) = manifests(tmp_path / "out")
    assert (manifest.n_embedded, manifest.n_rows, manifest.n_tokens) == (4, 20, 120)


def manifests(output: Path) -> list[Manifest]:
    return [
        Manifest.from_json(path.read_bytes(), str(path))
        for path in output.glob("_meta/manifests/*/*.json")
    ]


class BrokenEngine(HashEngine):
    """NaN or infinity for every text that holds the byte `!`."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def embed(self, ids: np.ndarray, offsets: np.ndarray, stats: EngineStats) -> np.ndarray:
        vectors = super().embed(ids, offsets, stats)
        for row, (a, b) in enumerate(itertools.pairwise(offsets)):
            if ord("!") in ids[a:b]:
                vectors[row, 3] = self.value
        return vectors


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("mode", ["truncate", "chunk", "chunk_and_pool"])
def test_a_vector_that_is_not_finite_rejects_its_whole_document(
    tmp_path: Path, value: float, mode: str
) -> None:
    sentence = "A sentence of some length. "
    docs = [
        {"id": str(i), "text": sentence * 9 + ("Broken here! " if i % 3 == 1 else "")}
        for i in range(9)
    ]
    write_shard(tmp_path / "in/a.jsonl", docs)
    chunk = {"max_tokens": 64, "overlap_tokens": 0}
    spec = make_spec(
        tmp_path / "in", tmp_path / "out", prepare={"long_documents": mode, "chunk": chunk}
    )
    snapshot = run(spec, BrokenEngine(value))
    assert snapshot is not None
    assert (snapshot.n_documents, snapshot.n_rejects, snapshot.reject_reasons) == (
        6,
        3,
        {"not_finite": 3},
    )
    table = open_dataset(str(tmp_path / "out")).to_table()
    assert set(table["doc_id"].to_pylist()) == {str(i) for i in range(9) if i % 3 != 1}
    assert table.num_rows == (6 if mode != "chunk" else snapshot.n_rows) >= 6
    (letters,) = (tmp_path / "out/_meta/rejects").rglob("*.parquet")
    rejected = pq.read_table(letters)
    assert rejected["doc_id"].to_pylist() == ["1", "4", "7"]
    assert rejected.schema.equals(schema.rejects_schema())


@pytest.mark.parametrize("mode", ["chunk", "chunk_and_pool"])
def test_chunks_are_windows_of_the_text_and_pooling_weighs_them_by_tokens(
    tmp_path: Path, mode: str
) -> None:
    text = "".join(f"This is sentence number {i}. " for i in range(12))
    write_shard(
        tmp_path / "in/a.jsonl", [{"id": "long", "text": text}, {"id": "short", "text": "one."}]
    )
    prepare = {"long_documents": mode, "chunk": {"max_tokens": 64, "overlap_tokens": 0}}
    run(make_spec(tmp_path / "in", tmp_path / "out", prepare=prepare))
    rows = [
        r
        for r in open_dataset(str(tmp_path / "out")).to_table().to_pylist()
        if r["doc_id"] == "long"
    ]
    if mode == "chunk":
        assert [row["text"] for row in rows] == [
            text[row["char_start"] : row["char_end"]] for row in rows
        ]
        assert [row["chunk"] for row in rows] == list(range(len(rows)))
        windows = [row["text"] for row in rows]
    else:
        job = job_of(make_spec(tmp_path / "in", tmp_path / "other", prepare=prepare))
        plan = make_plan(job, store_of(job.spec))
        (prepared,) = prepared_parts(job.spec, plan)
        ids = prepared.tokens["ids"].to_pylist()
        windows = [bytes(ids[i]).decode() for i in prepared.rows["texts"][0].as_py()]
        weights = [len(window.encode()) for window in windows]
        mean = np.average([vector_of_text(window) for window in windows], axis=0, weights=weights)
        # float32 sums
        np.testing.assert_allclose(np.float32(rows[0]["embedding"]), mean, atol=1e-6)
        assert (rows[0]["text"], rows[0]["n_tokens"]) == (text, sum(weights))
    assert all(len(window.encode()) <= 64 for window in windows)
    # white space between two windows belongs to neither
    assert "".join(windows).replace(" ", "") == text.replace(" ", "")


def test_long_texts_are_truncated_and_say_so(tmp_path: Path) -> None:
    write_shard(
        tmp_path / "in/a.jsonl",
        [{"id": "long", "text": "x" * 600}, {"id": "short", "text": "x" * 512}],
    )
    run(make_spec(tmp_path / "in", tmp_path / "out"))
    rows = {
        row["doc_id"]: row for row in open_dataset(str(tmp_path / "out")).to_table().to_pylist()
    }
    assert (rows["long"]["n_tokens"], rows["long"]["truncated"]) == (512, True)
    assert (rows["short"]["n_tokens"], rows["short"]["truncated"]) == (512, False)
    assert rows["long"]["embedding"] == rows["short"]["embedding"]  # the model saw the same
    assert rows["long"]["text_sha256"] == hashlib.sha256(b"x" * 600).hexdigest()


def test_a_prompt_is_seen_by_the_model_and_is_in_neither_text_nor_hash(tmp_path: Path) -> None:
    write_shard(tmp_path / "in/a.jsonl", [{"id": "a", "text": "text"}])
    run(make_spec(tmp_path / "in", tmp_path / "out"), tokenizer=ByteTokenizer(prompt="query: "))
    (row,) = open_dataset(str(tmp_path / "out")).to_table().to_pylist()
    np.testing.assert_array_equal(np.float32(row["embedding"]), vector_of_text("query: text"))
    assert (row["text"], row["text_sha256"]) == ("text", hashlib.sha256(b"text").hexdigest())


def test_a_partition_value_too_long_for_a_folder_is_a_reject_and_the_longest_that_fits_is_not(
    tmp_path: Path,
) -> None:
    fits, too_long, wide = "x" * (255 - len("lang=")), "x" * (256 - len("lang=")), "漢" * 84
    docs = [
        {"id": str(i), "text": "t", "lang": lang}
        for i, lang in enumerate([fits, too_long, wide, "en", None])
    ]
    write_shard(tmp_path / "in/a.jsonl", docs)
    spec = make_spec(
        tmp_path / "in",
        tmp_path / "out",
        input={"keep_columns": ["lang"]},
        output={"partition_by": ["lang"]},
    )
    snapshot = run(spec)
    assert snapshot is not None
    assert snapshot.reject_reasons == {"invalid_column": 2}
    rows = open_dataset(str(tmp_path / "out")).to_table().to_pylist()
    assert {row["doc_id"]: row["lang"] for row in rows} == {"0": fits, "3": "en", "4": None}


def test_the_manifest_says_what_came_from_which_shard(tmp_path: Path) -> None:
    write_shard(tmp_path / "in/a.jsonl", documents(4))
    (tmp_path / "in/b.jsonl").write_bytes(
        b'{"id": "x", "text": "x"}\n{broken\n{"id": "y", "text": null}\n'
    )
    (tmp_path / "in/empty.jsonl").touch()
    run(make_spec(tmp_path / "in", tmp_path / "out"))
    (manifest,) = manifests(tmp_path / "out")
    a, b = manifest.sources
    assert (a.n_records, a.n_rejects, a.first_record, a.damaged) == (4, 0, 0, False)
    assert (b.n_records, b.n_rejects) == (3, 2)
    assert manifest.reject_reasons == {"malformed_json": 1, "null_text": 1}
    sizes = [
        len(line)
        for p in ("a", "b")
        for line in (tmp_path / f"in/{p}.jsonl").read_bytes().splitlines()
    ]
    assert manifest.record_bytes == sum(sizes)


def test_a_damaged_shard_is_marked_and_its_readable_records_are_kept(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "in/a.jsonl.gz", documents(400))
    path.write_bytes(path.read_bytes()[:-40])
    snapshot = run(make_spec(tmp_path / "in", tmp_path / "out"))
    assert snapshot is not None
    assert snapshot.reject_reasons == {"damaged_shard": 1}
    assert 100 < snapshot.n_documents < 400
    assert [source.damaged for part in manifests(tmp_path / "out") for source in part.sources] == [
        True
    ]


def test_documents_with_replaced_characters_are_counted(tmp_path: Path) -> None:
    texts = ["a", "\ufffd b", "c\ufffd\ufffd", "", "\uf900 d"]
    documents = [{"id": str(number), "text": text} for number, text in enumerate(texts)]
    write_shard(tmp_path / "in/a.jsonl.gz", documents)
    write_shard(tmp_path / "in/b.jsonl.gz", [{"id": "clean", "text": "clean"}])
    assert run(make_spec(tmp_path / "in", tmp_path / "out")) is not None
    sources = [source for part in manifests(tmp_path / "out") for source in part.sources]
    assert {source.uri.rpartition("/")[2]: source.n_replaced for source in sources} == {
        "a.jsonl.gz": 2,
        "b.jsonl.gz": 0,
    }


def test_a_part_is_bounded_by_kept_strings_too(tmp_path: Path) -> None:
    documents = [{"id": f"{n}", "text": "t", "page": "x" * 1000} for n in range(50)]
    path = write_shard(tmp_path / "a.parquet", documents)
    spec = make_spec(tmp_path, tmp_path / "out", input={"keep_columns": ["page"]})
    cut_parts = list(cut(split_of(path, 10_000), job_of(spec)))
    # 1,001 bytes each, to 10,000
    assert [part.records.num_rows for part in cut_parts] == [10] * 5
