"""Products of oneDNN with their activation, sum or factor inside, and activations beside them.

In: x (T, in), and weights that `reordered` has rearranged. Out: (T, out). `linear` decides where
they are used. An activation is a value of `sizes.ACTIVATIONS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["NO_ACTIVATION", "activate", "packed", "packed_with", "reordered"]

_PLAIN: dict[str, Callable[[Tensor], Tensor]] = {"relu": functional.relu, "swish": functional.silu}
NO_ACTIVATION = ("none", "")
TYPICAL_TOKENS = 2048  # oneDNN chooses its layout for a size; others work as well


def reordered(weight: Tensor) -> Any:
    return torch.ops.mkldnn._reorder_linear_weight(weight, TYPICAL_TOKENS)


def packed(
    x: Tensor, weight: Any, bias: Tensor | None, activation: tuple[str, str] = NO_ACTIVATION
) -> Tensor:
    name, algorithm = activation
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, name, [], algorithm)
    return result


def packed_with(
    x: Tensor, other: Tensor, weight: Any, bias: Tensor | None, operation: str
) -> Tensor:
    """operation: add | mul, of the product and `other`, which can be overwritten."""
    product = torch.ops.mkldnn._linear_pointwise.binary
    result: Tensor = product(x, other, weight, bias, operation)
    return result


def activate(x: Tensor, activation: tuple[str, str]) -> Tensor:
    """A value of ACTIVATIONS applied to x."""
    name, algorithm = activation
    return functional.gelu(x, approximate=algorithm) if name == "gelu" else _PLAIN[name](x)
