"""A tokenizer read from its files alone gives transformers' ids, or is left to transformers; and
workers start light."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.job.model.store import resolve
from pipeline.tokenize import load_tokenizer
from pipeline.tokenize.plain import read_plain
from tests.support.model_dirs import sample_texts
from tests.support.processes import printed_by

TEXTS = [
    "",
    "Hello, World! UPPER Déjà vu straße",
    "東京都に住んでいます。ﾊﾝｶｸ ① ﬁ",
    "x[CLS]y [SEP] [MASK]",
    "a<s>b </s>",
    "x <mask> y<mask>z <pad><unk>",
    "  two  spaces \n\ttab 😀\u200d🦊\u0000 \x85",
    "［CLS］全角 [cls]",
    "NASAとGoogle",
    "x" * 150,
    "extra [NEW] token",
    "\u3000a\u00a0b",
    *sample_texts("ja")[:5],
]
PLAIN = {
    "special": True,
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
}


def changed(source: Path, target: Path, file: str, settings: dict[str, Any]) -> Path:
    shutil.copytree(source, target)
    path = target / file
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**before, **settings}))
    return target


# Settings on top of a directory's own, and whether the files alone still say everything.
CASES: list[tuple[str, str, dict[str, Any], bool]] = [
    ("bert_mean_dir", "tokenizer_config.json", {}, True),
    ("bert_mean_dir", "tokenizer_config.json", {"tokenizer_class": "BertTokenizerFast"}, True),
    (
        "bert_mean_dir",
        "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast"},
        False,
    ),
    (
        "bert_mean_dir",
        "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "do_lower_case": None,
            "tokenize_chinese_chars": None,
        },
        True,
    ),
    ("bert_mean_dir", "tokenizer_config.json", {"do_lower_case": False}, False),
    ("bert_mean_dir", "tokenizer_config.json", {"do_lower_case": None}, False),
    ("bert_mean_dir", "tokenizer_config.json", {"sep_token": None}, False),
    ("bert_mean_dir", "tokenizer_config.json", {"strip_accents": False}, False),
    ("bert_mean_dir", "tokenizer_config.json", {"truncation_side": "left"}, True),
    ("bert_mean_dir", "tokenizer_config.json", {"split_special_tokens": True}, False),
    ("bert_mean_dir", "tokenizer_config.json", {"cls_token": "[MASK]"}, False),
    ("bert_mean_dir", "tokenizer_config.json", {"extra_special_tokens": ["[NEW]"]}, False),
    (
        "bert_mean_dir",
        "tokenizer_config.json",
        {"added_tokens_decoder": {"9": {"content": "[NEW]", **PLAIN}}},
        False,
    ),
    (
        "bert_mean_dir",
        "special_tokens_map.json",
        {"mask_token": {"content": "[MASK]", "lstrip": True}},
        False,
    ),
    ("bert_mean_dir", "special_tokens_map.json", {"mask_token": "[MASK]"}, True),
    ("bert_mean_dir", "added_tokens.json", {"[NEW]": 4}, False),
    ("llama_dir", "tokenizer_config.json", {}, True),
    ("llama_dir", "tokenizer_config.json", {"add_bos_token": False}, False),
    ("llama_dir", "tokenizer_config.json", {"add_eos_token": True}, False),
    ("llama_dir", "tokenizer_config.json", {"add_bos_token": None, "add_eos_token": None}, True),
    ("llama_dir", "tokenizer_config.json", {"tokenizer_class": "TokenizersBackend"}, True),
    ("llama_dir", "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"}, False),
    ("llama_dir", "tokenizer_config.json", {"eos_token": "[NEW]"}, False),
    ("llama_dir", "tokenizer_config.json", {"legacy": True}, False),
    ("roberta_dir", "tokenizer_config.json", {}, True),
    ("roberta_dir", "tokenizer_config.json", {"tokenizer_class": "TokenizersBackend"}, True),
    ("roberta_dir", "tokenizer_config.json", {"tokenizer_class": "RobertaTokenizer"}, False),
    ("roberta_dir", "tokenizer_config.json", {"tokenizer_class": "RobertaTokenizerFast"}, False),
    ("roberta_dir", "tokenizer_config.json", {"truncation_side": "left"}, True),
    ("roberta_dir", "tokenizer_config.json", {"add_bos_token": True}, True),
    ("roberta_dir", "tokenizer_config.json", {"add_eos_token": False}, False),
    ("roberta_dir", "tokenizer_config.json", {"add_prefix_space": True}, False),
    ("roberta_dir", "tokenizer_config.json", {"mask_token": "[NEW]"}, False),
    (
        "roberta_dir",
        "special_tokens_map.json",
        {"mask_token": {"content": "<mask>", "lstrip": True}},
        False,
    ),
    ("roberta_dir", "special_tokens_map.json", {"sep_token": "<mask>"}, True),
    ("roberta_dir", "added_tokens.json", {"[NEW]": 4}, False),
    ("xlm_roberta_dir", "tokenizer_config.json", {}, True),
    ("xlm_roberta_dir", "tokenizer_config.json", {"tokenizer_class": "TokenizersBackend"}, True),
    ("xlm_roberta_dir", "tokenizer_config.json", {"tokenizer_class": "XLMRobertaTokenizer"}, False),
    (
        "xlm_roberta_dir",
        "tokenizer_config.json",
        {"tokenizer_class": "XLMRobertaTokenizerFast"},
        False,
    ),
    (
        "xlm_roberta_dir",
        "tokenizer_config.json",
        {"cls_token": "<s>", "sep_token": "</s>", "truncation_side": "left"},
        True,
    ),
    ("xlm_roberta_dir", "tokenizer_config.json", {"add_eos_token": False}, False),
    ("xlm_roberta_dir", "tokenizer_config.json", {"mask_token": "<mask>"}, False),
    ("xlm_roberta_dir", "tokenizer_config.json", {"sp_model_kwargs": {}}, False),
    ("bert_mean_dir", "config.json", {"model_type": "roberta"}, True),
    ("bert_japanese_dir", "config.json", {"model_type": "roberta"}, True),
    ("roberta_dir", "config.json", {"model_type": "xlm-roberta"}, True),
    ("roberta_dir", "config.json", {"model_type": "camembert"}, False),
    ("minilm_dir", "tokenizer_config.json", {}, True),
    ("bert_japanese_dir", "tokenizer_config.json", {}, True),
    (
        "bert_japanese_dir",
        "tokenizer_config.json",
        {"do_lower_case": True, "never_split": ["NASA"]},
        True,
    ),
    (
        "bert_japanese_dir",
        "tokenizer_config.json",
        {"truncation_side": "left", "jumanpp_kwargs": None},
        True,
    ),
    (
        "bert_japanese_dir",
        "tokenizer_config.json",
        {"added_tokens_decoder": {"4": {"content": "[MASK]", **PLAIN}}},
        True,
    ),
    (
        "bert_japanese_dir",
        "tokenizer_config.json",
        {"added_tokens_decoder": {"5": {"content": "[MASK]", **PLAIN}}},
        False,
    ),
    ("bert_japanese_dir", "tokenizer_config.json", {"do_word_tokenize": None}, False),
    ("bert_japanese_dir", "special_tokens_map.json", {"sep_token": "[MASK]"}, True),
    ("bert_japanese_dir", "tokenizer_config.json", {"mask_token": "[NEW]"}, False),
]


@pytest.mark.parametrize(("source", "file", "settings", "is_plain"), CASES, ids=str)
def test_ids_are_those_of_transformers_or_it_loads_the_directory(
    source: str,
    file: str,
    settings: dict[str, Any],
    is_plain: bool,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    from transformers import AutoTokenizer

    directory = changed(request.getfixturevalue(source), tmp_path / "model", file, settings)
    model = resolve(str(directory))
    assert (read_plain(model) is not None) == is_plain
    if not is_plain:
        return
    reference = AutoTokenizer.from_pretrained(str(directory))
    tokens = load_tokenizer(model, max_tokens=24).encode(TEXTS)
    for number, text in enumerate(TEXTS):
        ids = tokens.ids[tokens.offsets[number] : tokens.offsets[number + 1]].tolist()
        assert ids == reference(text, truncation=True, max_length=24)["input_ids"], text


LOAD = """
import sys
from pipeline.job.model.store import resolve
model = resolve(sys.argv[1])
"""
TOKENIZE = """
from pipeline.tokenize import load_tokenizer
load_tokenizer(model, prompt='a: ').encode(['東京 text'])
"""
EMBED = """
from pipeline.embed import load_engine
from pipeline.job.engine_options import EngineOptions
import numpy as np
engine = load_engine(model, EngineOptions.of(model))
engine.embed(np.array([2, 5, 3], np.int32), np.array([0, 3]))
"""


@pytest.mark.parametrize(
    "directory",
    ["bert_japanese_dir", "llama_dir", "roberta_dir", "xlm_roberta_dir", "minilm_dir"],
)
def test_a_worker_imports_no_library_it_does_not_need(
    directory: str, request: pytest.FixtureRequest
) -> None:
    """Each would cost every worker process seconds: torch and transformers a tokenizer,
    transformers an embedder."""
    path = str(request.getfixturevalue(directory))
    for work, heavy in (
        (TOKENIZE, {"torch", "transformers"}),
        (EMBED, {"transformers", "sentence_transformers"}),
    ):
        code = f"{LOAD}{work}print({heavy} & set(sys.modules))"
        assert printed_by(code, str(path)) == "set()\n"
