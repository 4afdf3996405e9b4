"""Linear layers in 8-bit integers, chosen by `dtype: int8`: the fastest products on CPUs with VNNI.

In: x (T, in) float32. Out: (T, out) float32. Method: weights are rounded once with one scale for
each output, x in every call with one scale for each row, so that a vector does not depend on what
it is batched with; products are summed in int32. Everything else of a forward stays float32.
Source: Dettmers et al. 2022 (LLM.int8, "vector-wise quantization"), without its outlier columns.
Cost and cosine: benchmarks/RESULTS.md, "End to end".
"""

from __future__ import annotations

import torch

from pipeline.embed.linear import Linear
from pipeline.embed.products import activate

__all__ = ["Int8Linear"]

_BLOCK_ROWS = 512  # so that the results of one step are still in the cache at the next
_SMALLEST = 1e-30  # a row of zeros has no scale of its own


class Int8Linear(Linear):
    """weight: (out, in), bias: (out,) or None, float32 on a CPU. The weight itself is not kept.
    activation: as in `Linear`."""

    takes_residual = True

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        activation: tuple[str, str] | None = None,
    ) -> None:
        self._scale = weight.abs().amax(1).clamp_min_(_SMALLEST) / 127  # (out,)
        # (in, out)
        self._weight = (weight / self._scale[:, None]).round_().to(torch.int8).t().contiguous()
        self._shift = torch.zeros_like(self._scale) if bias is None else bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._blocks(x, None, None)

    def activated(self, x: torch.Tensor, activation: tuple[str, str]) -> torch.Tensor:
        return self._blocks(x, activation, None)

    def plus(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return self._blocks(x, None, residual)

    def _blocks(
        self, x: torch.Tensor, activation: tuple[str, str] | None, residual: torch.Tensor | None
    ) -> torch.Tensor:
        result = x.new_empty(x.shape[0], self._scale.shape[0])
        for start in range(0, x.shape[0], _BLOCK_ROWS):
            block = slice(start, start + _BLOCK_ROWS)
            row_scale = x[block].abs().amax(1, keepdim=True).clamp_min_(_SMALLEST) / 127  # (B, 1)
            rounded = torch.mul(x[block], row_scale.reciprocal()).round_().to(torch.int8)
            sums = torch._int_mm(rounded, self._weight).to(torch.float32).mul_(row_scale)
            out = torch.addcmul(self._shift, sums, self._scale, out=result[block])
            if activation is not None:
                result[block] = activate(out, activation)
            if residual is not None:
                out.add_(residual[block])
        return result
