"""The layers of a packed forward, from the weights of a family: projections that are used together
are stacked into one product.

In: a `Family`, its `Sizes` and weights by name. Out: one `Layer` each. Cost: a copy of the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipeline.embed.families import Family
from pipeline.embed.linear import Linear
from pipeline.embed.sizes import Sizes

__all__ = ["Half", "Layer", "Norm", "Weights", "layers_of", "norm_of"]

Weights = dict[str, torch.Tensor]
Norm = tuple[torch.Tensor, torch.Tensor | None] | None
"""Weight and bias, (D,) each."""


@dataclass(frozen=True)
class Half:
    """Attention or MLP: `into` holds its projections (qkv; gate and up) above each other."""

    into: Linear
    out: Linear
    before: Norm
    behind: Norm
    after: Norm


@dataclass(frozen=True)
class Layer:
    """`q` and `kv` are the two parts of qkv, which only the last layer has."""

    attention: Half
    mlp: Half
    is_windowed: bool
    head_norm: torch.Tensor | None
    """(H + Hkv, 1 or Dh): the weights of the norms of queries and keys."""
    q: Linear | None
    kv: Linear | None


def norm_of(name: str | None, weights: Weights, s: Sizes) -> Norm:
    if name is None:
        return None
    return norm_weight(name, weights, s), weights.get(f"{name}.bias")


def norm_weight(name: str, weights: Weights, s: Sizes) -> torch.Tensor:
    """Stored weights that lack one are kept in float32: in bfloat16 the sum loses bits."""
    weight = weights[f"{name}.weight"]
    return weight.float() + s.norm_offset if s.norm_offset else weight


def layers_of(family: Family, s: Sizes, weights: Weights, linear: type[Linear]) -> list[Layer]:
    def stacked(names: Sequence[str], rows: slice = slice(None)) -> Linear:
        biases = [weights[f"{name}.bias"] for name in names if f"{name}.bias" in weights]
        matrix = torch.cat([weights[f"{name}.weight"] for name in names])[rows]
        return linear(matrix, torch.cat(biases)[rows] if biases else None)

    def layer(i: int) -> Layer:
        prefix = family.layer.format(i)

        def half(n: int, into: Sequence[str], out: str) -> Half:
            names = (family.norms_before(i)[n], family.behind[n], family.after[n])
            norms = (norm_of(name and prefix + name, weights, s) for name in names)
            return Half(stacked([prefix + name for name in into]), stacked([prefix + out]), *norms)

        head_norm = None
        if family.head_norms:
            q, k = (norm_weight(prefix + name, weights, s) for name in family.head_norms)
            heads = [(q * s.query_scale).expand(s.heads, -1), k.expand(s.kv_heads, -1)]
            head_norm = torch.cat(heads)
        qkv = [prefix + name for name in family.qkv]
        queries = s.heads * s.head_dim
        is_last = i == s.layers - 1
        return Layer(
            attention=half(0, family.qkv, family.out),
            mlp=half(1, family.up, family.down),
            is_windowed=bool(s.windowed) and s.windowed[i],
            head_norm=head_norm,
            q=stacked(qkv, slice(queries)) if is_last else None,
            kv=stacked(qkv, slice(queries, None)) if is_last else None,
        )

    return [layer(i) for i in range(s.layers)]
