"""The job specs of jobs/ for models that people run: each resolves on a directory of that model's
layout, and its vectors are those of sentence-transformers with the document prompt.

The layouts (architecture, pooling, Dense, prompts, limits) are those of the published directories
as far as they are known; sizes are small and weights random.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers as t
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from pipeline.embed.loading import load_engine
from pipeline.job.resolve import resolve
from pipeline.job.spec import load_spec
from pipeline.tokenize import load_tokenizer
from tests import ROOT
from tests.support.model_files import save_spread, write_modules

pytestmark = pytest.mark.parity

VOCAB = ["<pad>", "<s>", "</s>", "<unk>", "<mask>", *(f"w{i}" for i in range(200))]
TEXTS = ["", "w1", "w3 w4 w5", " ".join(f"w{i % 190}" for i in range(600)), "w7 <pad> w8"]
SIZES: dict[str, Any] = {
    "vocab_size": len(VOCAB),
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "pad_token_id": 0,
}
POOLED = ("pooling", 48)


@dataclass
class Layout:
    build: Callable[[], Any]
    modules: list[tuple[Any, ...]]
    max_tokens: int
    prompts: dict[str, str] = field(default_factory=dict)
    frame: str = "<s> $A </s>"


def xlm_roberta(positions: int) -> Any:
    config = t.XLMRobertaConfig(
        **SIZES, max_position_embeddings=positions + 2, type_vocab_size=1, layer_norm_eps=1e-5
    )
    config.pad_token_id = 1
    return t.XLMRobertaModel(config, add_pooling_layer=False)


LAYOUTS = {
    "ruri-v3-310m": Layout(
        lambda: t.ModernBertModel(
            t.ModernBertConfig(
                **SIZES,
                max_position_embeddings=8192,
                local_attention=128,
                global_attn_every_n_layers=3,
            )
        ),
        [(*POOLED, "mean")],
        8192,
    ),
    "sarashina-embedding-v2-1b": Layout(
        lambda: t.LlamaModel(
            t.LlamaConfig(**SIZES, num_key_value_heads=2, max_position_embeddings=8192)
        ),
        [(*POOLED, "lasttoken")],
        8192,
    ),
    "qwen3-embedding-0.6b": Layout(
        lambda: t.Qwen3Model(
            t.Qwen3Config(
                **SIZES, num_key_value_heads=2, head_dim=24, max_position_embeddings=32768
            )
        ),
        [(*POOLED, "lasttoken"), ("normalize",)],
        32768,
        {"query": "w1 w2 ", "document": ""},
        "$A </s>",
    ),
    "bge-m3": Layout(lambda: xlm_roberta(8192), [(*POOLED, "cls"), ("normalize",)], 8192),
    "multilingual-e5-large": Layout(
        lambda: xlm_roberta(512), [(*POOLED, "mean"), ("normalize",)], 512
    ),
    "embeddinggemma-300m": Layout(
        lambda: t.Gemma3TextModel(
            t.Gemma3TextConfig(
                **SIZES,
                num_key_value_heads=1,
                head_dim=24,
                sliding_window=512,
                use_bidirectional_attention=True,
                max_position_embeddings=2048,
            )
        ),
        [(*POOLED, "mean"), ("dense", 48, 96), ("dense", 96, 48), ("normalize",)],
        2048,
        {"query": "w1 w2 ", "document": "w3 w4 ", "STS": "w5 "},
    ),
}
PROMPTS = {
    "ruri-v3-310m": "検索文書: ",
    "sarashina-embedding-v2-1b": "text: ",
    "qwen3-embedding-0.6b": None,
    "bge-m3": None,
    "multilingual-e5-large": "passage: ",
    "embeddinggemma-300m": "w3 w4 ",
}


def make(layout: Layout, path: Path) -> Path:
    words = models.WordLevel({token: i for i, token in enumerate(VOCAB)}, unk_token="<unk>")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=layout.frame, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    t.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(path)
    save_spread(layout.build(), path, 1)
    write_modules(path, layout.modules, layout.max_tokens, layout.prompts)
    return path


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_spec_of_jobs_resolves_on_its_layout_with_its_prompt_and_limit(
    name: str, tmp_path: Path
) -> None:
    layout = LAYOUTS[name]
    path = make(layout, tmp_path / name)
    spec = load_spec(ROOT / "jobs" / f"{name}.yaml", [f"model.path={path}", "model.dtype=float32"])
    job = resolve(spec, "cpu")
    assert job.prompt == PROMPTS[name]
    assert job.max_tokens == min(layout.max_tokens, 8192)
    model = job.model()
    tokenizer = load_tokenizer(model, max_tokens=job.max_tokens, prompt=job.prompt)
    tokens = tokenizer.encode(TEXTS)
    engine = load_engine(model, job.engine, tokenizer.prompt_tokens)
    assert engine.name.startswith("packed_")
    st = SentenceTransformer(str(path), device="cpu")
    theirs = st.encode(TEXTS, batch_size=1, prompt=PROMPTS[name] or "")
    ours = engine.embed(tokens.ids, tokens.offsets)
    assert ours.shape == theirs.shape
    cosines = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert cosines.min() >= 0.99999


def test_every_model_of_jobs_is_tested() -> None:
    seeds = {"sup-simcse-ja-large", "sarashina-embedding-v1-1b", "quickstart"}
    assert {path.stem for path in (ROOT / "jobs").glob("*.yaml")} - seeds == LAYOUTS.keys()
