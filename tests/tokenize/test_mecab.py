"""The MeCab fast path gives the reference's ids, whatever the text, and never takes the process
down."""

from __future__ import annotations

import json
import random
import shutil
import time
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
from pipeline.tokenize.mecab import MecabTokenizer
from pipeline.tokenize.slow import SlowTokenizer
from pipeline.tokenize.tokens import Tokens
from tests.support.model_dirs import sample_texts

TRICKY = [
    "", " ", "\n", "\u3000", "。", "。。。", "a", "東京都に住んでいます。\n\n次の段落。",
    "ﾊﾝｶｸｶﾀｶﾅとﾊﾟﾋﾟﾌﾟ｡", "ｱﾞか\u3099は\u309a", "e\u0301 e\u0301\u0323 ﬁ ① ㍿ ㌔",
    "👨‍👩‍👧‍👦🇯🇵👍🏽", "a\tb\r\nc\x0bd\x0ce\x1cf\x85g", "x\u2028y\u2029z", "zero\u200bwidth\ufeff",
    "[CLS]始まり[SEP]", "中に [MASK] がある", "[MASK][MASK]", "［CLS］全角", "[cls] [ CLS ] [CLS",
    "[UNK]と[PAD]", "ΑΣ ΑΣΑ ΟΔΟΣ", "İstanbul ẞ ß", "New York Times", "1234567890" * 30,
    "http://example.jp/",
    "a" * 150, "漢" * 300, "ー" * 200, "ア" * 200, "!?" * 100, "मानक हिन्दी", "עברית عربى",
    "\u202eRTL\u202c",
    "\U00020000\U0002f800", "は。" * 400, "（笑）。「はい。」と、言った。", "ノД`)・゜・。",
    "モーニング娘。です。", "ミニモニ。です。" * 40, "\x00\x01\x7f",
]  # fmt: skip
PIECES = st.sampled_from(
    [
        *"あいうえ漢字ニ東京日本語。、「」ー々 \n\u3000\u3099ﾞﾊabcXYZ019!?()・゜Д[]",
        "です。",
        "ます。\n",
        "[CLS]",
        "[MASK]",
        "👍🏽",
        "Σ",
        "é",
        "ミニモニ。",
        "\u2028",
    ]
)
TEXT = st.one_of(
    st.lists(PIECES, max_size=60).map("".join),
    st.text(max_size=40),
    st.builds(lambda unit, n: unit * n, st.text(min_size=1, max_size=3), st.integers(1, 200)),
).filter(lambda text: "\0" not in text)  # MeCab would end there; cleaning takes NUL out beforehand


@pytest.fixture(scope="module")
def reference(bert_japanese_dir: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(bert_japanese_dir))


@pytest.fixture(scope="module")
def whole(reference: Any) -> MecabTokenizer:
    return MecabTokenizer(reference, max_tokens=512, prompt=None)


def rows(tokens: Tokens) -> list[list[int]]:
    return [
        tokens.ids[a:b].tolist()
        for a, b in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)
    ]


def expected(reference: Any, text: str, max_tokens: int) -> tuple[list[int], bool]:
    ids = reference(text, truncation=True, max_length=max_tokens)["input_ids"]
    return ids, len(reference(text, add_special_tokens=False)["input_ids"]) > max_tokens - 2


@pytest.mark.parametrize("max_tokens", [3, 8, 64, 512])
def test_ids_and_truncation_are_the_references_on_odd_texts(
    reference: Any, max_tokens: int
) -> None:
    texts = [text for text in TRICKY if "\0" not in text] + list(sample_texts("ja")[:100])
    tokens = MecabTokenizer(reference, max_tokens=max_tokens, prompt=None).encode(texts)
    assert (
        tokens.ids.dtype == np.int32
        and tokens.offsets.dtype == np.int64
        and tokens.truncated.dtype == np.bool_
    )
    for text, ids, truncated in zip(texts, rows(tokens), tokens.truncated, strict=True):
        assert (ids, bool(truncated)) == expected(reference, text, max_tokens), repr(text)


