"""Which rows go through the model together: buckets of similar length under one token budget,
longest first.

In: token counts, int (N,). Out: row indices, one array for each bucket. The longest rows come
first, so that running out of memory shows in the first second and the last buckets are the cheap
ones. numpy only; the one Python loop is over buckets, not rows. The budget is a callable because
running out of memory lowers it between two buckets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
Offsets = NDArray[np.int64]
Rows = NDArray[np.int64]
Vectors = NDArray[np.float32]

MAX_ROWS = 65_535
"""Rows of a bucket: kernels of GPUs count them in a dimension that ends there."""


def longest_first(n_tokens: NDArray[np.integer]) -> Rows:
    """Row indices by falling token count; equal counts stay in input order. (N,) int64"""
    return np.argsort(-n_tokens.astype(np.int64), kind="stable")


def padded_buckets(
    n_tokens: NDArray[np.integer], budget_tokens: Callable[[], int], *, of_one_length: bool = False
) -> Iterator[Rows]:
    """Buckets of at most MAX_ROWS rows whose rows × longest row is ≤ `budget_tokens()` (one row at
    least). of_one_length: no bucket holds rows of different lengths, so none is padded."""
    order = longest_first(n_tokens)
    falling = -n_tokens[order].astype(np.int64)

    def stop(start: int) -> int:
        fitting = start + budget_tokens() // max(1, -int(falling[start]))
        alike = int(np.searchsorted(falling, falling[start], side="right"))
        return min(fitting, alike) if of_one_length else fitting

    return _cut(order, stop)


def packed_buckets(
    n_tokens: NDArray[np.integer], budget_tokens: Callable[[], int]
) -> Iterator[Rows]:
    """Buckets of at most MAX_ROWS rows whose sum of token counts is ≤ `budget_tokens()` (one row at
    least)."""
    order = longest_first(n_tokens)
    # tokens in front of each row, then of all
    before = np.concatenate([[0], np.cumsum(n_tokens[order], dtype=np.int64)])

    def stop(start: int) -> int:
        return int(np.searchsorted(before, before[start] + budget_tokens(), side="right")) - 1

    return _cut(order, stop)


def _cut(order: Rows, stop: Callable[[int], int]) -> Iterator[Rows]:
    """stop(start): where a bucket that starts there has to end."""
    start = 0
    while start < order.size:
        end = min(max(start + 1, stop(start)), start + MAX_ROWS)
        yield order[start:end]
        start = end


def flat_index(
    offsets: NDArray[np.int64], rows: Rows
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the tokens of `rows` in the ragged ids, and each token's position in its row.

    offsets: (N+1,) int64, rows: (n,). Returns two int64 arrays of shape (sum of token counts,).
    """
    starts = offsets[rows]
    n_tokens = offsets[rows + 1] - starts
    ends = np.cumsum(n_tokens)
    total = int(ends[-1]) if ends.size else 0
    positions = np.arange(total, dtype=np.int64) - np.repeat(ends - n_tokens, n_tokens)
    return positions + np.repeat(starts, n_tokens), positions
