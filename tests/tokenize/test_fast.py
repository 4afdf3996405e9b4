"""Models with a Rust tokenizer: the ids are those sentence-transformers feeds the model."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import ModelError, SpecError
from pipeline.job.model.store import resolve
from pipeline.job.model.tokenizer_versions import versions
from pipeline.tokenize import load_tokenizer
from pipeline.tokenize.tokens import Tokens
from tests.support.model_dirs import llama_last_token, sample_texts

TEXTS = [
    "",
    " ",
    "\n\n",
    "Hello, World!",
    "UPPER lower ÉÀ straße",
    "a\tb\r\nc\x0bd\x1ce",
    "x" * 500,
    "東京都に住んでいます。",
    "ﾊﾝｶｸ ① ﬁ",
    "[CLS] literal [SEP]",
    "<s>literal</s> <unk>",
    "👨‍👩‍👧‍👦 👍🏽",
    "\u202eRTL\u202c עברית",
    "e\u0301\u0323",
    "  leading and trailing  ",
    "zero\u200bwidth\ufeff",
    "1234567890" * 40,
    "a b " * 600,
    "\x00NUL",
]


@pytest.fixture(scope="module")
def llama_eos_dir(model_root: Path) -> Path:
    return llama_last_token(model_root / "llama-bos-eos", add_eos=True, layers=1, max_tokens=256)


@pytest.fixture(
    scope="module", params=["bert_mean_dir", "llama_dir", "llama_eos_dir", "minilm_dir"]
)
def directory(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.fixture(scope="module")
def oracle(directory: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(directory), device="cpu")


def rows(tokens: Tokens) -> list[list[int]]:
    return [
        tokens.ids[a:b].tolist()
        for a, b in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)
    ]


def fed(oracle: Any, text: str, prompt: str | None = None) -> list[int]:
    """What the model of sentence-transformers gets for one text; alone in its batch, so without
    padding."""
    ids: list[int] = oracle.preprocess([text], prompt=prompt)["input_ids"][0].tolist()
    return ids


@pytest.mark.parametrize("prompt", [None, "query: "])
def test_the_ids_are_what_sentence_transformers_feeds_the_model(
    directory: Path, oracle: Any, prompt: str | None
) -> None:
    mine = load_tokenizer(resolve(str(directory)), prompt=prompt)
    assert mine.max_tokens == oracle.max_seq_length
    texts = TEXTS + list(sample_texts("en")[:40] + sample_texts("ja")[:40])
    tokens = mine.encode(texts)
    assert tokens.ids.dtype == np.int32 and tokens.offsets.dtype == np.int64
    for text, ids, truncated in zip(texts, rows(tokens), tokens.truncated, strict=True):
        assert ids == fed(oracle, text, prompt), repr(text)
        content = oracle.tokenizer((prompt or "") + text, add_special_tokens=False)["input_ids"]
        assert truncated == (len(content) + mine.special_tokens > mine.max_tokens)
    features = oracle.preprocess(["text"], prompt=prompt)
    assert mine.prompt_tokens == (features["prompt_length"] if prompt else 0)


def test_a_shorter_limit_is_that_of_max_seq_length(directory: Path, oracle: Any) -> None:
    mine, kept = load_tokenizer(resolve(str(directory)), max_tokens=9), oracle.max_seq_length
    texts = TEXTS + list(sample_texts("en")[:20] + sample_texts("ja")[:20])
    try:
        oracle.max_seq_length = 9
        assert rows(mine.encode(texts)) == [fed(oracle, text) for text in texts]
    finally:
        oracle.max_seq_length = kept


@pytest.mark.parametrize("max_tokens", [16, 100])
def test_of_a_long_text_a_window_gives_the_same_ids_as_the_whole(
    directory: Path, oracle: Any, max_tokens: int
) -> None:
    mine = load_tokenizer(resolve(str(directory)), max_tokens=max_tokens)
    english, japanese = " ".join(sample_texts("en")[:60]), "\n".join(sample_texts("ja")[:60])
    texts = [
        english,
        japanese,
        japanese.replace("\n", ""),
        " " * 20_000 + english,
        "x" * 9_000 + english,
        "[SEP] " * 9_000,
    ]
    assert min(map(len, texts)) > 8_192
    for text, ids in zip(texts, rows(mine.encode(texts)), strict=True):
        whole = oracle.tokenizer(text, truncation=True, max_length=max_tokens)["input_ids"]
        assert ids == whole, text[:40]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.text(st.sampled_from("abc XYZé漢あア。、１\n\t[]<>s/👍\u0301\u3099"), max_size=80),
        min_size=1,
        max_size=5,
    )
)
def test_ids_are_the_references_on_any_text(directory: Path, oracle: Any, texts: list[str]) -> None:
    assert rows(load_once(directory).encode(texts)) == [fed(oracle, text) for text in texts]


_LOADED: dict[Path, Any] = {}


def load_once(directory: Path) -> Any:
    if directory not in _LOADED:
        _LOADED[directory] = load_tokenizer(resolve(str(directory)))
    return _LOADED[directory]


def test_count_leaves_out_special_tokens_and_prompt(directory: Path, oracle: Any) -> None:
    mine = load_tokenizer(resolve(str(directory)), prompt="query: ")
    expected = [
        len(oracle.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in TEXTS
    ]
    assert mine.count(TEXTS).tolist() == expected


def test_count_of_a_huge_text_is_right_to_a_token_a_piece(directory: Path, oracle: Any) -> None:
    text = "\n".join(sample_texts("en")) * 4
    text = text[:200_000]
    whole = len(oracle.tokenizer(text, add_special_tokens=False)["input_ids"])
    assert abs(int(load_once(directory).count([text])[0]) - whole) <= 2 * (len(text) // 60_000 + 1)


def test_a_lone_surrogate_counts_as_the_replacement_character(directory: Path) -> None:
    mine = load_once(directory)
    assert rows(mine.encode(["ab\ud800c", "de"])) == rows(mine.encode(["ab\ufffdc", "de"]))
    assert mine.count(["ab\ud800c"]).tolist() == mine.count(["ab\ufffdc"]).tolist()


def changed(source: Path, target: Path, file: str, **settings: Any) -> Path:
    shutil.copytree(source, target)
    path = target / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return target


def test_do_lower_case_of_sentence_transformers_is_honoured(
    llama_dir: Path, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    lowered = changed(
        llama_dir, tmp_path / "model", "sentence_bert_config.json", do_lower_case=True
    )
    mine, oracle = (
        load_tokenizer(resolve(str(lowered))),
        SentenceTransformer(str(lowered), device="cpu"),
    )
    texts = [*TEXTS, "ABC Déjà VU", "İ ΑΣ"]
    assert rows(mine.encode(texts)) == [fed(oracle, text) for text in texts]
    assert rows(mine.encode(["ABC"])) != rows(load_once(llama_dir).encode(["ABC"]))


def test_truncation_on_the_left_keeps_the_end(bert_mean_dir: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    directory = changed(
        bert_mean_dir, tmp_path / "model", "tokenizer_config.json", truncation_side="left"
    )
    mine = load_tokenizer(resolve(str(directory)))
    oracle = SentenceTransformer(str(directory), device="cpu")
    texts = TEXTS + list(sample_texts("en")[:10])
    assert rows(mine.encode(texts)) == [fed(oracle, text) for text in texts]


def test_limits_and_directories_that_cannot_work_are_refused(
    bert_mean_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match="positions"):
        load_tokenizer(resolve(str(bert_mean_dir)), max_tokens=10_000)
    with pytest.raises(SpecError, match="special"):
        load_tokenizer(resolve(str(bert_mean_dir)), max_tokens=2)
    bare = shutil.copytree(bert_mean_dir, tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        (bare / name).unlink(missing_ok=True)
    with pytest.raises(ModelError, match="tokenizer"):
        load_tokenizer(resolve(str(bare)))


def test_versions_and_threads(bert_mean_dir: Path) -> None:
    load_once(bert_mean_dir)
    assert {"tokenizers"} <= set(versions(resolve(str(bert_mean_dir))))
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
