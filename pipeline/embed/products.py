"""Products of oneDNN with their activation, sum or factor inside, and activations beside them.

In: x (T, in), and weights that `reordered` has rearranged. Out: (T, out). `linear` decides where
they are used. An activation is a value of `sizes.ACTIVATIONS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

__all__ = [
    "NO_ACTIVATION",
    "TYPICAL_TOKENS",
    "activate",
    "gated",
    "packed",
    "packed_with",
    "reordered",
]

_PLAIN: dict[str, Callable[[torch.Tensor, str], torch.Tensor]] = {
    "gelu": lambda x, algorithm: functional.gelu(x, approximate=algorithm),
    "relu": lambda x, _: functional.relu(x),
    "swish": lambda x, _: functional.silu(x),
}
NO_ACTIVATION = ("none", "")
TYPICAL_TOKENS = 2048  # oneDNN chooses its layout for a size; others work as well


def reordered(weight: torch.Tensor) -> Any:
    return torch.ops.mkldnn._reorder_linear_weight(weight, TYPICAL_TOKENS)


def packed(
    x: torch.Tensor,
    weight: Any,
    bias: torch.Tensor | None,
    activation: tuple[str, str] = NO_ACTIVATION,
) -> torch.Tensor:
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
        x, weight, bias, activation[0], [], activation[1]
    )
    return result


def packed_with(
    x: torch.Tensor, other: torch.Tensor, weight: Any, bias: torch.Tensor | None, operation: str
) -> torch.Tensor:
    """operation: add | mul, of the product and `other`, which can be overwritten."""
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(
        x, other, weight, bias, operation
    )
    return result


def activate(x: torch.Tensor, activation: tuple[str, str]) -> torch.Tensor:
    """A value of ACTIVATIONS applied to x."""
    name, algorithm = activation
    return _PLAIN[name](x, algorithm)


def gated(gate_up: torch.Tensor, activation: tuple[str, str]) -> torch.Tensor:
    """(T, 2 F) -> (T, F)"""
    gate, up = gate_up.chunk(2, dim=1)
    return activate(gate, activation).mul_(up)
