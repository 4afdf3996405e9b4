"""The forward of a Llama decoder over packed tokens: RMSNorm, grouped heads, rotary positions,
SwiGLU.

In: a `PackedBatch`. Out: hidden states (T, D) after the last norm, or (n, D) of the last token of
each row. Source: Touvron et al. 2023; Su et al. 2021 (rotary positions: any kind whose frequencies
do not depend on the text); names, defaults and results are those of transformers' LlamaModel. Cost
for T tokens: 2 T (2 D Dh (Hq + Hkv) + 3 D F) flops a layer and attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn.functional import embedding, rms_norm

from pipeline.embed.attention import Attention, PackedBatch
from pipeline.embed.fused import fastest
from pipeline.embed.linear import ACTIVATIONS, Linear, activate
from pipeline.embed.weights import Shapes

__all__ = ["PackedLlama"]

_FIXED_ROTARY = ("default", "linear", "llama3", "yarn")
_LARGEST_TABLE = 1 << 17  # positions
_DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
}


@dataclass(frozen=True)
class _Layer:
    """`qkv` and `gate_up` hold their projections above each other. `q` and `kv` are parts of `qkv`,
    which only the last layer has."""

    norm_attention: torch.Tensor
    qkv: Linear
    out: Linear
    norm_ffn: torch.Tensor
    gate_up: Linear
    down: Linear
    q: Linear | None = None
    kv: Linear | None = None


class PackedLlama:
    """Only the last token sees its whole row, so only last_token pooling can be trimmed."""

    single_token_poolings: ClassVar[tuple[str, ...]] = ("last_token",)
    default_budget_tokens: ClassVar[dict[str, int]] = {"cpu": 2048, "cuda": 16384}

    def __init__(
        self,
        config: dict[str, Any],
        weights: dict[str, torch.Tensor],
        linear: type[Linear] = Linear,
    ) -> None:
        config = {**_DEFAULTS, **config}
        self.max_tokens = min(int(config["max_position_embeddings"]), _LARGEST_TABLE)
        self.vocab_size = int(config["vocab_size"])
        self._n_q, self._n_kv, self._head_dim = _heads_of(config)
        self._eps = float(config["rms_norm_eps"])
        self._activation = ACTIVATIONS[config["hidden_act"]]
        self._words = weights["embed_tokens.weight"]
        self._norm = weights["norm.weight"]
        last = config["num_hidden_layers"] - 1
        self._layers = [_layer(weights, f"layers.{i}.", i == last, linear) for i in range(last + 1)]
        frequencies, scale = _rotary(config, self._head_dim)
        angles = torch.outer(torch.arange(self.max_tokens, dtype=torch.float32), frequencies)
        self._cos, self._sin = (
            (table * scale).to(self._norm) for table in (angles.cos(), angles.sin())
        )
        # (positions, Dh / 2) each

        def sample(n_tokens: int, *width: int) -> torch.Tensor:
            return torch.randn(n_tokens, *width, device=self._norm.device).to(self._norm)

        def heads(n_tokens: int) -> tuple[torch.Tensor, ...]:
            angles = (sample(n_tokens, 1, self._head_dim // 2) for _ in range(2))
            return sample(n_tokens, self._n_q + 2 * self._n_kv, self._head_dim)[
                :, : -self._n_kv
            ], *angles

        device = self._norm.device.type
        self._rotate = fastest(_rotate, heads, device)
        self._gated = fastest(
            self._plain_gated, lambda n: (sample(n, 2 * int(config["intermediate_size"])),), device
        )

    @staticmethod
    def unsupported(config: dict[str, Any]) -> str | None:
        """Why this forward would not compute what the model computes, or None."""
        if not config.get("is_causal", True):
            return "is_causal is false"
        if _rotary_kind(config) not in _FIXED_ROTARY:
            return f"rotary positions of type {_rotary_kind(config)!r} depend on the text's length"
        return None

    @staticmethod
    def shapes(config: dict[str, Any]) -> Shapes:
        """Names and shapes of the weights, without the prefix that task models put before them."""
        config = {**_DEFAULTS, **config}
        d = config["hidden_size"]
        f = config["intermediate_size"]
        n_q, n_kv, head_dim = _heads_of(config)
        q = n_q * head_dim
        kv = n_kv * head_dim
        attention = {"q_proj": (q, d), "k_proj": (kv, d), "v_proj": (kv, d), "o_proj": (d, q)}
        mlp = {"gate_proj": (f, d), "up_proj": (f, d), "down_proj": (d, f)}
        shapes: dict[str, tuple[int, ...]] = {
            "embed_tokens.weight": (config["vocab_size"], d),
            "norm.weight": (d,),
        }
        for i in range(config["num_hidden_layers"]):
            for norm in ("input_layernorm", "post_attention_layernorm"):
                shapes[f"layers.{i}.{norm}.weight"] = (d,)
            for module, has_bias, matrices in (
                ("self_attn", config.get("attention_bias"), attention),
                ("mlp", config.get("mlp_bias"), mlp),
            ):
                for name, shape in matrices.items():
                    shapes[f"layers.{i}.{module}.{name}.weight"] = shape
                    if has_bias:
                        shapes[f"layers.{i}.{module}.{name}.bias"] = shape[:1]
        return shapes

    def forward(
        self, batch: PackedBatch, attention: Attention, pooled: torch.Tensor | None
    ) -> torch.Tensor:
        """pooled: (n,) the last packed token of each row, which is returned alone, or None for all
        T."""
        hidden = embedding(batch.ids, self._words)  # (T, D)
        cos = embedding(batch.positions, self._cos).unsqueeze(1)  # (T, 1, Dh / 2)
        sin = embedding(batch.positions, self._sin).unsqueeze(1)
        full = self._layers if pooled is None else self._layers[:-1]
        for layer in full:
            heads = self._project(hidden, layer, layer.qkv)  # (T, Hq + 2 Hkv, Dh)
            rotated = self._rotate(heads[:, : self._n_q + self._n_kv], cos, sin)
            q = rotated[:, : self._n_q]
            k = rotated[:, self._n_q :]
            v = heads[:, self._n_q + self._n_kv :]
            hidden = self._finish(layer, hidden, attention(q, k, v, batch, causal=True))
        if pooled is not None:
            layer = self._layers[-1]
            assert layer.q and layer.kv  # noqa: S101 - for mypy: the last layer has them, by its construction
            heads = self._project(hidden, layer, layer.kv)  # (T, 2 Hkv, Dh)
            k = _rotate(heads[:, : self._n_kv], cos, sin)
            v = heads[:, self._n_kv :]
            hidden = hidden[pooled]  # (n, D)
            q = _rotate(self._project(hidden, layer, layer.q), cos[pooled], sin[pooled])
            hidden = self._finish(
                layer, hidden, attention(q, k, v, batch, causal=True, pooled=True)
            )
        return rms_norm(hidden, hidden.shape[-1:], self._norm, self._eps)

    def _project(self, hidden: torch.Tensor, layer: _Layer, projection: Linear) -> torch.Tensor:
        """Query, key and value heads, or some of them: (T, heads, Dh)."""
        normed = rms_norm(hidden, hidden.shape[-1:], layer.norm_attention, self._eps)
        return projection(normed).unflatten(1, (-1, self._head_dim))

    def _finish(self, layer: _Layer, hidden: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        hidden = layer.out.plus(mixed.flatten(1), hidden)
        normed = rms_norm(hidden, hidden.shape[-1:], layer.norm_ffn, self._eps)
        return layer.down.plus(self._gated(layer.gate_up(normed)), hidden)

    def _plain_gated(self, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=1)  # (T, F) each
        return activate(gate, self._activation).mul_(up)


def _rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """heads: (T, H, Dh), its halves rotated against each other as transformers pairs them."""
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _heads_of(config: dict[str, Any]) -> tuple[int, int, int]:
    """Query heads, key and value heads, and the width of one."""
    n_q = config["num_attention_heads"]
    return (
        n_q,
        config.get("num_key_value_heads") or n_q,
        config.get("head_dim") or config["hidden_size"] // n_q,
    )


def _rotary_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Settings by the name of transformers 4 or 5, with `rope_theta` inside or next to them."""
    theta = {"rope_theta": config.get("rope_theta", 10000.0)}
    return {**theta, **(config.get("rope_scaling") or config.get("rope_parameters") or {})}