def test_the_ids_are_what_sentence_transformers_feeds_the_model(bert_japanese_dir: Path) -> None:
    from sentence_transformers import SentenceTransformer

    oracle = SentenceTransformer(str(bert_japanese_dir), device="cpu")
    texts = [text for text in TRICKY if "\0" not in text] + list(sample_texts("ja")[:50])
    for prompt in ("", "文章: "):
        mine = load_tokenizer(resolve(str(bert_japanese_dir)), prompt=prompt)
        for text, ids in zip(texts, rows(mine.encode(texts)), strict=True):
            features = oracle.preprocess([text], prompt=prompt or None)
            assert ids == features["input_ids"][0].tolist(), repr(text)
            assert mine.prompt_tokens == (features["prompt_length"] if prompt else 0)


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(TEXT)
def test_ids_are_the_references_on_any_text(
    reference: Any, whole: MecabTokenizer, text: str
) -> None:
    assert (
        rows(whole.encode([text]))[0]
        == reference(text, truncation=True, max_length=512)["input_ids"]
    )


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(TEXT, max_size=8).map("これは。それ".join), st.integers(3, 60))
def test_reading_only_as_much_as_is_kept_changes_no_id(
    reference: Any, text: str, max_tokens: int
) -> None:
    tokens = MecabTokenizer(reference, max_tokens=max_tokens, prompt=None).encode([text])
    assert (rows(tokens)[0], bool(tokens.truncated[0])) == expected(reference, text, max_tokens)


def test_pieces_cut_at_full_stops_add_up_to_the_whole_text(reference: Any) -> None:
    texts = [text for text in sample_texts("ja") if "。" in text][:150]
    chance = random.Random(0)
    for text in texts:
        small = MecabTokenizer(reference, max_tokens=4_000, prompt=None)
        ids, end, is_exact, follows = b"", 0, False, False
        while end < len(text):
            start, follows = end, is_exact
            end, is_exact = small._cut(text, start, chance.randrange(1, 40))
            ids += small._piece(text[start:end], follows)
        assert (
            np.frombuffer(ids, np.int32).tolist()
            == reference(text, add_special_tokens=False)["input_ids"]
        )


@pytest.mark.parametrize(
    "text",
    [
        "漢" * 400_000,
        "a" * 200_000,
        "1" * 400_000,
        "ア" * 300_000,
        "。" * 300_000,
        " " * 2_000_000,
        "\n" * 500_000,
        "[MASK]" * 50_000,
        "か\u3099" * 200_000,
        "\ufdfa" * 50_000,
    ],
)
def test_text_that_would_crash_mecab_is_tokenized_in_bounded_time(
    whole: MecabTokenizer, text: str
) -> None:
    start_s = time.process_time()
    tokens = whole.encode([text])
    seconds = time.process_time() - start_s
    assert 2 <= len(tokens.ids) <= 512
    # at worst 140,000 characters at 4 µs each; the slack is for a loaded machine
    assert seconds < 8


def test_counting_an_unbroken_run_is_bounded_and_whole(whole: MecabTokenizer) -> None:
    start_s = time.process_time()
    assert whole.count(["漢" * 400_000, "1" * 100_000]).min() > 10_000
    assert time.process_time() - start_s < 12


def test_count_is_the_references_length_without_special_tokens(
    reference: Any, whole: MecabTokenizer
) -> None:
    texts = [text for text in TRICKY if "\0" not in text] + list(sample_texts("ja")[:50])
    counts = whole.count(texts)
    assert counts.dtype == np.int64
    assert counts.tolist() == [
        len(reference(t, add_special_tokens=False)["input_ids"]) for t in texts
    ]


def test_lone_surrogates_and_nul_do_not_end_the_text(whole: MecabTokenizer) -> None:
    assert rows(whole.encode(["東京\ud800都", "東京\0都"])) == rows(
        whole.encode(["東京\ufffd都", "東京 都"])
    )


def test_no_texts_give_empty_arrays(whole: MecabTokenizer) -> None:
    tokens = whole.encode([])
    assert len(tokens.ids) == 0 and tokens.offsets.tolist() == [0] and len(tokens.truncated) == 0
    assert whole.count([]).tolist() == []


