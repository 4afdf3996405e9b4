"""The architectures of published embedding models in the padded engine, against encode.

Random weights, a word-level vocabulary, texts of 3 to 502 tokens. Oracle: encode, one text at a
time. float32: only the order of sums differs. bfloat16: as near to float32 as sentence-transformers
itself is, a fifth of the distance for other batches.
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

from pipeline.job.model.directory import read_model
from pipeline.tokenize import load_tokenizer
from tests.support.engines import engine_of
from tests.support.model_files import save_spread, write_modules, write_vocab

pytestmark = pytest.mark.parity

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(500))]
SIZES: dict[str, Any] = {
    "vocab_size": len(VOCAB),
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}
DECODER = {**SIZES, "num_key_value_heads": 2, "pad_token_id": 0}
WINDOW = {**DECODER, "sliding_window": 32}
ARCHITECTURES: dict[str, tuple[str, Callable[[], Any]]] = {
    "mpnet": (
        "mean",
        lambda: t.MPNetModel(t.MPNetConfig(**SIZES, pad_token_id=0), add_pooling_layer=False),
    ),
    "distilbert": (
        "cls",
        lambda: t.DistilBertModel(
            t.DistilBertConfig(vocab_size=len(VOCAB), dim=64, n_layers=2, n_heads=4, hidden_dim=128)
        ),
    ),
    "modernbert": (
        "mean",
        lambda: t.ModernBertModel(
            t.ModernBertConfig(
                **SIZES, pad_token_id=0, global_attn_every_n_layers=2, local_attention=16
            )
        ),
    ),
    "nomic_bert": ("mean", lambda: t.NomicBertModel(t.NomicBertConfig(**SIZES))),
    "deberta-v2": (
        "mean",
        lambda: t.DebertaV2Model(
            t.DebertaV2Config(
                **SIZES, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=32
            )
        ),
    ),
    "t5": (
        "mean",
        lambda: t.T5EncoderModel(
            t.T5Config(
                vocab_size=len(VOCAB), d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4
            )
        ),
    ),
    # adds the embedding of token 0 for token type 0, which a BERT tokenizer makes encode feed
    "gpt2": (
        "weightedmean",
        lambda: t.GPT2Model(
            t.GPT2Config(vocab_size=len(VOCAB), n_embd=64, n_layer=2, n_head=4, n_positions=512)
        ),
    ),
    "qwen3": ("last_token", lambda: t.Qwen3Model(t.Qwen3Config(**DECODER, head_dim=24))),
    "mistral": ("last_token", lambda: t.MistralModel(t.MistralConfig(**WINDOW))),
    "gemma3_text": (
        "mean",
        lambda: t.Gemma3TextModel(
            t.Gemma3TextConfig(**WINDOW, head_dim=16, use_bidirectional_attention=True)
        ),
    ),
    "bidirectional llama": (
        "mean",
        lambda: t.LlamaModel(t.LlamaConfig(**DECODER, is_causal=False)),
    ),
}


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mean 1 - cosine of rows."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(
        1 - ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).mean()
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_padded_engine_is_as_near_to_float32_as_encode(
    architecture: str, tmp_path: Path
) -> None:
    pooling, make = ARCHITECTURES[architecture]
    write_vocab(tmp_path, VOCAB)
    t.BertTokenizerFast(
        vocab={token: i for i, token in enumerate(VOCAB)}, model_max_length=512
    ).save_pretrained(tmp_path)
    save_spread(make(), tmp_path, 0)
    write_modules(tmp_path, [("pooling", 64, pooling)], 512, None)
    chance = np.random.default_rng(0)
    lengths = (1, 3, 17, 33, 64, 100, 200, 300, 400, 500, 500, 5)
    texts = [" ".join(f"w{word}" for word in chance.integers(0, 500, length)) for length in lengths]
    model = read_model(tmp_path, "model")
    tokens = load_tokenizer(model).encode(texts)
    theirs, ours = {}, {}
    for dtype in ("float32", "bfloat16"):
        st = SentenceTransformer(
            str(tmp_path), device="cpu", model_kwargs={"dtype": getattr(torch, dtype)}
        )
        theirs[dtype] = st.encode(texts, batch_size=1)
        engine = engine_of(model, dtype=dtype, engine="padded", max_batch_tokens=1200)
        assert engine.name == "padded"
        ours[dtype] = engine.embed(tokens.ids, tokens.offsets)
    assert distance(ours["float32"], theirs["float32"]) < 1e-5
    assert distance(ours["bfloat16"], theirs["float32"]) <= 1.2 * distance(
        theirs["bfloat16"], theirs["float32"]
    )
