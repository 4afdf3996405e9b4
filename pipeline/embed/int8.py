"""Linear layers in 8-bit integers, chosen by `dtype: int8`: the fastest products of a CPU.

In: x (T, in) float32. Out: (T, out) float32. Method: weights are rounded once with one scale for
each output, x in every call with one scale for each row, so that a vector does not depend on what
it is batched with; products are summed in int32. Everything else of a forward stays float32.
Before that, channels of x are divided by a power of two each, and weights multiplied, because a few
channels are many times as large as the others and leave them few steps: "SmoothQuant" of Xiao et
al. 2023, with what a forward of random ids shows at loading.
CPUs without VNNI add two neighbouring products, of 0 … 255 and a weight, in 16 bits. Scales are
such that two neighbouring weights add up to 128 at most, which never saturates (255 * 128 < 2¹⁵),
so every CPU gets the same sums. Source: Dettmers et al. 2022 (LLM.int8, "vector-wise
quantization"), without its outlier columns. Cost and cosine: benchmarks/RESULTS.md, "int8".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch

from pipeline.embed.engine import log
from pipeline.embed.linear import Linear, one_thread, shortest_s
from pipeline.embed.products import activate

__all__ = ["Int8Linear", "Watch"]

_BLOCK_ROWS = 256  # so that the results of one step are still in the cache at the next
_SMALLEST = 1e-30  # a row of zeros has no scale of its own
_ZERO = 128  # what stands for 0 among 0 … 255
_LEAST_SHARE = 1 / 256
_FEW_ROWS_FAVOUR = 1.3
"""How much better the plain product is in a race of 64 rows than with those of a bucket."""
_ALL = slice(None)
_Rounded = tuple[torch.Tensor, torch.Tensor]
"""int8 (T, in), -127 … 127, and the scale of each row, (T, 1)."""


class Int8Linear(Linear):
    """weight: (out, in), bias: (out,) or None, float32 on a CPU. The weight itself is not kept.
    activation: as in `Linear`. spread: (in,) by what x is divided before it is rounded; not for
    layers whose x is rounded already."""

    takes_residual = True

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        activation: tuple[str, str] | None = None,
        spread: torch.Tensor | None = None,
    ) -> None:
        if spread is not None:
            weight = weight * spread
        self._shrinkage = None if spread is None else spread.reciprocal()
        rounded, scale = _rounded_weight(weight)
        self._product = (_OneDnn if _is_onednn_best() else _Plain)(rounded, scale)
        self._shift = torch.zeros_like(scale) if bias is None else bias

    def __call__(self, x: torch.Tensor | _Rounded) -> torch.Tensor:
        result = torch.empty(len(x[0]) if isinstance(x, tuple) else len(x), len(self._shift))
        for block in _blocks(len(result)):
            values, scale = _rounded(x, block, self._shrinkage)
            torch.addcmul(self._shift, self._product(values), scale, out=result[block])
        return result

    def activated(self, x: torch.Tensor, activation: tuple[str, str]) -> _Rounded:
        """Rounded for the next layer, while it is in the cache."""
        values = torch.empty(len(x), len(self._shift), dtype=torch.int8)
        scale = torch.empty(len(x), 1)
        for block in _blocks(len(x)):
            values[block], scale[block] = _rounded(activate(self(x[block]), activation))
        return values, scale

    def plus(self, x: torch.Tensor | _Rounded, residual: torch.Tensor) -> torch.Tensor:
        for block in _blocks(len(residual)):
            values, scale = _rounded(x, block)
            residual[block].addcmul_(self._product(values), scale).add_(self._shift)
        return residual


def _blocks(n_rows: int) -> Iterator[slice]:
    return (slice(start, start + _BLOCK_ROWS) for start in range(0, n_rows, _BLOCK_ROWS))


def _rounded(
    x: torch.Tensor | _Rounded, block: slice = _ALL, shrinkage: torch.Tensor | None = None
) -> _Rounded:
    if isinstance(x, tuple):
        return x[0][block], x[1][block]
    rows = x[block] if shrinkage is None else x[block] * shrinkage
    # abs() would write a copy
    largest = torch.maximum(rows.amax(1, keepdim=True), rows.amin(1, keepdim=True).neg_())
    scale = largest.clamp_min_(_SMALLEST) / 127
    return torch.mul(rows, scale.reciprocal()).round_().to(torch.int8), scale


class Watch:
    """Makes layers in float32 that remember what they were given, then, in the same order, layers
    in int8."""

    def __init__(self) -> None:
        self._layers: list[_Watched] = []

    def __call__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        activation: tuple[str, str] | None = None,
    ) -> Linear:
        self._layers.append(_Watched(weight, bias))
        return self._layers[-1]

    def rounded(self) -> Callable[..., Linear]:
        spreads = iter([layer.spread() for layer in self._layers])
        self._layers.clear()

        def layer(
            weight: torch.Tensor,
            bias: torch.Tensor | None,
            activation: tuple[str, str] | None = None,
        ) -> Linear:
            return Int8Linear(weight, bias, activation, next(spreads))

        return layer


class _Watched(Linear):
    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._is_packed = False
        self._weight = weight
        self._bias = bias
        self.takes_residual = True
        self._largest = torch.zeros(weight.shape[1])

    def __call__(self, x: torch.Tensor | tuple[torch.Tensor]) -> torch.Tensor:
        if isinstance(x, tuple):
            return super().__call__(x[0])
        torch.maximum(self._largest, x.abs().amax(0), out=self._largest)
        return super().__call__(x)

    def activated(self, x: torch.Tensor, activation: tuple[str, str]) -> tuple[torch.Tensor]:
        return (activate(self(x), activation),)  # as in int8, not for the next layer to divide

    def plus(self, x: torch.Tensor | tuple[torch.Tensor], residual: torch.Tensor) -> torch.Tensor:
        return self(x if isinstance(x, tuple) else (x,)) + residual

    def spread(self) -> torch.Tensor | None:
        """(in,) The root of what the largest numbers are, so that weights take half of it; powers
        of two, so that it is the same on every CPU. None where nothing was seen."""
        median = self._largest.median()
        if not median > 0:
            return None
        share = (self._largest / median).clamp_(_LEAST_SHARE, 1 / _LEAST_SHARE)
        return share.sqrt_().log2_().round_().exp2_()


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
@one_thread()
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
    return onednn_s < _FEW_ROWS_FAVOUR * plain_s


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
