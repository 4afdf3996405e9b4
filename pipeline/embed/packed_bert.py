"""The forward of a BERT, RoBERTa or XLM-R encoder over packed tokens.

In: a `PackedBatch`. Out: hidden states (T, D), or (n, D) of one token of each row. Source:
Devlin et al. 2019; Liu et al. 2019; names, defaults and results are those of transformers' models,
in post-norm order. Cost for T tokens: 2 T (4 D² + 2 D F) flops a layer and attention; the last
layer costs 2 T · 2 D² where one token of each row is enough.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn.functional import embedding, layer_norm

from pipeline.embed.attention import Attention, PackedBatch
from pipeline.embed.fused import fastest
from pipeline.embed.linear import ACTIVATIONS, Linear
from pipeline.embed.weights import Shapes

__all__ = ["PackedBert"]

_DEFAULTS = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}

_LINEAR = {
    **dict.fromkeys(
        ("attention.self.query", "attention.self.key", "attention.self.value"), ("D", "D")
    ),
    "attention.output.dense": ("D", "D"),
    "attention.output.LayerNorm": ("D", ""),
    "intermediate.dense": ("F", "D"),
    "output.dense": ("D", "F"),
    "output.LayerNorm": ("D", ""),
}
"""Module of a layer → (out, in) in letters of the docstring; a LayerNorm has no second side."""


@dataclass(frozen=True)
class _Layer:
    """`qkv` holds the three projections above each other. `q` and `kv` are parts of it, which only
    the last layer has."""

    qkv: Linear
    out: Linear
    norm_attention: tuple[torch.Tensor, torch.Tensor]
    up: Linear
    down: Linear
    norm_ffn: tuple[torch.Tensor, torch.Tensor]
    q: Linear | None = None
    kv: Linear | None = None


class PackedBert:
    """Every token sees its whole row, so any single-token pooling can be trimmed."""

    single_token_poolings: ClassVar[tuple[str, ...]] = ("cls", "last_token")
    default_budget_tokens: ClassVar[dict[str, int]] = {"cpu": 2048, "cuda": 32768}

    def __init__(
        self,
        config: dict[str, Any],
        weights: dict[str, torch.Tensor],
        linear: type[Linear] = Linear,
    ) -> None:
        config = {**_DEFAULTS, **config}
        # RoBERTa counts positions from the padding id on, and a literal padding token stands at
        # that very position.
        self._pad_id = (
            None if config["model_type"] == "bert" else int(config.get("pad_token_id", 1))
        )
        self.max_tokens = int(config["max_position_embeddings"]) - (
            0 if self._pad_id is None else self._pad_id + 1
        )
        self.vocab_size = int(config["vocab_size"])
        self._n_heads = int(config["num_attention_heads"])
        self._eps = float(config["layer_norm_eps"])
        self._activation = ACTIVATIONS[config["hidden_act"]]
        self._words = weights["embeddings.word_embeddings.weight"]
        # Every text is of the first type, so its row is added to the positions once and for all.
        self._positions = (
            weights["embeddings.position_embeddings.weight"]
            + weights["embeddings.token_type_embeddings.weight"][0]
        )
        self._norm = weights["embeddings.LayerNorm.weight"], weights["embeddings.LayerNorm.bias"]
        last = config["num_hidden_layers"] - 1
        self._layers = [
            _layer(weights, f"encoder.layer.{i}.", i == last, linear) for i in range(last + 1)
        ]

        device = self._words.device

        def hidden(n_tokens: int) -> tuple[torch.Tensor, ...]:
            x, residual = (
                torch.randn(n_tokens, self._words.shape[1], device=device).to(self._words)
                for _ in range(2)
            )
            return x, residual, *self._norm  # no views: torch would compile for their offsets

        self._summed_norm = fastest(self._plain_summed_norm, hidden, device.type)

    @staticmethod
    def unsupported(config: dict[str, Any]) -> str | None:
        """Why this forward would not compute what the model computes, or None."""
        if config.get("is_decoder"):
            return "is_decoder is set"
        if config.get("position_embedding_type", "absolute") != "absolute":
            return f"position_embedding_type is {config['position_embedding_type']!r}"
        return None

    @staticmethod
    def shapes(config: dict[str, Any]) -> Shapes:
        """Names and shapes of the weights, without the prefix that task models put before them."""
        config = {**_DEFAULTS, **config}
        d = config["hidden_size"]
        f = config["intermediate_size"]
        width = {"D": d, "F": f}
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.word_embeddings.weight": (config["vocab_size"], d),
            "embeddings.position_embeddings.weight": (config["max_position_embeddings"], d),
            "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], d),
            "embeddings.LayerNorm.weight": (d,),
            "embeddings.LayerNorm.bias": (d,),
        }
        for i in range(config["num_hidden_layers"]):
            for name, (n_out, n_in) in _LINEAR.items():
                shapes[f"encoder.layer.{i}.{name}.weight"] = (
                    width[n_out],
                    *([width[n_in]] if n_in else []),
                )
                shapes[f"encoder.layer.{i}.{name}.bias"] = (width[n_out],)
        return shapes

    def forward(
        self, batch: PackedBatch, attention: Attention, pooled: torch.Tensor | None
    ) -> torch.Tensor:
        """pooled: (n,) the packed token of each row that is returned alone, or None for all T."""
        # (T, D)
        hidden = embedding(batch.ids, self._words) + embedding(self._places(batch), self._positions)
        hidden = self._normed(hidden, self._norm)
        full = self._layers if pooled is None else self._layers[:-1]
        for layer in full:
            q, k, v = self._heads(layer.qkv(hidden), 3)
            hidden = self._finish(layer, hidden, attention(q, k, v, batch, causal=False))
        if pooled is None:
            return hidden
        layer = self._layers[-1]
        assert layer.q and layer.kv  # noqa: S101 - for mypy: the last layer has them, by its construction
        k, v = self._heads(layer.kv(hidden), 2)
        picked = hidden[pooled]  # (n, D)
        (q,) = self._heads(layer.q(picked), 1)
        return self._finish(layer, picked, attention(q, k, v, batch, causal=False, pooled=True))

    def _places(self, batch: PackedBatch) -> torch.Tensor:
        """(T,) the row of the position table for each token."""
        if self._pad_id is None:
            return batch.positions
        is_real = (batch.ids != self._pad_id).int()  # (T,)
        counted = is_real.cumsum(0, dtype=torch.int32)
        first = batch.starts[:-1].long()
        before = torch.repeat_interleave(
            counted[first] - is_real[first], batch.lengths, output_size=batch.ids.shape[0]
        )
        return (counted - before) * is_real + self._pad_id

    def _heads(self, projected: torch.Tensor, n_parts: int) -> tuple[torch.Tensor, ...]:
        """(T, parts × D) → `n_parts` views of (T, H, D / H)."""
        return projected.view(projected.shape[0], n_parts, self._n_heads, -1).unbind(1)

    def _finish(self, layer: _Layer, hidden: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        hidden = self._added(layer.out, mixed.flatten(1), hidden, layer.norm_attention)
        inner = layer.up.activated(hidden, self._activation)  # (T, F)
        return self._added(layer.down, inner, hidden, layer.norm_ffn)

    def _added(
        self,
        linear: Linear,
        x: torch.Tensor,
        residual: torch.Tensor,
        norm: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        """norm(linear(x) + residual). The sum shares a kernel with the product on a CPU and with
        the norm on a GPU."""
        if linear.takes_residual:
            return self._normed(linear.plus(x, residual), norm)
        return self._summed_norm(linear(x), residual, *norm)

    def _plain_summed_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        return self._normed(x + residual, (weight, bias))

    def _normed(
        self, hidden: torch.Tensor, norm: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        return layer_norm(hidden, hidden.shape[-1:], *norm, self._eps)


def _layer(
    weights: dict[str, torch.Tensor], prefix: str, is_last: bool, linear: type[Linear]
) -> _Layer:
    def pair(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return weights[f"{prefix}{name}.weight"], weights[f"{prefix}{name}.bias"]

    def stacked(*names: str) -> Linear:
        parts = [pair(f"attention.self.{name}") for name in names]
        return linear(
            torch.cat([weight for weight, _ in parts]), torch.cat([bias for _, bias in parts])
        )

    return _Layer(
        qkv=stacked("query", "key", "value"),
        out=linear(*pair("attention.output.dense")),
        norm_attention=pair("attention.output.LayerNorm"),
        up=linear(*pair("intermediate.dense")),
        down=linear(*pair("output.dense")),
        norm_ffn=pair("output.LayerNorm"),
        q=stacked("query") if is_last else None,
        kv=stacked("key", "value") if is_last else None,
    )
