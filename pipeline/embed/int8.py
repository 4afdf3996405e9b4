"""Linear layers in 8-bit integers, chosen by `dtype: int8`: the fastest products of a CPU.

In: x (T, in) float32. Out: (T, out) float32. Method: weights are rounded once with one scale for
each output. Rows of x are rounded in every call: with one step for all of them where they are alike
and it fits a row, otherwise with a scale for each row, so that a vector does not depend on what it
is batched with; products are summed in int32. Everything else of a forward stays float32. What
`watch` saw of x decides.
CPUs without VNNI add two neighbouring products, of 0 … 255 and a weight, in 16 bits. Scales are
such that two neighbouring weights add up to 128 at most, which never saturates (255 * 128 < 2¹⁵),
so every CPU gets the same sums. Source: Dettmers et al. 2022 (LLM.int8, "vector-wise
quantization"), without its outlier columns. Cost and cosine: benchmarks/RESULTS.md, "int8".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from pipeline.embed.engine import log
from pipeline.embed.linear import Linear, shortest_s
from pipeline.embed.products import activate
from pipeline.embed.rounding import MOST_STEPS, SMALLEST, Rounded, blocks, by_row, in_steps

__all__ = ["Inputs", "Int8Linear"]

_ZERO = 128  # what stands for 0 among 0 … 255
_FEW_ROWS_FAVOUR = 1.3
"""How much better the plain product is in a race of 64 rows than with those of a bucket."""


@dataclass(frozen=True)
class Inputs:
    """What is rounded of x is (x - center) / spread, (in,) each."""

    center: torch.Tensor
    spread: torch.Tensor
    step: float | None
    """Of all rows that it fits; None where each has a scale of its own."""


class Int8Linear(Linear):
    """weight: (out, in), bias: (out,) or None, float32 on a CPU. The weight itself is not kept.
    activation: as in `Linear`. inputs: None for layers whose x is rounded already, and where
    nothing is known of it."""

    takes_residual = True

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        activation: tuple[str, str] | None = None,
        inputs: Inputs | None = None,
    ) -> None:
        n_in = weight.shape[1]
        inputs = inputs or Inputs(torch.zeros(n_in), torch.ones(n_in), None)
        whole, self._scale = _rounded_weight(weight * inputs.spread)
        self._product = (_OneDnn if _is_onednn_best() else _Plain)(whole)
        self._shrinkage = inputs.spread.reciprocal()
        self._offset = -inputs.center * self._shrinkage
        self._shift = -(whole.float() @ self._offset) * self._scale
        if bias is not None:
            self._shift += bias
        self._shares_step = inputs.step is not None
        if inputs.step is not None:
            self._steps_of_1 = self._shrinkage / inputs.step
            self._steps_off = self._offset / inputs.step
            self._shared_scale = self._scale * inputs.step

    def __call__(self, x: torch.Tensor | Rounded) -> torch.Tensor:
        if not self._shares_step or isinstance(x, tuple):
            result = torch.empty(len(x[0] if isinstance(x, tuple) else x), len(self._shift))
            for block in blocks(len(result)):
                values, scale = self._by_row(x, block)
                sums = self._product(values, self._scale)
                torch.addcmul(self._shift, sums, scale, out=result[block])
            return result
        values, apart = in_steps(x, self._steps_of_1, self._steps_off)
        result = self._product(values, self._shared_scale, self._shift)
        if len(apart):
            result[apart] = self(self._by_row(x, apart))
        return result

    def activated(self, x: torch.Tensor, activation: tuple[str, str]) -> Rounded:
        """Rounded for the next layer, while it is in the cache."""
        result = torch.empty(len(x), len(self._shift), dtype=torch.int8), torch.empty(len(x), 1)

        def put(rows: slice | torch.Tensor, inner: torch.Tensor) -> None:
            result[0][rows], result[1][rows] = by_row(activate(inner, activation))

        if not self._shares_step:
            for block in blocks(len(x)):
                put(block, self(x[block]))
            return result
        values, apart = in_steps(x, self._steps_of_1, self._steps_off)
        for block in blocks(len(x)):
            put(block, self._product(values[block], self._shared_scale, self._shift))
        if len(apart):
            put(apart, self(self._by_row(x, apart)))
        return result

    def plus(self, x: torch.Tensor | Rounded, residual: torch.Tensor) -> torch.Tensor:
        for block in blocks(len(residual)):
            values, scale = self._by_row(x, block)
            sums = self._product(values, self._scale)
            residual[block].addcmul_(sums, scale).add_(self._shift)
        return residual

    def _by_row(self, x: torch.Tensor | Rounded, rows: slice | torch.Tensor) -> Rounded:
        if isinstance(x, tuple):
            return x[0][rows], x[1][rows]
        return by_row(torch.addcmul(self._offset, x[rows], self._shrinkage))


class _OneDnn:
    """oneDNN's product with weights rearranged once. It is private, as those of `products`."""

    def __init__(self, weight: torch.Tensor) -> None:
        self._weight: Any = torch.ops.onednn.qlinear_prepack(weight, None)
        self._zeros = torch.zeros(len(weight), dtype=torch.int64)

    def __call__(
        self, x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """x: (T, in) int8, -127 … 127, scale and bias: (out,). Returns sums * scale + bias, each
        rounded to float32, (T, out)."""
        raised = x.bitwise_xor(-_ZERO).view(torch.uint8)  # x + 128 in one pass
        result: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            *(raised, 1.0, _ZERO, self._weight, scale, self._zeros, bias),
            *(1.0, 0, torch.float32, "none", [], ""),
        )
        return result


