"""The layers of a packed forward, from the weights of a family: projections that are used together
are stacked into one product, and of rotated heads the two numbers of a pair stand side by side.

In: a `Family`, its `Sizes` and weights by name. Out: one `Layer` each. Cost: a copy of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.embed.families import Family
from pipeline.embed.linear import GatedLinear, Linear
from pipeline.embed.sizes import ACTIVATIONS, Sizes

__all__ = ["Half", "Layer", "Norm", "Weights", "layers_of", "norm_of"]

Weights = dict[str, Tensor]
Norm = tuple[Tensor, Tensor | None] | None
"""Weight and bias, (D,) each."""


@dataclass(frozen=True)
class Half:
    """What attention and MLP have in common: the product at the end, and norms."""

    out: Linear
    before: Norm
    behind: Norm
    after: Norm


@dataclass(frozen=True)
class Layer:
    """Projections of a layer stand above each other: queries, keys and values in `kv`, gate and up
    of a gated MLP in `up`."""

    q: Linear | None
    """Queries apart, in the last layer: of one token a row where one is enough."""
    kv: Linear
    up: Linear | GatedLinear
    attention: Half
    mlp: Half
    is_windowed: bool
    q_norm: Tensor | None
    """(Dh,): the weight of the norm of each head, with what scales queries."""
    k_norm: Tensor | None


def norm_of(name: str | None, weights: Weights, s: Sizes) -> Norm:
    """Weight and bias of the norm of that name; None where a family has none at this place."""
    if name is None:
        return None
    return norm_weight(name, weights, s), weights.get(f"{name}.bias")


def norm_weight(name: str, weights: Weights, s: Sizes) -> Tensor:
    """Stored weights that lack one are kept in float32: in bfloat16 the sum loses bits."""
    weight = weights[f"{name}.weight"]
    return weight.float() + s.norm_offset if s.norm_offset else weight


def layers_of(
    family: Family, s: Sizes, weights: Weights, linear: Callable[..., Linear]
) -> list[Layer]:
    """One `Layer` for each of the model, the first one first. weights: those of `Family.shapes`.
    linear: makes a product of (out, in) weights, a bias or None, and an activation or None."""
    queries = s.heads * s.head_dim
    keys = s.kv_heads * s.head_dim

    def stored(names: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        biases = [weights[f"{name}.bias"] for name in names if f"{name}.bias" in weights]
        matrix = torch.cat([weights[f"{name}.weight"] for name in names])
        return matrix, torch.cat(biases) if biases else None

    def projections(names: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        matrix, bias = stored(names)
        if s.rotary:
            order = torch.arange(matrix.shape[0], device=matrix.device)
            order[: queries + keys] = _paired(order[: queries + keys].view(-1, s.head_dim)).view(-1)
            matrix, bias = matrix[order], bias if bias is None else bias[order]
        return matrix, bias

    def mlp(names: Sequence[str]) -> Linear | GatedLinear:
        matrix, bias = stored(names)
        activation = ACTIVATIONS[s.activation]
        if s.is_gated and linear is Linear and matrix.is_cpu:
            return GatedLinear(matrix, bias, activation)
        return linear(matrix, bias, None if s.is_gated else activation)

    def layer(i: int) -> Layer:
        prefix = family.layer.format(i)

        def half(n: int, out: str) -> Half:
            names = (family.norms_before(i)[n], family.behind[n], family.after[n])
            norms = (norm_of(name and prefix + name, weights, s) for name in names)
            return Half(linear(*stored([prefix + out])), *norms)

        q_norm, k_norm = [
            _paired(norm_weight(prefix + name, weights, s)) for name in family.head_norms
        ] or (None, None)
        matrix, bias = projections([prefix + name for name in family.qkv])
        kv = slice(queries if i == s.layers - 1 else 0, None)

        def rows(part: slice) -> Linear:
            return linear(matrix[part], bias if bias is None else bias[part])

        return Layer(
            q=rows(slice(kv.start)) if kv.start else None,
            kv=rows(kv),
            up=mlp([prefix + name for name in family.up]),
            attention=half(0, family.out),
            mlp=half(1, family.down),
            is_windowed=bool(s.windowed) and s.windowed[i],
            q_norm=q_norm if q_norm is None else q_norm * s.query_scale,
            k_norm=k_norm,
        )

    return [layer(i) for i in range(s.layers)]


def _paired(heads: Tensor) -> Tensor:
    """(…, Dh): transformers pairs a number of a head's first half with that of its second; here
    they follow each other. Scores are sums over pairs, so they stay what they were."""
    return heads.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
