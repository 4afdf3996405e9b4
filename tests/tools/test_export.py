"""`export` gives every vector and key of a snapshot to NumPy, FAISS and Lance.

Oracle: each library reads what was written; `read_vectors` and exact search in float64.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest

import pipeline
from pipeline.cli.commands import invoke
from pipeline.errors import OutputError, SpecError
from pipeline.tools.export.faiss import default_index
from pipeline.tools.export.place import Place
from tests.support.outputs import make_spec, run_without_ray, write_shard

N = 60
PRECISIONS = ["float32", "int8", "ubinary"]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory, bert_mean_dir: Path) -> dict[str, str]:
    """One output for each precision, of two snapshots, of which the second has ten rows more."""
    root = tmp_path_factory.mktemp("export")
    uris = {}
    for precision in PRECISIONS:
        uris[precision] = str(root / precision)
        for name, numbers in (("a", range(N)), ("b", range(N, N + 10))):
            documents = [
                {"id": f"d{n}", "text": f"text {n} {n % 7}", "lang": "ja" if n % 2 else None}
                for n in numbers
            ]
            write_shard(root / f"in-{precision}/{name}.jsonl", documents)
            spec = make_spec(
                str(root / f"in-{precision}"),
                uris[precision],
                bert_mean_dir,
                output={"partition_by": ["lang"], "vector_precision": precision},
            )
            assert run_without_ray(spec)
    return uris


def by_id(ids: list[str], vectors: Any) -> dict[str, list[float]]:
    return {doc_id: row.tolist() for doc_id, row in zip(ids, np.asarray(vectors), strict=True)}


def truth(uri: str, snapshot: int | None = None) -> dict[str, list[float]]:
    ids, vectors = pipeline.read_vectors(uri, snapshot)
    return by_id(ids.to_pylist(), vectors)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_npy_is_a_memory_map_of_the_vectors_with_keys_beside_it(
    outputs: dict[str, str], precision: str, tmp_path: Path
) -> None:
    uri = outputs[precision]
    exported = pipeline.export(uri, str(tmp_path / "npy"), to="npy", columns=["lang", "text"])
    vectors = np.load(tmp_path / "npy/vectors.npy", mmap_mode="r")
    keys = pq.read_table(tmp_path / "npy/keys.parquet")
    assert keys.column_names == ["doc_id", "chunk", "lang", "text"]
    assert by_id(keys["doc_id"].to_pylist(), vectors) == truth(uri)
    assert vectors.dtype == (np.uint8 if precision == "ubinary" else np.float32)
    assert set(keys["lang"].to_pylist()) == {"ja", None}
    record = json.loads((tmp_path / "npy/export.json").read_text())
    assert record == exported.facts
    assert (record["snapshot"], record["n_rows"], exported.n_rows) == (2, N + 10, N + 10)
    assert record["vector_precision"] == precision
    assert pipeline.changes(uri, record["cursor"]).until == 2  # the cursor is one


def test_an_older_snapshot_can_be_exported(outputs: dict[str, str], tmp_path: Path) -> None:
    uri = outputs["float32"]
    pipeline.export(uri, str(tmp_path / "one"), to="npy", snapshot=1)
    keys = pq.read_table(tmp_path / "one/keys.parquet")["doc_id"].to_pylist()
    assert by_id(keys, np.load(tmp_path / "one/vectors.npy")) == truth(uri, 1)


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("index", [None, "flat", "IVF4,Flat", "HNSW16"])
def test_faiss_finds_the_neighbours_by_cosine(
    outputs: dict[str, str], precision: str, index: str | None, tmp_path: Path
) -> None:
    uri = outputs[precision]
    exported = pipeline.export(uri, str(tmp_path / "f"), to="faiss", index=index)
    assert exported.facts["index"] == ("Flat" if index in (None, "flat") else index)
    stored = faiss.read_index(str(tmp_path / "f/index.faiss"))
    assert stored.metric_type == faiss.METRIC_INNER_PRODUCT
    keys = pq.read_table(tmp_path / "f/keys.parquet")["doc_id"].to_pylist()
    vectors = truth(uri)
    unit = np.array([vectors[key] for key in keys], np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    assert (stored.ntotal, stored.d) == unit.shape
    if hasattr(stored, "nprobe"):
        stored.nprobe = 4
    scores, rows = stored.search(unit[:9].astype(np.float32), 3)
    exact = np.sort(unit[:9] @ unit.T, axis=1)[:, ::-1][:, :3]
    # float32 sums of 32 products of numbers below 1
    assert np.abs(scores - exact).max() < 1e-5
    assert np.abs(scores - np.einsum("qd,qkd->qk", unit[:9], unit[rows])).max() < 1e-5


def test_faiss_compares_bits_by_hamming_distance(outputs: dict[str, str], tmp_path: Path) -> None:
    uri = outputs["ubinary"]
    pipeline.export(uri, str(tmp_path / "b"), to="faiss")
    stored = faiss.read_index_binary(str(tmp_path / "b/index.faiss"))
    keys = pq.read_table(tmp_path / "b/keys.parquet")["doc_id"].to_pylist()
    vectors = truth(uri)
    bits = np.array([vectors[key] for key in keys], np.uint8)
    distances, _ = stored.search(bits[:5], 4)
    exact = np.sort(np.bitwise_count(bits[:5, None] ^ bits[None]).sum(axis=2), axis=1)[:, :4]
    assert distances.tolist() == exact.tolist()


def test_the_default_index_goes_by_the_number_of_rows() -> None:
    assert default_index(200_000) == "Flat"
    assert default_index(1_000_000) == "IVF4096,Flat"
    assert default_index(100_000_000) == "IVF32768,Flat"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_lance_has_the_columns_the_vectors_and_where_they_come_from(
    outputs: dict[str, str], precision: str, tmp_path: Path
) -> None:
    import lance

    uri = outputs[precision]
    pipeline.export(uri, str(tmp_path / "l"), to="lance", columns=["lang"])
    stored = lance.dataset(str(tmp_path / "l"))
    table = stored.to_table()
    assert table.column_names == ["doc_id", "chunk", "lang", "embedding"]
    width = stored.schema.field("embedding").type.list_size
    vectors = table["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, width)
    assert by_id(table["doc_id"].to_pylist(), vectors) == truth(uri)
    facts = json.loads(stored.schema.metadata[b"corpus_embed"])
    assert (facts["snapshot"], facts["n_rows"]) == (2, N + 10)
    query = vectors[7]
    if precision != "ubinary":
        nearest = {"column": "embedding", "q": query, "k": 1, "metric": "cosine"}
        assert stored.to_table(nearest=nearest)["doc_id"].to_pylist() == [
            table["doc_id"][7].as_py()
        ]


@pytest.mark.parametrize("to", ["npy", "faiss", "lance"])
def test_nothing_is_overwritten_and_a_failed_export_leaves_nothing(
    outputs: dict[str, str], to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = outputs["float32"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    with pytest.raises(SpecError, match="something is there already"):
        pipeline.export(uri, str(tmp_path / "full"), to=to)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    pipeline.export(uri, str(tmp_path / "empty"), to=to)
    with pytest.raises(SpecError, match="is there already"):
        pipeline.export(uri, str(tmp_path / "empty"), to=to)

    damaged = tmp_path / "damaged"
    import shutil

    shutil.copytree(uri, damaged)
    path = sorted((damaged / "data").rglob("*.parquet"))[-1]
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(OutputError, match="this data file is damaged"):
        pipeline.export(str(damaged), str(tmp_path / "new"), to=to)
    assert not (tmp_path / "new").exists()


def test_mistakes_are_named(outputs: dict[str, str], tmp_path: Path) -> None:
    uri = outputs["float32"]
    new = str(tmp_path / "new")
    with pytest.raises(SpecError, match="--to csv: it takes one of npy, faiss, lance"):
        pipeline.export(uri, new, to="csv")
    with pytest.raises(SpecError, match="--columns: snapshot 2 has no title; it has doc_id"):
        pipeline.export(uri, new, to="npy", columns=["title"])
    with pytest.raises(SpecError, match="--index Nonsense9: FAISS does not make it"):
        pipeline.export(uri, new, to="faiss", index="Nonsense9")
    with pytest.raises(SpecError, match="lies inside the output"):
        pipeline.export(uri, f"{uri}/data/../npy", to="npy")
    with pytest.raises(SpecError, match="only --to faiss has an index"):
        pipeline.export(uri, new, to="npy", index="flat")
    assert not Path(new).exists()


def test_a_missing_library_is_said_with_its_package(
    outputs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lance", None)
    with pytest.raises(SpecError, match="pip install pylance"):
        pipeline.export(outputs["float32"], str(tmp_path / "new"), to="lance")


def test_the_command_exports_to_s3(
    s3: Any, outputs: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = outputs["int8"]
    options = json.dumps(s3.storage_options)
    for to in ("npy", "lance"):
        destination = f"{s3.uri}/{to}"
        command = ["export", uri, "--to", to, "-o", destination, "--dest-options", options]
        assert invoke(command) == 0
        assert f"70 rows of snapshot 2 to {destination}" in capsys.readouterr().out
        with pytest.raises(SpecError, match="is there already"):
            invoke(command)
    for name in ("vectors.npy", "keys.parquet"):
        s3.filesystem.get_file(f"{s3.key}/npy/{name}", str(tmp_path / name))
    keys = pq.read_table(tmp_path / "keys.parquet")["doc_id"].to_pylist()
    assert by_id(keys, np.load(tmp_path / "vectors.npy")) == truth(uri)
    import lance

    stored = lance.dataset(
        f"{s3.uri}/lance",
        storage_options={"aws_endpoint": s3.endpoint_url, "allow_http": "true"},
    )
    assert stored.count_rows() == 70


def test_a_request_to_the_destination_that_fails_once_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place("memory://review/export")
    for name in ("exists", "makedirs", "put_file", "pipe_file"):
        request = getattr(place.fs, name)
        failures = [ConnectionResetError("reset by peer")]

        def flaky(*arguments: Any, request: Any = request, failures: Any = failures, **more: Any):
            if failures:
                raise failures.pop()
            return request(*arguments, **more)

        monkeypatch.setattr(place.fs, name, flaky)
    (tmp_path / "index").write_bytes(b"an index")
    place.check_is_free()
    place.create()
    place.put(tmp_path / "index", "index")
    place.finish({"to": "faiss"})
    assert place.fs.cat_file(f"{place.root}/index") == b"an index"
    assert json.loads(place.fs.cat_file(f"{place.root}/export.json")) == {"to": "faiss"}
    with pytest.raises(SpecError, match="an export is there already"):
        place.check_is_free()
    place.discard()
