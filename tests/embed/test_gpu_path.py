"""The forward that a GPU runs, on torch's `meta` device: it has shapes, dtypes and devices, but no
values.

So a step that reads a value back to the host (and on a GPU would wait for it), leaves a tensor on
the host or loses the dtype fails here, without a GPU. The attention is torch's own operator for
GPUs, whose shapes are known on `meta`.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.embed import attention
from pipeline.embed.attention import attention_for
from pipeline.embed.families import FAMILIES
from pipeline.embed.forward import Forward
from pipeline.embed.head import Head
from pipeline.embed.packed import PackedEngine
from pipeline.job.model.directory import POOLINGS

SIZES = {
    "vocab_size": 50,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
}
OWN: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2, "head_dim": 24, "rms_norm_eps": 1e-6},
    "mistral": {"num_key_value_heads": 2, "rms_norm_eps": 1e-6, "sliding_window": 5},
    "modernbert": {"local_attention": 6},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 24, "rms_norm_eps": 1e-6},
    "gemma3_text": {"num_key_value_heads": 2, "head_dim": 24, "use_bidirectional_attention": True},
}
OFFSETS = np.array([0, 7, 12, 20, 30])


@pytest.mark.parametrize("prompt_tokens", [0, 3])
@pytest.mark.parametrize("pooling", sorted(POOLINGS.values()))
@pytest.mark.parametrize("model_type", ["bert", "roberta", *OWN])
def test_nothing_of_it_is_on_the_host_or_asks_for_a_value(
    monkeypatch: pytest.MonkeyPatch, model_type: str, pooling: str, prompt_tokens: int
) -> None:
    family = FAMILIES[model_type]
    sizes = family.read({**SIZES, **OWN.get(model_type, {}), "model_type": model_type})
    weights = {
        name: torch.empty(shape, dtype=torch.bfloat16, device="meta")
        for name, shape in family.shapes(sizes).items()
    }
    monkeypatch.setattr(
        attention, "to_device", lambda array, device: torch.from_numpy(array).to(device)
    )
    body = Forward(family, sizes, weights)
    hidden: list[torch.Tensor] = []

    def forward(*arguments: Any) -> torch.Tensor:
        hidden.append(body.forward(*arguments))
        return hidden[-1]

    # the parts of a PackedEngine; its own __init__ asks for a directory
    engine: Any = SimpleNamespace(
        options=SimpleNamespace(pooling=pooling),
        _unpooled_tokens=prompt_tokens,
        device="meta",
        _trims=pooling in body.single_token_poolings,
        _body=SimpleNamespace(forward=forward),
        _attention=attention_for("meta"),
        _head=Head([], normalize=True, truncate_dim=None),
    )
    engine._vectors = partial(PackedEngine._vectors, engine)
    vectors, n_tokens = PackedEngine._forward(
        engine, np.zeros(30, np.int32), OFFSETS, np.array([3, 2, 0, 1])
    )
    assert n_tokens == 30
    assert (vectors.device.type, vectors.dtype, tuple(vectors.shape)) == (
        "meta",
        torch.float32,
        (4, 64),
    )
    assert (hidden[0].dtype, len(hidden[0])) == (torch.bfloat16, 4 if engine._trims else 30)


def test_a_value_that_is_asked_for_fails() -> None:
    with pytest.raises(RuntimeError):
        torch.empty(3, device="meta").sum().item()
