"""The steps between the products of a forward, compiled where that is right and faster.

In: `Sizes` and one layer, which show what the steps work on. Out: norms, rotation with its head
norm, gate, and the sum with its norm, each in plain torch or compiled (`fused.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import layer_norm, rms_norm

from pipeline.embed.fused import fastest
from pipeline.embed.layers import Layer, Norm
from pipeline.embed.linear import activate
from pipeline.embed.sizes import ACTIVATIONS, Sizes

__all__ = ["Steps"]


class Steps:
    """`turn`, `gate` and `summed_norm` are the plain methods below, or their compiled forms."""

    def __init__(
        self,
        sizes: Sizes,
        layer: Layer,
        words: torch.Tensor,
        angles: Sequence[tuple[torch.Tensor, torch.Tensor]],
    ) -> None:
        self._s = s = sizes
        self._activation = ACTIVATIONS[sizes.activation]
        device = words.device
        kind = device.type

        def sample(*shape: int) -> torch.Tensor:
            return torch.randn(shape, device=device).to(words)

        def heads(n_tokens: int) -> tuple[torch.Tensor, ...]:
            places = torch.randint(len(angles[0][0]), (n_tokens,), device=device)
            cos, sin = (table[places][:, None] for table in angles[0])
            norm = [] if layer.head_norm is None else [layer.head_norm]
            qkv = sample(n_tokens, s.heads + 2 * s.kv_heads, s.head_dim)
            return qkv[:, : -s.kv_heads], cos, sin, *norm

        def summands(n_tokens: int) -> tuple[torch.Tensor, ...]:
            # no views: torch would compile for their offsets
            norm = [part for part in layer.mlp.after or () if part is not None]
            return sample(n_tokens, s.hidden), sample(n_tokens, s.hidden), *norm

        self.rms = self._rms
        self.turn = self._turn
        self.gate = self._gate
        self.summed_norm = self._summed_norm
        if s.norm_offset:
            weight = torch.ones(s.hidden, device=device)
            self.rms = fastest(self._rms, lambda n: (sample(n, s.hidden), weight), kind)
        if angles:
            self.turn = fastest(self._turn, heads, kind)
        if s.is_gated:
            self.gate = fastest(self._gate, lambda n: (sample(n, 2 * s.inner),), kind)
        if layer.mlp.after is not None:
            self.summed_norm = fastest(self._summed_norm, summands, kind)

    def normed(self, x: torch.Tensor, norm: Norm) -> torch.Tensor:
        if norm is None:
            return x
        if self._s.is_rms:
            return self.rms(x, norm[0])
        return layer_norm(x, x.shape[-1:], *norm, self._s.eps)

    def _rms(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """In float32 where the weight is."""
        return rms_norm(x.to(weight.dtype), x.shape[-1:], weight, self._s.eps).to(x.dtype)

    def _summed_norm(
        self,
        x: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return self.normed(x + residual, (weight, bias))

    def _gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        """(T, 2 F) -> (T, F)"""
        gate, up = gate_up.chunk(2, dim=1)
        return activate(gate, self._activation).mul_(up)

    def _turn(
        self,
        heads: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        norm: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """heads: (T, heads, Dh), normed, and its halves rotated against each other as transformers
        pairs them."""
        if norm is not None:
            normed = rms_norm(heads.to(norm.dtype), heads.shape[-1:], None, self._s.eps)
            heads = (normed * norm).to(heads.dtype)
        first, second = heads.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
