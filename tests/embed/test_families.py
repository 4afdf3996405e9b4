"""Every family of the packed engine against encode, one text at a time: short, as long as a window,
longer and truncated texts, literal special tokens, single tokens, and both sides of padding.

Random weights; sizes, windows and texts by seed. float32: only the order of sums differs. bfloat16:
as near to float32 as the parity of the project allows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as t
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from pipeline.embed.families import FAMILIES
from pipeline.job.model.directory import ModelDir, read_model
from pipeline.tokenize import load_tokenizer
from tests.support.engines import engine_of
from tests.support.model_files import save_spread, write_modules

pytestmark = pytest.mark.parity

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(300))]
MAX_TOKENS = 120
SIZES: dict[str, Any] = {
    "vocab_size": len(VOCAB),
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "pad_token_id": 0,
}
LONG = {**SIZES, "max_position_embeddings": 512}
DECODER = {**LONG, "num_key_value_heads": 2}
WINDOW = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}
FULL = "full_attention"
LOCAL = "sliding_attention"
NESTED = {
    FULL: {"rope_type": "default", "rope_theta": 5e4},
    LOCAL: {"rope_type": "default", "rope_theta": 300.0},
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 5e4,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "llama_4_scaling_beta": 0.1,
}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}

Case = tuple[str, Callable[[], Any]]
CASES: dict[str, Case] = {
    "bert": ("cls", lambda: t.BertModel(t.BertConfig(**LONG), add_pooling_layer=False)),
    "roberta": (
        "mean",
        lambda: t.RobertaModel(t.RobertaConfig(**LONG), add_pooling_layer=False),
    ),
    "xlm-roberta": (
        "cls",
        lambda: t.XLMRobertaModel(
            t.XLMRobertaConfig(**LONG, type_vocab_size=1, hidden_act="gelu_new"),
            add_pooling_layer=False,
        ),
    ),
    "camembert": (
        "mean",
        lambda: t.CamembertModel(t.CamembertConfig(**LONG), add_pooling_layer=False),
    ),
    "luke": (
        "mean",
        lambda: t.LukeModel(
            t.LukeConfig(**LONG, entity_vocab_size=10, entity_emb_size=8), add_pooling_layer=False
        ),
    ),
    "distilbert": (
        "cls",
        lambda: t.DistilBertModel(
            t.DistilBertConfig(
                vocab_size=len(VOCAB),
                dim=64,
                n_layers=3,
                n_heads=4,
                hidden_dim=96,
                activation="relu",
            )
        ),
    ),
    "modernbert": (
        "mean",
        lambda: t.ModernBertModel(
            t.ModernBertConfig(**LONG, local_attention=20, rope_parameters=NESTED)
        ),
    ),
    "modernbert, biases and a window at the end": (
        "cls",
        lambda: t.ModernBertModel(
            t.ModernBertConfig(
                **LONG,
                local_attention=14,
                layer_types=[LOCAL, FULL, LOCAL],
                attention_bias=True,
                mlp_bias=True,
                norm_bias=True,
                hidden_activation="silu",
            )
        ),
    ),
    "nomic_bert": ("mean", lambda: t.NomicBertModel(t.NomicBertConfig(**LONG))),
    "nomic_bert, narrow heads": (
        "mean",
        lambda: t.NomicBertModel(t.NomicBertConfig(**LONG, head_dim=12)),
    ),
    "llama": ("lasttoken", lambda: t.LlamaModel(t.LlamaConfig(**DECODER, head_dim=24))),
    "llama, both sides": (
        "mean",
        lambda: t.LlamaModel(t.LlamaConfig(**DECODER, is_causal=False, attention_bias=True)),
    ),
    "llama, stretched": (
        "lasttoken",
        lambda: t.LlamaModel(t.LlamaConfig(**DECODER, rope_parameters=LINEAR, mlp_bias=True)),
    ),
    "mistral": (
        "lasttoken",
        lambda: t.MistralModel(t.MistralConfig(**DECODER, sliding_window=16)),
    ),
    "mistral, both sides": (
        "mean",
        lambda: t.MistralModel(t.MistralConfig(**DECODER, sliding_window=9, is_causal=False)),
    ),
    "mistral, no window": (
        "lasttoken",
        lambda: t.MistralModel(t.MistralConfig(**DECODER, sliding_window=None, head_dim=32)),
    ),
    "ministral3": (
        "mean",
        lambda: t.Ministral3Model(
            t.Ministral3Config(**DECODER, head_dim=16, is_causal=False, rope_parameters=YARN)
        ),
    ),
    "ministral3, causal": (
        "lasttoken",
        lambda: t.Ministral3Model(t.Ministral3Config(**DECODER, head_dim=16, rope_parameters=YARN)),
    ),
    "qwen2": ("lasttoken", lambda: t.Qwen2Model(t.Qwen2Config(**DECODER))),
    "qwen2, windows behind": (
        "mean",
        lambda: t.Qwen2Model(t.Qwen2Config(**DECODER, **WINDOW)),
    ),
    "qwen3": ("lasttoken", lambda: t.Qwen3Model(t.Qwen3Config(**DECODER, head_dim=24))),
    "qwen3, both sides, windows behind": (
        "mean",
        lambda: t.Qwen3Model(
            t.Qwen3Config(**DECODER, **WINDOW, head_dim=24, attention_bias=True, is_causal=False)
        ),
    ),
    "eurobert": ("mean", lambda: t.EuroBertModel(t.EuroBertConfig(**DECODER, mlp_bias=True))),
    "gemma3_text": (
        "mean",
        lambda: t.Gemma3TextModel(
            t.Gemma3TextConfig(
                **DECODER,
                head_dim=20,
                query_pre_attn_scalar=30,
                sliding_window=16,
                sliding_window_pattern=2,
                use_bidirectional_attention=True,
            )
        ),
    ),
    "gemma3_text, causal": (
        "lasttoken",
        lambda: t.Gemma3TextModel(
            t.Gemma3TextConfig(
                **DECODER,
                head_dim=16,
                sliding_window=11,
                layer_types=[LOCAL, LOCAL, FULL],
                rope_parameters=NESTED,
            )
        ),
    ),
}


def test_every_family_has_a_case() -> None:
    assert {name.split(",")[0] for name in CASES} == FAMILIES.keys()


def make(name: str, path: Path, side: str = "right") -> ModelDir:
    pooling, build = CASES[name]
    words = models.WordLevel({token: i for i, token in enumerate(VOCAB)}, unk_token="[UNK]")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    t.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=MAX_TOKENS,
        padding_side=side,
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(path)
    save_spread(build(), path, 3)
    write_modules(path, [("pooling", 64, pooling)], MAX_TOKENS, None)
    return read_model(path, name)


def texts() -> list[str]:
    chance = np.random.default_rng(5)
    lengths = (0, 1, 2, 6, 7, 8, 9, 13, 14, 15, 29, 31, 60, 100, 117, 118, 119, 200, 400, 14)
    rows = [" ".join(f"w{word}" for word in chance.integers(0, 300, n)) for n in lengths]
    return [*rows, "w1 [PAD] w2 [PAD]", "[PAD]", "[MASK] [SEP] w5", rows[4]]


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def ids_of(name: str, model: ModelDir) -> list[list[int]]:
    """Ids of every text. transformers puts a tokenizer of its own in the place of the one of a
    qwen2 directory, so its ids are those of the words."""
    if not name.startswith("qwen2"):
        tokens = load_tokenizer(model).encode(texts())
        return [row.tolist() for row in np.split(tokens.ids, tokens.offsets[1:-1])]
    number = {token: i for i, token in enumerate(VOCAB)}
    rows = [[number[word] for word in text.split()][: MAX_TOKENS - 2] for text in texts()]
    return [[2, *row, 3] for row in rows]


def encoded(path: Path, name: str, rows: list[list[int]], dtype: torch.dtype) -> np.ndarray:
    """encode, one text at a time, in the dtype; float32."""
    st = SentenceTransformer(str(path), device="cpu", model_kwargs={"dtype": dtype})
    if not name.startswith("qwen2"):
        return st.encode(texts(), batch_size=1).astype(np.float32)
    with torch.inference_mode():
        batches = [{"input_ids": torch.tensor([row])} for row in rows]
        for batch in batches:
            batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        return torch.cat([st.forward(b)["sentence_embedding"] for b in batches]).float().numpy()


@pytest.mark.parametrize("name", CASES)
def test_vectors_are_those_of_encode_for_every_text(name: str, tmp_path: Path) -> None:
    model = make(name, tmp_path, "left" if "lasttoken" in CASES[name] else "right")
    rows = ids_of(name, model)
    ids = np.concatenate(rows).astype(np.int32)
    offsets = np.cumsum([0, *map(len, rows)])
    exact = encoded(tmp_path, name, rows, torch.float32)
    for budget in (64, 4096):
        engine = engine_of(model, engine="packed", max_batch_tokens=budget)
        vectors = engine.embed(ids, offsets)
        assert cosines(vectors, exact).min() >= 0.99999, engine.name
        # lengths too: a cosine does not see a factor
        np.testing.assert_allclose(vectors, exact, rtol=0, atol=2e-4 * np.abs(exact).max())
    half = engine_of(model, engine="packed", dtype="bfloat16").embed(ids, offsets)
    lost = 1 - cosines(half, exact)
    # random weights: where the library itself loses more than a trained model does, a fifth more
    theirs = 1 - cosines(encoded(tmp_path, name, rows, torch.bfloat16), exact)
    assert lost.mean() <= max(1e-4, 1.2 * theirs.mean())
    assert lost.max() <= max(1e-3, 1.2 * theirs.max())
