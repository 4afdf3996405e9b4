"""The forward of a BERT encoder over packed tokens.

In: a `PackedBatch`. Out: hidden states (T, D), or (n, D) of the wanted token of each row. Source: Devlin et
al. 2019; weights and activation are those of transformers' BertModel, in post-norm order. Cost for T tokens:
2 T (4 D² + 2 D F) flops a layer and attention; the last layer costs 2 T · 2 D² where one token a row is
wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import embedding, layer_norm, linear
from transformers import BertModel, PreTrainedModel
from transformers.activations import ACT2FN

from pipeline.embed.attention import Attention, PackedBatch

__all__ = ["PackedBert"]


@dataclass(frozen=True)
class _Layer:
    """Weights (out, in) and biases (out,) of one layer; qkv are the three projections above each other."""

    qkv: tuple[torch.Tensor, torch.Tensor]
    out: tuple[torch.Tensor, torch.Tensor]
    norm_attention: tuple[torch.Tensor, torch.Tensor]
    up: tuple[torch.Tensor, torch.Tensor]
    down: tuple[torch.Tensor, torch.Tensor]
    norm_ffn: tuple[torch.Tensor, torch.Tensor]


class PackedBert:
    """Every token sees its whole row, so any single-token pooling can be trimmed."""

    single_token_poolings: ClassVar[tuple[str, ...]] = ("cls", "last_token")
    default_budget_tokens: ClassVar[dict[str, int]] = {"cpu": 2048, "cuda": 32768}

    def __init__(self, model: BertModel, device: str) -> None:
        config, weights = model.config, {name: w.to(device) for name, w in model.state_dict().items()}
        self.max_tokens = int(config.max_position_embeddings)
        self.vocab_size = int(config.vocab_size)
        self._n_heads = int(config.num_attention_heads)
        self._eps = float(config.layer_norm_eps)
        self._activation: Callable[[torch.Tensor], torch.Tensor] = ACT2FN[config.hidden_act]
        self._words = weights["embeddings.word_embeddings.weight"]
        # Every text is of the first type, so its row is added to the positions once and for all.
        self._positions = (
            weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
        )
        self._norm = weights["embeddings.LayerNorm.weight"], weights["embeddings.LayerNorm.bias"]
        self._layers = [_layer(weights, f"encoder.layer.{i}.") for i in range(config.num_hidden_layers)]

    @staticmethod
    def unsupported(model: PreTrainedModel) -> str | None:
        """Why this forward is not the model's own, or None."""
        config = model.config
        if type(model) is not BertModel:
            return f"the architecture is {type(model).__name__}"
        if getattr(config, "is_decoder", False):
            return "is_decoder is set"
        if getattr(config, "position_embedding_type", "absolute") != "absolute":
            return f"position_embedding_type is {config.position_embedding_type!r}"
        return None

    def forward(self, batch: PackedBatch, attention: Attention, wanted: torch.Tensor | None) -> torch.Tensor:
        """`wanted`: (n,) packed token of each row to be returned alone, or None for all T."""
        hidden = embedding(batch.ids, self._words) + embedding(batch.positions, self._positions)  # (T, D)
        hidden = self._normed(hidden, self._norm)
        full = self._layers if wanted is None else self._layers[:-1]
        for layer in full:
            q, k, v = self._heads(linear(hidden, *layer.qkv), 3)
            hidden = self._finish(layer, hidden, attention(q, k, v, batch, causal=False))
        if wanted is None:
            return hidden
        layer, width = self._layers[-1], hidden.shape[1]
        weight, bias = layer.qkv
        k, v = self._heads(linear(hidden, weight[width:], bias[width:]), 2)
        picked = hidden[wanted]  # (n, D)
        (q,) = self._heads(linear(picked, weight[:width], bias[:width]), 1)
        return self._finish(layer, picked, attention(q, k, v, batch, causal=False, pooled=True))

    def _heads(self, projected: torch.Tensor, n_parts: int) -> tuple[torch.Tensor, ...]:
        """(T, parts × D) → `n_parts` views of (T, H, D / H)."""
        return projected.view(projected.shape[0], n_parts, self._n_heads, -1).unbind(1)

    def _finish(self, layer: _Layer, hidden: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        hidden = self._normed(linear(mixed.flatten(1), *layer.out).add_(hidden), layer.norm_attention)
        inner = self._activation(linear(hidden, *layer.up))  # (T, F)
        return self._normed(linear(inner, *layer.down).add_(hidden), layer.norm_ffn)

    def _normed(self, hidden: torch.Tensor, norm: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return layer_norm(hidden, hidden.shape[-1:], *norm, self._eps)


def _layer(weights: dict[str, torch.Tensor], prefix: str) -> _Layer:
    def pair(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return weights[f"{prefix}{name}.weight"], weights[f"{prefix}{name}.bias"]

    parts = [pair(f"attention.self.{name}") for name in ("query", "key", "value")]
    return _Layer(
        qkv=(torch.cat([weight for weight, _ in parts]), torch.cat([bias for _, bias in parts])),
        out=pair("attention.output.dense"),
        norm_attention=pair("attention.output.LayerNorm"),
        up=pair("intermediate.dense"),
        down=pair("output.dense"),
        norm_ffn=pair("output.LayerNorm"),
    )