class _Plain:
    """The same in torch's own operator, which is slow where there is no VNNI."""

    def __init__(self, weight: torch.Tensor) -> None:
        self._weight = weight.t().contiguous()

    def __call__(
        self, x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        result = torch._int_mm(x, self._weight).to(torch.float32).mul_(scale)
        return result if bias is None else result.add_(bias)


def _rounded_weight(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 (out, in) and the scale of each output. Rounding adds a half to each of two neighbours,
    so 127 becomes 128 at most."""
    n_in = weight.shape[1]
    pairs = torch.nn.functional.pad(weight, (0, n_in % 2)).unflatten(1, (-1, 2)).sum(2)
    largest = torch.maximum(weight.abs().amax(1), pairs.abs().amax(1))
    scale = largest.clamp_min_(SMALLEST) / MOST_STEPS
    return (weight / scale[:, None]).round_().to(torch.int8), scale


@cache
def _is_onednn_best() -> bool:
    """Whether oneDNN's product exists in this torch, is exact, and beats the plain one."""
    x, weight = _hardest(64, 512, 4096)
    try:
        is_exact = _is_exact(x, weight)
    except (AttributeError, RuntimeError) as error:
        log.info("int8 stays in plain torch: no oneDNN operator: %s", error)
        return False
    if not is_exact:
        log.warning(
            "int8 stays in plain torch: torch %s gives other sums by oneDNN", torch.__version__
        )
        return False
    scale = torch.ones(len(weight))
    onednn, plain = (product(weight) for product in (_OneDnn, _Plain))
    onednn_s, plain_s = shortest_s(lambda: onednn(x, scale), lambda: plain(x, scale))
    log.info("int8: %.1f ms by oneDNN, %.1f ms plain", onednn_s * 1e3, plain_s * 1e3)
    return onednn_s < _FEW_ROWS_FAVOUR * plain_s


def _is_exact(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Sums, and what is added to them in float32."""
    product = _OneDnn(weight)
    sums = (x.double() @ weight.double().t()).float()
    ones = torch.ones(len(weight))
    bias = torch.linspace(-1e6, 1e6, len(weight))
    return torch.equal(product(x, ones), sums) and torch.equal(product(x, ones, bias), sums + bias)


def _hardest(n_rows: int, n_out: int, n_in: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x (rows, in) and weight (out, in) whose sums of two products are the largest there can be:
    they saturate in a kernel that adds other pairs, or more than two."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(1, 128, (n_out, n_in // 2), generator=generator)
    sign = torch.randint(0, 2, first.shape, generator=generator) * 2 - 1
    weight = (torch.stack([first, 128 - first], 2) * sign[:, :, None]).flatten(1)
    x = torch.randint(-127, 128, (n_rows, n_in), generator=generator)
    x[: n_rows // 2] = 127
    return x.to(torch.int8), weight.to(torch.int8)
