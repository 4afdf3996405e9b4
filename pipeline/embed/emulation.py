"""Dtypes that this CPU can only emulate, measured before they are believed.

In: a dtype. Out: how many times as long as in float32 a linear layer takes in it. Cost: some 20 ms
where the CPU has it, a second where it does not; once a process.
"""

from __future__ import annotations

from functools import cache

import torch

from pipeline.embed.int8 import Int8Linear
from pipeline.embed.linear import Linear, shortest_s

__all__ = ["EMULATED", "times_float32"]

EMULATED = 3.0
"""A dtype whose products take this many times as long as in float32 is emulated: real support gives
0.3 to 1.5, emulation 6 to 60 (bfloat16 in AVX2: 6 by oneDNN, 48 by MKL)."""

_PROBE = 512
"""Width and tokens of the product."""


@cache
def times_float32(dtype: str) -> float:
    """dtype: bfloat16 or int8."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, _PROBE, _PROBE, generator=generator)
    plain = Linear(weight, None)
    narrow = x if dtype == "int8" else x.to(getattr(torch, dtype))
    other = Int8Linear(weight, None) if dtype == "int8" else Linear(weight.to(narrow), None)
    float32_s, other_s = shortest_s(lambda: plain(x), lambda: other(narrow))
    return other_s / float32_s
