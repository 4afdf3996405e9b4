"""A vector is a function of its text alone, also where an architecture sees padding through its
mask. Oracle: encode, one text at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers as t
from sentence_transformers import SentenceTransformer

from pipeline.embed.padded import EXACT_WHEN_PADDED
from pipeline.job.model.directory import read_model
from pipeline.tokenize import load_tokenizer
from tests.embed.test_architectures import ARCHITECTURES, SIZES, VOCAB
from tests.support.engines import engine_of
from tests.support.model_files import save_spread, write_modules, write_vocab

pytestmark = pytest.mark.parity

SEEN_THROUGH_THE_MASK: dict[str, Callable[[], Any]] = {
    "convbert": lambda: t.ConvBertModel(t.ConvBertConfig(**SIZES, embedding_size=64)),
    "fnet": lambda: t.FNetModel(t.FNetConfig(**SIZES), add_pooling_layer=False),
    # causal where nothing is masked, which is what such a config.json asks transformers for
    "bert that says it is causal": lambda: t.BertModel(t.BertConfig(**SIZES, is_causal=True)),
    # a long text would give its neighbours other frequencies
    "llama of two frequencies": lambda: t.LlamaModel(
        t.LlamaConfig(
            **SIZES,
            max_position_embeddings=512,
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "factor": 4.0,
                "short_factor": [1.0] * 8,
                "long_factor": [4.0] * 8,
                "original_max_position_embeddings": 64,
            },
        )
    ),
    "funnel": lambda: t.FunnelModel(
        t.FunnelConfig(
            vocab_size=len(VOCAB), block_sizes=[1, 1], d_model=64, n_head=4, d_head=16, d_inner=128
        )
    ),
}


def directory_of(path: Path, model: Any) -> Path:
    write_vocab(path, VOCAB)
    t.BertTokenizerFast(
        vocab={token: i for i, token in enumerate(VOCAB)}, model_max_length=500
    ).save_pretrained(path)
    save_spread(model, path, 0)
    write_modules(path, [("pooling", 64, "mean")], 500, None)
    return path


@pytest.mark.parametrize("architecture", SEEN_THROUGH_THE_MASK)
def test_neighbours_of_other_lengths_change_no_vector(architecture: str, tmp_path: Path) -> None:
    model = read_model(directory_of(tmp_path, SEEN_THROUGH_THE_MASK[architecture]()), "model")
    chance = np.random.default_rng(1)
    lengths = (3, 9, 9, 30, 31, 62, 100, 200, 498)
    texts = [" ".join(f"w{word}" for word in chance.integers(0, 500, length)) for length in lengths]
    tokens = load_tokenizer(model).encode(texts)
    engine = engine_of(model, max_batch_tokens=8000)
    ours = engine.embed(tokens.ids, tokens.offsets)
    theirs = SentenceTransformer(str(tmp_path), device="cpu").encode(texts, batch_size=1)
    cosines = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert cosines.min() > 1 - 1e-5
    assert engine.stats.padding_share == 0


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "deberta-v2"])
def test_the_models_that_are_not_probed_do_not_see_padding(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = read_model(directory_of(tmp_path, ARCHITECTURES[architecture][1]()), "model")
    assert model.config["model_type"] in EXACT_WHEN_PADDED
    monkeypatch.setattr("pipeline.embed.padded.EXACT_WHEN_PADDED", set())
    assert not engine_of(model, engine="padded")._of_one_length