def _rotary_kind(config: dict[str, Any]) -> str:
    settings = _rotary_settings(config)
    return str(settings.get("rope_type", settings.get("type", "default")))


def _rotary(config: dict[str, Any], head_dim: int) -> tuple[torch.Tensor, float]:
    """Frequencies, (Dh / 2,), and the factor of cosine and sine."""
    if _rotary_kind(config) == "default":
        halves = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        return 1.0 / (_rotary_settings(config)["rope_theta"] ** halves), 1.0
    # 3 s, and rarely needed: long-context models stretch their positions
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rotary = LlamaRotaryEmbedding(LlamaConfig.from_dict(config))
    return rotary.inv_freq.float(), float(rotary.attention_scaling)


def _layer(
    weights: dict[str, torch.Tensor], prefix: str, is_last: bool, linear: type[Linear]
) -> _Layer:
    def stacked(*names: str) -> Linear:
        biases = [
            weights[f"{prefix}{name}.bias"] for name in names if f"{prefix}{name}.bias" in weights
        ]
        matrices = [weights[f"{prefix}{name}.weight"] for name in names]
        return linear(torch.cat(matrices), torch.cat(biases) if biases else None)

    q = ("self_attn.q_proj",)
    kv = ("self_attn.k_proj", "self_attn.v_proj")
    return _Layer(
        norm_attention=weights[f"{prefix}input_layernorm.weight"],
        qkv=stacked(*q, *kv),
        out=stacked("self_attn.o_proj"),
        norm_ffn=weights[f"{prefix}post_attention_layernorm.weight"],
        gate_up=stacked("mlp.gate_proj", "mlp.up_proj"),
        down=stacked("mlp.down_proj"),
        q=stacked(*q) if is_last else None,
        kv=stacked(*kv) if is_last else None,
    )
