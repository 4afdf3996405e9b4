"""search: a document finds itself, and the ranking is that of a brute-force oracle in numpy or
sentence-transformers."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import ModelError, SpecError
from pipeline.output.dataset import open_dataset
from pipeline.storage import data_rows
from pipeline.storage.data_rows import ScannedBatch
from pipeline.tools.loaded_snapshot import load_snapshot_with_lineage
from pipeline.tools.search import embed_query, search, similarities
from pipeline.tools.trace import trace
from pipeline.tools.verify.verification import verify
from tests.support import model_dirs, outputs

QUERY = "How is a string changed?"


def make(tmp_path: Path, model: Path, documents=outputs.DOCUMENTS, **sections) -> str:
    outputs.write_shard(tmp_path / "in" / "a.jsonl", documents[:5])
    outputs.write_shard(tmp_path / "in" / "b.jsonl.gz", documents[5:])
    sections = {"runtime": {"part_bytes": 1024}, **sections}
    spec = outputs.make_spec(str(tmp_path / "in"), str(tmp_path / "out"), model, **sections)
    outputs.run_without_ray(spec)
    return spec.output.uri


def oracle(
    uri: str, query: np.ndarray, unpack=lambda rows: np.stack(rows["embedding"])
) -> list[tuple[str, float]]:
    """All rows by cosine in float64, best first."""
    rows = open_dataset(uri).to_table().to_pandas()
    vectors = unpack(rows).astype(np.float64)
    scores = vectors @ query / (np.linalg.norm(vectors, axis=1) * np.linalg.norm(query))
    order = np.argsort(-scores, kind="stable")
    return [(rows["doc_id"][n], scores[n]) for n in order]


@pytest.mark.parity
@pytest.mark.parametrize("model", ["bert_mean_dir", "bert_dense_dir"])
def test_the_ranking_is_that_of_sentence_transformers(tmp_path, request, model):
    from sentence_transformers import SentenceTransformer

    directory = request.getfixturevalue(model)
    uri = make(tmp_path, directory)
    reference = SentenceTransformer(str(directory), device="cpu")
    texts = [d["text"] for d in outputs.DOCUMENTS]
    vectors = reference.encode([QUERY, *texts]).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = vectors[1:] @ vectors[0]
    order = np.argsort(-scores)
    hits = search(uri, QUERY, k=8)
    assert [hit.doc_id for hit in hits] == [f"doc-{n}" for n in order]
    # float32 arithmetic in another order of sums
    np.testing.assert_allclose([hit.score for hit in hits], scores[order], atol=2e-5)
    assert [hit.text for hit in hits] == [texts[n] for n in order]


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16", "int8", "ubinary"])
def test_a_document_finds_itself_and_every_precision_ranks_as_brute_force_does(
    tmp_path, bert_mean_dir, precision
):
    uri = make(tmp_path, bert_mean_dir, output={"vector_precision": precision})
    assert search(uri, outputs.DOCUMENTS[6]["text"], k=1)[0].doc_id == "doc-6"
    query = embed_query(load_snapshot_with_lineage(uri), QUERY).astype(np.float64)
    if precision == "ubinary":
        signs = np.where(query > 0, 1.0, -1.0)
        expected = oracle(
            uri, signs, lambda rows: np.unpackbits(np.stack(rows["embedding"]), axis=1) * 2.0 - 1
        )
    else:
        expected = oracle(uri, query)
    hits = search(uri, QUERY, k=8)
    np.testing.assert_allclose(
        [hit.score for hit in hits], [score for _, score in expected], atol=1e-6
    )
    assert {hit.doc_id for hit in hits} == {doc_id for doc_id, _ in expected}


def test_k_limits_and_batches_do_not_change_what_is_found(tmp_path, bert_mean_dir, monkeypatch):
    # many equal scores
    documents = [{**outputs.DOCUMENTS[n % 8], "id": f"d{n}"} for n in range(40)]
    uri = make(tmp_path, bert_mean_dir, documents)
    whole = search(uri, QUERY, k=40)
    assert len(whole) == 40
    assert [hit.score for hit in whole] == sorted((hit.score for hit in whole), reverse=True)
    scan = data_rows.scan

    def in_threes(*arguments):
        for file, first, batch in scan(*arguments):
            yield from (
                ScannedBatch(file, first + n, batch.slice(n, 3)) for n in range(0, len(batch), 3)
            )

    monkeypatch.setattr(data_rows, "scan", in_threes)
    for k in (1, 7, 12):
        hits = search(uri, QUERY, k=k)
        np.testing.assert_allclose(
            [hit.score for hit in hits], [hit.score for hit in whole[:k]], atol=1e-6
        )
    assert len(search(uri, QUERY, k=1000)) == 40


def test_hits_carry_kept_and_partition_columns_with_their_types(tmp_path, bert_mean_dir):
    documents = [
        {**d, "year": 2000 + n % 2, "seen": f"2026-01-0{n + 1}"}
        for n, d in enumerate(outputs.DOCUMENTS)
    ]
    keep = {"lang": "string", "year": "int64", "seen": "date"}
    uri = make(
        tmp_path,
        bert_mean_dir,
        documents,
        input={"keep_columns": keep},
        output={"partition_by": ["year"], "include_text": False},
    )
    hit = search(uri, outputs.DOCUMENTS[3]["text"], k=1)[0]
    assert (hit.doc_id, hit.chunk, hit.text) == ("doc-3", 0, None)
    assert hit.columns == {"lang": "en", "year": 2001, "seen": str(datetime.date(2026, 1, 4))}
    assert hit.source_uri.endswith("a.jsonl")


def test_a_query_gets_the_query_prompt_of_the_model_unless_another_is_named(tmp_path):
    model = model_dirs.bert_mean(
        tmp_path / "model", prompts={"query": "find the number: ", "plain": ""}
    )
    uri = make(tmp_path, model)
    vectors = {
        name: embed_query(load_snapshot_with_lineage(uri), QUERY, name)
        for name in (None, "query", "plain")
    }
    np.testing.assert_array_equal(vectors[None], vectors["query"])
    assert np.abs(vectors["query"] - vectors["plain"]).max() > 1e-3
    loaded = load_snapshot_with_lineage(uri)
    for own, text in (("find the number: ", QUERY), ("", f"find the number: {QUERY}")):
        np.testing.assert_array_equal(embed_query(loaded, text, prompt=own), vectors["query"])
    assert search(uri, outputs.DOCUMENTS[1]["text"], k=1, prompt_name="plain")[0].doc_id == "doc-1"
    assert search(uri, outputs.DOCUMENTS[1]["text"], k=1, prompt="")[0].doc_id == "doc-1"
    with pytest.raises(SpecError, match="plain"):
        search(uri, QUERY, prompt_name="passage")


def test_a_model_whose_card_asks_for_a_query_prompt_and_registers_none_is_named(tmp_path, caplog):
    model = model_dirs.bert_mean(tmp_path / "multilingual-e5-small")
    loaded = load_snapshot_with_lineage(make(tmp_path, model))
    caplog.clear()
    without = embed_query(loaded, QUERY)
    assert "'query: '" in caplog.text
    caplog.clear()
    asked = embed_query(loaded, QUERY, prompt="query: ")
    np.testing.assert_array_equal(embed_query(loaded, QUERY, prompt=""), without)
    assert np.abs(asked - without).max() > 1e-3
    assert not caplog.records


def test_a_query_is_normalised_as_the_documents_were(tmp_path, bert_mean_dir):
    uri = make(tmp_path, bert_mean_dir, prepare={"unicode": "NFKC"})
    wide = "".join(
        chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in outputs.DOCUMENTS[2]["text"]
    )
    hit = search(uri, wide, k=1)[0]
    assert hit.doc_id == "doc-2"
    assert hit.score > 0.9999


def test_search_refuses_another_model_and_an_empty_text(tmp_path, bert_mean_dir):
    uri = make(tmp_path, bert_mean_dir)
    with pytest.raises(ModelError, match="differ"):
        search(uri, QUERY, model_path=str(model_dirs.bert_mean(tmp_path / "other", seed=1)))
    with pytest.raises(SpecError, match="needs a text"):
        search(uri, " ")


def test_similarities_of_zero_vectors_are_zero_and_not_nan():
    vectors = np.array([[0, 0], [3, 4]], np.float32)
    np.testing.assert_allclose(
        similarities(vectors, np.array([1, 0], np.float32)), [0, 0.6], rtol=1e-7
    )


def test_search_trace_and_verify_work_from_s3_to_s3(tmp_path, bert_mean_dir, s3):
    for name in ("a.jsonl", "b.jsonl.gz", "c.parquet"):
        documents = [
            {**d, "id": f"{name}-{n}", "text": f"{d['text']} {name}"}
            for n, d in enumerate(outputs.DOCUMENTS)
        ]
        s3.filesystem.put_file(
            str(outputs.write_shard(tmp_path / name, documents)), f"{s3.key}/in/{name}"
        )
    options = {"storage_options": s3.storage_options}
    spec = outputs.make_spec(
        f"{s3.uri}/in",
        f"{s3.uri}/out",
        bert_mean_dir,
        input=options,
        output={**options, "partition_by": ["lang"]},
    )
    outputs.run_without_ray(spec)
    query = f"{outputs.DOCUMENTS[4]['text']} c.parquet"
    hit = search(spec.output.uri, query, k=1, storage_options=s3.storage_options)[0]
    assert (hit.doc_id, hit.columns) == ("c.parquet-4", {"lang": "en"})
    for name in ("a.jsonl", "b.jsonl.gz", "c.parquet"):
        traced = trace(spec.output.uri, f"{name}-6", storage_options=s3.storage_options)
        assert traced.ok
        assert traced.rows[0].source_uri == f"{s3.uri}/in/{name}"
    verified = verify(spec.output.uri, sample=100, storage_options=s3.storage_options)
    assert verified.ok
    assert verified.checks[-1].figures["embedded_again"] == 24
