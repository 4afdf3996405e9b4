"""The forward of a Llama decoder over packed tokens: RMSNorm, grouped heads, rotary positions, SwiGLU.

In: a `PackedBatch`. Out: hidden states (T, D) after the last norm, or (n, D) of the last token of each row.
Source: Touvron et al. 2023; Su et al. 2021 (rotary positions: any kind whose frequencies do not depend on the
text); weights are those of transformers' LlamaModel. Cost for T tokens: 2 T (2 D Dh (Hq + Hkv) + 3 D F) flops
a layer and attention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import embedding, linear, rms_norm
from transformers import LlamaModel, PreTrainedModel
from transformers.activations import ACT2FN

from pipeline.embed.attention import Attention, PackedBatch

__all__ = ["PackedLlama"]

_FIXED_ROTARY = ("default", "linear", "llama3", "yarn")
_LARGEST_TABLE = 1 << 17  # positions

Linear = tuple[torch.Tensor, torch.Tensor | None]


@dataclass(frozen=True)
class _Layer:
    """Weights (out, in), biases (out,) or None; qkv and gate_up are their projections above each other."""

    norm_attention: torch.Tensor
    qkv: Linear
    out: Linear
    norm_ffn: torch.Tensor
    gate_up: Linear
    down: Linear


class PackedLlama:
    """Only the last token sees its whole row, so only last_token pooling can be trimmed."""

    single_token_poolings: ClassVar[tuple[str, ...]] = ("last_token",)
    default_budget_tokens: ClassVar[dict[str, int]] = {"cpu": 2048, "cuda": 16384}

    def __init__(self, model: LlamaModel, device: str) -> None:
        config, weights = model.config, {name: w.to(device) for name, w in model.state_dict().items()}
        self.max_tokens = min(int(config.max_position_embeddings), _LARGEST_TABLE)
        self.vocab_size = int(config.vocab_size)
        self._n_q, self._n_kv = (
            int(config.num_attention_heads),
            int(config.num_key_value_heads or config.num_attention_heads),
        )
        self._eps = float(config.rms_norm_eps)
        self._activation: Callable[[torch.Tensor], torch.Tensor] = ACT2FN[config.hidden_act]
        self._words = weights["embed_tokens.weight"]
        self._norm = weights["norm.weight"]
        self._layers = [_layer(weights, f"layers.{i}.") for i in range(config.num_hidden_layers)]
        self._cos, self._sin = _rotary_table(model, self.max_tokens, device)  # (positions, Dh / 2) each

    @staticmethod
    def unsupported(model: PreTrainedModel) -> str | None:
        """Why this forward is not the model's own, or None."""
        if type(model) is not LlamaModel:
            return f"the architecture is {type(model).__name__}"
        if not getattr(model.config, "is_causal", True):
            return "is_causal is false"
        if model.rotary_emb.rope_type not in _FIXED_ROTARY:
            return f"rotary positions of type {model.rotary_emb.rope_type!r} depend on the text's length"
        return None

    def forward(self, batch: PackedBatch, attention: Attention, wanted: torch.Tensor | None) -> torch.Tensor:
        """`wanted`: (n,) packed token of each row to be returned alone (its last), or None for all T."""
        hidden = embedding(batch.ids, self._words)  # (T, D)
        cos = embedding(batch.positions, self._cos).unsqueeze(1)  # (T, 1, Dh / 2)
        sin = embedding(batch.positions, self._sin).unsqueeze(1)
        full = self._layers if wanted is None else self._layers[:-1]
        for layer in full:
            heads = self._project(hidden, layer, slice(None))  # (T, Hq + 2 Hkv, Dh)
            rotated = _rotate(heads[:, : self._n_q + self._n_kv], cos, sin)
            q, k = rotated[:, : self._n_q], rotated[:, self._n_q :]
            v = heads[:, self._n_q + self._n_kv :]
            hidden = self._finish(layer, hidden, attention(q, k, v, batch, causal=True))
        if wanted is not None:
            layer, q_width = self._layers[-1], self._layers[-1].out[0].shape[1]
            heads = self._project(hidden, layer, slice(q_width, None))  # (T, 2 Hkv, Dh)
            k, v = _rotate(heads[:, : self._n_kv], cos, sin), heads[:, self._n_kv :]
            hidden = hidden[wanted]  # (n, D)
            q = _rotate(self._project(hidden, layer, slice(q_width)), cos[wanted], sin[wanted])
            hidden = self._finish(layer, hidden, attention(q, k, v, batch, causal=True, pooled=True))
        return rms_norm(hidden, hidden.shape[-1:], self._norm, self._eps)

    def _project(self, hidden: torch.Tensor, layer: _Layer, rows: slice) -> torch.Tensor:
        """Query, key and value heads, or the `rows` of that projection: (T, heads, Dh)."""
        weight, bias = layer.qkv
        normed = rms_norm(hidden, hidden.shape[-1:], layer.norm_attention, self._eps)
        head_dim = layer.out[0].shape[1] // self._n_q
        return linear(normed, weight[rows], None if bias is None else bias[rows]).unflatten(1, (-1, head_dim))

    def _finish(self, layer: _Layer, hidden: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        hidden = linear(mixed.flatten(1), *layer.out).add_(hidden)
        normed = rms_norm(hidden, hidden.shape[-1:], layer.norm_ffn, self._eps)
        gate, up = linear(normed, *layer.gate_up).chunk(2, dim=1)  # (T, F) each
        return linear(self._activation(gate).mul_(up), *layer.down).add_(hidden)


def _rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """heads: (T, H, Dh), its halves rotated against each other as transformers pairs them."""
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _rotary_table(model: LlamaModel, n_positions: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    angles = torch.outer(torch.arange(n_positions, dtype=torch.float32), model.rotary_emb.inv_freq.float().cpu())
    scale = model.rotary_emb.attention_scaling
    return (angles.cos() * scale).to(device, model.dtype), (angles.sin() * scale).to(device, model.dtype)


def _layer(weights: dict[str, torch.Tensor], prefix: str) -> _Layer:
    def stacked(*names: str) -> Linear:
        biases = [weights[f"{prefix}{name}.bias"] for name in names if f"{prefix}{name}.bias" in weights]
        matrices = [weights[f"{prefix}{name}.weight"] for name in names]
        return torch.cat(matrices), torch.cat(biases) if biases else None

    return _Layer(
        norm_attention=weights[f"{prefix}input_layernorm.weight"],
        qkv=stacked("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        out=stacked("self_attn.o_proj"),
        norm_ffn=weights[f"{prefix}post_attention_layernorm.weight"],
        gate_up=stacked("mlp.gate_proj", "mlp.up_proj"),
        down=stacked("mlp.down_proj"),
    )
