"""What layers are given in a first forward in float32, from which those in int8 are made.

In: layers of a forward. Out: the same layers in int8. Method: a few channels are many times as
large as the others and leave them few steps, so channels are divided by a power of two each:
"SmoothQuant" of Xiao et al. 2023, with what a forward of random ids shows at loading. Where rows
are alike, as norms leave them, they share one step, and the middle of what each channel holds is
taken off, so that they need fewer; then the product does scales and bias itself. Rows that make
what is added to a residual are not alike. Cosine: benchmarks/RESULTS.md, "int8".
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from pipeline.embed.int8 import Inputs, Int8Linear
from pipeline.embed.linear import Linear
from pipeline.embed.products import activate
from pipeline.embed.rounding import MOST_STEPS, SMALLEST

__all__ = ["Watch"]

_LEAST_SHARE = 1 / 256
_MARGIN = 1.25
"""How much larger than what random ids showed a row may be that shares the step. At 1, up to a
third of the rows of real texts do not fit in some layers; at 1.5 the cosine falls below that of
scales by row."""
_USUAL_STEPS = 32
"""By which most rows differ from the usual one, where rows share a step: they lose two bits at
most."""


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
        inputs = iter([layer.inputs() for layer in self._layers])
        self._layers.clear()

        def layer(
            weight: torch.Tensor,
            bias: torch.Tensor | None,
            activation: tuple[str, str] | None = None,
        ) -> Linear:
            return Int8Linear(weight, bias, activation, next(inputs))

        return layer


class _Watched(Linear):
    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._is_packed = False
        self._weight = weight
        self._bias = bias
        self.takes_residual = True
        self._rows: torch.Tensor | None = None
        self._is_for_residual = False

    def __call__(self, x: torch.Tensor | tuple[torch.Tensor]) -> torch.Tensor:
        if isinstance(x, tuple):
            return super().__call__(x[0])
        self._rows = x.clone()
        return super().__call__(x)

    def activated(self, x: torch.Tensor, activation: tuple[str, str]) -> tuple[torch.Tensor]:
        return (activate(self(x), activation),)  # as in int8, not for the next layer to divide

    def plus(self, x: torch.Tensor | tuple[torch.Tensor], residual: torch.Tensor) -> torch.Tensor:
        self._is_for_residual = True
        return self(x) + residual

    def inputs(self) -> Inputs | None:
        """None where nothing was seen."""
        if self._rows is None:
            return None
        high, low = self._rows.amax(0), self._rows.amin(0)
        nothing = torch.zeros_like(high)
        if self._is_for_residual:
            return Inputs(nothing, torch.ones_like(high), None)
        center = (high + low) / 2
        spread = _spread(high - center)
        step = _MARGIN * float(((high - center) / spread).max()) / MOST_STEPS
        usual_row = self._rows.median(0).values  # the center may be one that few rows are near
        usual = float(((self._rows - usual_row) / spread).abs().amax(1).median())
        if usual >= _USUAL_STEPS * step > SMALLEST:
            return Inputs(center, spread, step)
        return Inputs(nothing, _spread(torch.maximum(high, -low)), None)


def _spread(largest: torch.Tensor) -> torch.Tensor:
    """(in,) The root of what the largest numbers are, so that weights take half of it; powers of
    two, so that it is the same on every CPU."""
    share = largest / largest.median()
    share = share.nan_to_num_(1.0).clamp_(_LEAST_SHARE, 1 / _LEAST_SHARE)
    return share.sqrt_().log2_().round_().exp2_()