def test_a_full_cache_starts_anew_and_changes_no_id(reference: Any, whole: MecabTokenizer) -> None:
    small = MecabTokenizer(reference, max_tokens=512, prompt=None, cache_words=20)
    texts = list(sample_texts("ja")[:20])
    assert rows(small.encode(texts)) == rows(whole.encode(texts))
    assert len(small._ids_of) <= 20


def test_tokenizers_of_one_process_share_one_dictionary(reference: Any) -> None:
    def n_mappings() -> int:
        return Path("/proc/self/maps").read_text().count("sys.dic")

    first = MecabTokenizer(reference, max_tokens=512, prompt=None)
    before = n_mappings()
    others = [MecabTokenizer(reference, max_tokens=n, prompt=None) for n in (8, 16, 32)]
    assert n_mappings() == before > 0
    for other in others:
        assert rows(first.encode(["東京都に住む。"])) == rows(other.encode(["東京都に住む。"]))


def directory_with(source: Path, target: Path, **settings: Any) -> Path:
    shutil.copytree(source, target)
    config = json.loads((target / "tokenizer_config.json").read_text())
    (target / "tokenizer_config.json").write_text(json.dumps({**config, **settings}))
    return target


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"do_lower_case": True}, MecabTokenizer),
        ({"do_lower_case": True, "never_split": ["NASA"]}, MecabTokenizer),
        ({"mecab_kwargs": {"mecab_dic": "unidic_lite", "normalize_text": False}}, MecabTokenizer),
        ({"truncation_side": "left"}, MecabTokenizer),
        ({"subword_tokenizer_type": "character"}, SlowTokenizer),
        ({"word_tokenizer_type": "basic"}, SlowTokenizer),
    ],
)
def test_every_setting_of_the_directory_counts(
    bert_japanese_dir: Path, tmp_path: Path, settings: dict[str, Any], kind: type
) -> None:
    from transformers import AutoTokenizer

    directory = directory_with(bert_japanese_dir, tmp_path / "model", **settings)
    mine = load_tokenizer(resolve(str(directory)), max_tokens=16)
    assert type(mine) is kind
    reference = AutoTokenizer.from_pretrained(str(directory))
    texts = ["NASAとGoogleのABC。", "［CLS］ﾊﾝｶｸ[MASK]Ａ", "ΑΣ ΟΔΟΣ", *sample_texts("ja")[:20]]
    for text, ids in zip(texts, rows(mine.encode(texts)), strict=True):
        assert ids == reference(text, truncation=True, max_length=16)["input_ids"], text


def test_a_user_added_token_is_taken_out_before_mecab(bert_japanese_dir: Path) -> None:
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(str(bert_japanese_dir))
    reference.add_tokens(["京都大", "終わり。始"])
    mine = MecabTokenizer(reference, max_tokens=12, prompt=None)
    text = "東京都大学と京都大学。京都大。" + "これで終わり。始まりです。" * 10
    assert (
        rows(mine.encode([text]))[0] == reference(text, truncation=True, max_length=12)["input_ids"]
    )
    assert mine.count([text])[0] == len(reference(text, add_special_tokens=False)["input_ids"])


def test_versions_name_what_changes_ids(bert_japanese_dir: Path) -> None:
    assert set(versions(resolve(str(bert_japanese_dir)))) == {"fugashi", "unidic-lite", "unicode"}


def test_limits_that_cannot_work_are_refused(bert_japanese_dir: Path, tmp_path: Path) -> None:
    model = resolve(str(bert_japanese_dir))
    with pytest.raises(SpecError, match="special"):
        load_tokenizer(model, max_tokens=2)
    with pytest.raises(SpecError, match="positions"):
        load_tokenizer(model, max_tokens=513)
    lowered = directory_with(bert_japanese_dir, tmp_path / "model")
    (lowered / "sentence_bert_config.json").write_text(
        '{"max_seq_length": 64, "do_lower_case": true}'
    )
    with pytest.raises(ModelError, match="do_lower_case"):
        load_tokenizer(resolve(str(lowered)))
