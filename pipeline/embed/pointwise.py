"""The activation functions of the packed forwards, by transformers' names in config.json."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional

__all__ = ["ACTIVATIONS"]

_tanh_gelu = partial(functional.gelu, approximate="tanh")
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": functional.gelu, "gelu_new": _tanh_gelu, "gelu_pytorch_tanh": _tanh_gelu, "gelu_fast": _tanh_gelu,
    "relu": functional.relu, "silu": functional.silu, "swish": functional.silu,
}  # fmt: skip
