"""The oracle of the whole way, text to Parquet: every written vector against
SentenceTransformer.encode on the same files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from pipeline.output import dataset
from tests.support.outputs import make_spec, run_without_ray, write_shard

pytestmark = pytest.mark.parity

TEXTS = [
    "こんにちは、世界！",
    "文埋め込み最高！文埋め込み最高と叫びなさい",
    "極度乾燥しなさい",
    "a",
    "。",
    "The quick brown fox [MASK] jumps over the [SEP] lazy dog.",
    "ﾊﾝｶｸｶﾅ と ｆｕｌｌｗｉｄｔｈ、㍿とか①②③",
    "emoji 👩‍👩‍👧‍👦 🇯🇵 e\u0301 zero\u200bwidth",
    "  leading and trailing white space \t\r\n ",
    "x" * 500,
    "同じ文が何度も続く長い文書です。" * 200,
    "word " * 1500,
]


@pytest.mark.parametrize(
    "family",
    [
        "bert_japanese_dir",
        "llama_dir",
        "bert_mean_dir",
        "bert_dense_dir",
        "static_dir",
        "minilm_dir",
    ],
)
def test_every_written_vector_has_the_direction_of_the_oracles(
    family: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model: Path = request.getfixturevalue(family)
    documents = [{"id": str(i), "text": text, "lang": "x"} for i, text in enumerate(TEXTS)]
    write_shard(tmp_path / "in/a.jsonl", documents)
    run_without_ray(
        make_spec(
            str(tmp_path / "in"),
            str(tmp_path / "out"),
            model,
            model={"path": str(model), "dtype": "float32"},
        )
    )
    ids, vectors = dataset.read_vectors(str(tmp_path / "out"))
    oracle = SentenceTransformer(str(model), device="cpu").encode(TEXTS)
    expected = oracle[[int(i) for i in ids.to_pylist()]]
    cosines = (
        (vectors * expected).sum(1)
        / np.linalg.norm(vectors, axis=1)
        / np.linalg.norm(expected, axis=1)
    )
    assert sorted(ids.to_pylist(), key=int) == [str(i) for i in range(len(TEXTS))]
    assert cosines.min() >= 0.99999  # float32 against float32: only the order of sums differs
    assert (
        np.abs(np.linalg.norm(vectors, axis=1) / np.linalg.norm(expected, axis=1) - 1).max() < 1e-4
    )


@pytest.mark.parametrize(
    "option", [{"normalize": True}, {"pooling": "max"}, {"truncate_dim": 32}, {"max_tokens": 16}]
)
def test_an_override_of_the_spec_does_what_it_does_in_sentence_transformers(
    option: dict[str, Any], tmp_path: Path, bert_mean_dir: Path
) -> None:
    documents = [{"id": str(i), "text": text, "lang": "x"} for i, text in enumerate(TEXTS)]
    write_shard(tmp_path / "in/a.jsonl", documents)
    run_without_ray(
        make_spec(
            str(tmp_path / "in"),
            str(tmp_path / "out"),
            bert_mean_dir,
            model={"path": str(bert_mean_dir), **option},
        )
    )
    ids, vectors = dataset.read_vectors(str(tmp_path / "out"))
    model = SentenceTransformer(
        str(bert_mean_dir), device="cpu", truncate_dim=option.get("truncate_dim")
    )
    if "pooling" in option:
        model[1].pooling_mode = option["pooling"]
    if "max_tokens" in option:
        model.max_seq_length = option["max_tokens"]
    oracle = model.encode(TEXTS, normalize_embeddings=bool(option.get("normalize")))
    # float32 sums
    np.testing.assert_allclose(
        vectors, oracle[[int(i) for i in ids.to_pylist()]], rtol=1e-3, atol=2e-5
    )


@pytest.mark.parametrize("mode", ["chunk", "chunk_and_pool"])
def test_long_documents_are_windowed_and_every_window_is_text_of_the_document(
    tmp_path: Path, bert_japanese_dir: Path, mode: str
) -> None:
    text = "".join(f"これは{i}番目の文です。" for i in range(120))
    texts = {"long": text, "short": "短い。"}
    documents = [{"id": key, "text": text, "lang": "ja"} for key, text in texts.items()]
    write_shard(tmp_path / "in/a.jsonl", documents)
    prepare = {"long_documents": mode, "chunk": {"max_tokens": 64, "overlap_tokens": 16}}
    run_without_ray(
        make_spec(str(tmp_path / "in"), str(tmp_path / "out"), bert_japanese_dir, prepare=prepare)
    )
    table = dataset.open_dataset(str(tmp_path / "out")).to_table()
    rows = sorted(
        (row for row in table.to_pylist() if row["doc_id"] == "long"), key=lambda row: row["chunk"]
    )
    if mode == "chunk":
        assert len(rows) > 5
        assert [row["chunk"] for row in rows] == list(range(len(rows)))
        covered = set()
        for row in rows:
            assert row["text"] == text[row["char_start"] : row["char_end"]]
            covered |= set(range(row["char_start"], row["char_end"]))
        assert covered == set(range(len(text)))
        model = SentenceTransformer(str(bert_japanese_dir), device="cpu")
        oracle = model.encode([row["text"] for row in rows])
        vectors = np.array([row["embedding"] for row in rows])
        lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(oracle, axis=1)
        assert ((vectors * oracle).sum(1) / lengths).min() >= 0.99999
    else:
        assert [(row["text"], row["char_end"]) for row in rows] == [(text, len(text))]
        assert rows[0]["n_tokens"] > 512
        assert not rows[0]["truncated"]
