"""The steps between the products of a forward, compiled where that is right and faster.

In: `Sizes` and one layer, which show what the steps work on. Out: norms, rotation with its head
norm, gate, and the sum with its norm, each in plain torch or compiled (`fused.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, rms_norm

from pipeline.embed.fused import Sample, Step, fastest
from pipeline.embed.layers import Layer, Norm
from pipeline.embed.products import activate
from pipeline.embed.sizes import ACTIVATIONS, Sizes

__all__ = ["Steps", "rotation"]


class Steps:
    """`turn`, `gate` and `summed_norm` are the plain methods below, or their compiled forms.

    angles: tables of `rotation` for each kind of layer. compiled: names of the latter.
    """

    def __init__(
        self,
        sizes: Sizes,
        layer: Layer,
        words: Tensor,
        angles: Sequence[tuple[Tensor, ...]],
        is_tuned: bool,
    ) -> None:
        self._s = s = sizes
        self._activation = ACTIVATIONS[sizes.activation]
        device = words.device
        self.compiled: list[str] = []

        def best(step: Step, sample: Sample, is_used: bool) -> Step:
            fast = fastest(step, sample, device.type) if is_tuned and is_used else step
            self.compiled += [step.__name__.strip("_")] if fast is not step else []
            return fast

        def sample(*shape: int) -> Tensor:
            return torch.randn(shape, device=device).to(words)

        def heads(n_tokens: int) -> tuple[Tensor, ...]:
            places = torch.randint(len(angles[0][0]), (n_tokens,), device=device)
            turns = [table[places][:, None] for table in angles[0]]
            norm = [] if layer.q_norm is None else [layer.q_norm]
            qkv = sample(n_tokens, s.heads + 2 * s.kv_heads, s.head_dim)
            return qkv[:, : s.heads], *turns, *norm

        def summands(n_tokens: int) -> tuple[Tensor, ...]:
            # no views: torch would compile for their offsets
            norm = [part for part in layer.mlp.after or () if part is not None]
            return sample(n_tokens, s.hidden), sample(n_tokens, s.hidden), *norm

        weight = torch.ones(s.hidden, device=device)
        self.rms = best(
            self._rms, lambda n: (sample(n, s.hidden), weight), is_used=bool(s.norm_offset)
        )
        self.turn = self._turn_as_complex
        if not words.is_cpu:
            self.turn = best(self._turn, heads, is_used=bool(angles))
        self.gate = best(self._gate, lambda n: (sample(n, 2 * s.inner),), is_used=s.is_gated)
        has_sum = layer.mlp.after is not None
        self.summed_norm = best(self._summed_norm, summands, is_used=has_sum)

    def normed(self, x: Tensor, norm: Norm) -> Tensor:
        """x: (T, D). The norm of the family; x itself where there is none."""
        if norm is None:
            return x
        if self._s.is_rms:
            return self.rms(x, norm[0])
        return layer_norm(x, x.shape[-1:], *norm, self._s.eps)

    def _rms(self, x: Tensor, weight: Tensor) -> Tensor:
        """Over the last axis, in float32 where the weight is. weight: that axis alone."""
        wide = x.to(weight.dtype)
        if wide.is_cpu and wide.dtype == torch.float32:  # torch has no kernel of its own there
            squares = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
            scale = squares.div_(x.shape[-1]).add_(self._s.eps).rsqrt_()
            return (wide * scale).mul_(weight).to(x.dtype)
        return rms_norm(wide, x.shape[-1:], weight, self._s.eps).to(x.dtype)

    def _summed_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        return self.normed(x + residual, (weight, bias))

    def _gate(self, gate_up: Tensor) -> Tensor:
        """(T, 2 F) -> (T, F)"""
        gate, up = gate_up.chunk(2, dim=1)
        return activate(gate, self._activation).mul_(up)

    def _turn(self, heads: Tensor, cos: Tensor, sin: Tensor, norm: Tensor | None = None) -> Tensor:
        """heads: (T, heads, Dh), normed, and each of its pairs rotated."""
        if norm is not None:
            heads = self._rms(heads, norm)
        first, second = heads.unflatten(-1, (-1, 2)).unbind(-1)
        turned = (first * cos - second * sin, second * cos + first * sin)
        return torch.stack(turned, dim=-1).flatten(-2)

    def _turn_as_complex(self, heads: Tensor, turns: Tensor, norm: Tensor | None = None) -> Tensor:
        """The same in one kernel of a CPU, in place where heads are float32."""
        if norm is not None:
            heads = self._rms(heads, norm)
        wide = heads.float()
        torch.view_as_complex(wide.unflatten(-1, (-1, 2))).mul_(turns)
        return wide.to(heads.dtype)


def rotation(
    frequencies: Tensor, factor: float, n_tokens: int, words: Tensor
) -> tuple[Tensor, ...]:
    """Tables (positions, Dh / 2) for `Steps.turn`: cosine and sine in the dtype of `words`, on a
    CPU as one complex number."""
    angles = torch.outer(torch.arange(n_tokens, dtype=torch.float32), frequencies)
    turns = torch.polar(torch.full_like(angles, factor), angles)
    return (turns,) if words.is_cpu else (turns.real.to(words), turns.imag.to(words))
