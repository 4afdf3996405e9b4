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
