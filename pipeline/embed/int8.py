"""Linear layers in 8-bit integers, chosen by `dtype: int8`: the fastest products of a CPU.

In: x (T, in) float32. Out: (T, out) float32. Method: weights are rounded once with one scale for
each output, x in every call with one scale for each row, so that a vector does not depend on what
it is batched with; products are summed in int32. Everything else of a forward stays float32.
CPUs without VNNI add two neighbouring products, of 0 … 255 and a weight, in 16 bits. Scales are
such that two neighbouring weights add up to 128 at most, which never saturates (255 * 128 < 2¹⁵),
so every CPU gets the same sums. Source: Dettmers et al. 2022 (LLM.int8, "vector-wise
quantization"), without its outlier columns. Cost and cosine: benchmarks/RESULTS.md, "int8".
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch

from pipeline.embed.engine import log
from pipeline.embed.linear import Linear, shortest_s
from pipeline.embed.products import activate

__all__ = ["Int8Linear"]

_BLOCK_ROWS = 256  # so that the results of one step are still in the cache at the next
_SMALLEST = 1e-30  # a row of zeros has no scale of its own
_ZERO = 128  # what stands for 0 among 0 … 255
_ALL = slice(None)
_Rounded = tuple[torch.Tensor, torch.Tensor]
"""int8 (T, in), -127 … 127, and the scale of each row, (T, 1)."""


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
        rounded, scale = _rounded_weight(weight)
        self._product = (_OneDnn if _is_onednn_best() else _Plain)(rounded, scale)
        self._bias = torch.zeros_like(scale) if bias is None else bias

    def __call__(self, x: torch.Tensor | _Rounded) -> torch.Tensor:
        result = torch.empty(len(x[0]) if isinstance(x, tuple) else len(x), len(self._bias))
        for block in _blocks(len(result)):
            values, scale = _rounded(x, block)
            torch.addcmul(self._bias, self._product(values), scale, out=result[block])
        return result

    def activated(self, x: torch.Tensor, activation: tuple[str, str]) -> _Rounded:
        """Rounded for the next layer, while it is in the cache."""
        values = torch.empty(len(x), len(self._bias), dtype=torch.int8)
        scale = torch.empty(len(x), 1)
        for block in _blocks(len(x)):
            values[block], scale[block] = _rounded(activate(self(x[block]), activation))
        return values, scale

    def plus(self, x: torch.Tensor | _Rounded, residual: torch.Tensor) -> torch.Tensor:
        for block in _blocks(len(residual)):
            values, scale = _rounded(x, block)
            residual[block].addcmul_(self._product(values), scale).add_(self._bias)
        return residual


def _blocks(n_rows: int) -> Iterator[slice]:
    return (slice(start, start + _BLOCK_ROWS) for start in range(0, n_rows, _BLOCK_ROWS))


def _rounded(x: torch.Tensor | _Rounded, block: slice = _ALL) -> _Rounded:
    if isinstance(x, tuple):
        return x[0][block], x[1][block]
    rows = x[block]
    # abs() would write a copy
    largest = torch.maximum(rows.amax(1, keepdim=True), rows.amin(1, keepdim=True).neg_())
    scale = largest.clamp_min_(_SMALLEST) / 127
    return torch.mul(rows, scale.reciprocal()).round_().to(torch.int8), scale


class _OneDnn:
    """oneDNN's product with weights rearranged once. It is private, as those of `products`."""

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor) -> None:
        self._weight: Any = torch.ops.onednn.qlinear_prepack(weight, None)
        self._scale = scale
        self._zeros = torch.zeros_like(scale, dtype=torch.int64)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: (T, in) int8, -127 … 127. Returns sums times the scale, (T, out) float32."""
        raised = x.bitwise_xor(-_ZERO).view(torch.uint8)  # x + 128 in one pass
        result: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            *(raised, 1.0, _ZERO, self._weight, self._scale, self._zeros, None),
            *(1.0, 0, torch.float32, "none", [], ""),
        )
        return result


class _Plain:
    """The same in torch's own operator, which is slow where there is no VNNI."""

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor) -> None:
        self._weight = weight.t().contiguous()
        self._scale = scale

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch._int_mm(x, self._weight).to(torch.float32).mul_(self._scale)


def _rounded_weight(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 (out, in) and the scale of each output. Rounding adds a half to each of two neighbours,
    so 127 becomes 128 at most."""
    n_in = weight.shape[1]
    pairs = torch.nn.functional.pad(weight, (0, n_in % 2)).unflatten(1, (-1, 2)).sum(2)
    largest = torch.maximum(weight.abs().amax(1), pairs.abs().amax(1))
    scale = largest.clamp_min_(_SMALLEST) / 127
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
    onednn, plain = (product(weight, torch.ones(len(weight))) for product in (_OneDnn, _Plain))
    onednn_s, plain_s = shortest_s(lambda: onednn(x), lambda: plain(x))
    log.info("int8: %.1f ms by oneDNN, %.1f ms plain", onednn_s * 1e3, plain_s * 1e3)
    return onednn_s < plain_s


def _is_exact(x: torch.Tensor, weight: torch.Tensor) -> bool:
    sums = _OneDnn(weight, torch.ones(len(weight)))(x)
    return torch.equal(sums, (x.double() @ weight.double().t()).float())


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
