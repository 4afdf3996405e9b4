"""Rows of float32 rounded to 8 bits, in blocks that stay in the cache.

In: x (T, in) float32. Out: int8 (T, in), -127 … 127, and what one step is worth: a scale of each
row, or one step for all rows that it fits. A row is rounded alike whatever it is batched with.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

__all__ = ["BLOCK_ROWS", "MOST_STEPS", "SMALLEST", "Rounded", "blocks", "by_row", "in_steps"]

BLOCK_ROWS = 256  # so that the results of one step are still in the cache at the next
MOST_STEPS = 127
FEWEST_STEPS = 16
"""Of the largest number of a row that shares its step: it loses at most two bits."""
SMALLEST = 1e-30  # a row of zeros has no scale of its own
Rounded = tuple[torch.Tensor, torch.Tensor]
"""int8 (T, in), -127 … 127, and the scale of each row, (T, 1)."""


def blocks(n_rows: int) -> Iterator[slice]:
    return (slice(start, start + BLOCK_ROWS) for start in range(0, n_rows, BLOCK_ROWS))


def by_row(x: torch.Tensor) -> Rounded:
    """Each row by its own scale. x is overwritten."""
    # abs() would write a copy
    largest = torch.maximum(x.amax(1, keepdim=True), x.amin(1, keepdim=True).neg_())
    scale = largest.clamp_min_(SMALLEST) / MOST_STEPS
    return x.mul_(scale.reciprocal()).round_().to(torch.int8), scale


def in_steps(
    x: torch.Tensor, steps_of_1: torch.Tensor, steps_off: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """x * steps_of_1 + steps_off, (in,) each. Returns int8 (T, in), and the indices of rows that do
    not fit, whose numbers there mean nothing."""
    values = torch.empty(x.shape, dtype=torch.int8)
    high, low = torch.empty(2, len(x), 1)
    for block in blocks(len(x)):
        steps = torch.addcmul(steps_off, x[block], steps_of_1)
        torch.amax(steps, 1, keepdim=True, out=high[block])
        torch.amin(steps, 1, keepdim=True, out=low[block])
        values[block] = steps.round_()
    largest = torch.maximum(high, low.neg_())[:, 0]
    fits = (largest >= FEWEST_STEPS) & (largest < MOST_STEPS + 0.5)  # not where it is NaN
    return values, fits.logical_not_().nonzero()[:, 0]
