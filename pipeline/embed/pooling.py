"""Rows of hidden states → one vector a row, over packed tokens.

In: hidden (T, D) of one bucket. Out: pooled (n, D × modes) float32. Source: Reimers & Gurevych
2019, §3 (cls, mean, max); Muennighoff 2022, §3.1 (weighted mean); results are those of
sentence-transformers' Pooling on padded rows, the prompt left out where the directory says so. Sums
are taken in float32 in token order: the same row gives the same vector in every bucket.
Cost: one pass over hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.embed.attention import PackedBatch

__all__ = ["pool", "single_token_index"]


def single_token_index(batch: PackedBatch, mode: str, prompt_tokens: int) -> Tensor:
    """(n,) int64: the packed token that stands for each row, for cls and last_token."""
    if mode == "last_token":
        return batch.starts[1:].long() - 1
    beyond = torch.where(batch.lengths > prompt_tokens, prompt_tokens, 0)
    return batch.starts[:-1].long() + beyond


def keep_real(vectors: Tensor, batch: PackedBatch, mode: str, prompt_tokens: int) -> Tensor:
    """`vectors` with zeros for rows that are all prompt, where the last token is pooled: that is
    what sentence-transformers gives."""
    if mode != "last_token" or not prompt_tokens:
        return vectors
    return vectors * (batch.lengths > prompt_tokens).unsqueeze(1).to(vectors.dtype)


def pool(hidden: Tensor, batch: PackedBatch, pooling: str, prompt_tokens: int) -> Tensor:
    """hidden: (T, D) of any float dtype. pooling: modes joined by "+". Returns their vectors one
    after the other, (n, D × modes) float32."""
    return torch.cat(
        [_pool_one(hidden, batch, mode, prompt_tokens) for mode in pooling.split("+")], dim=1
    )


def _pool_one(hidden: Tensor, batch: PackedBatch, mode: str, prompt_tokens: int) -> Tensor:
    if mode in ("cls", "last_token"):
        picked = hidden[single_token_index(batch, mode, prompt_tokens)].float()  # (n, D)
        return keep_real(picked, batch, mode, prompt_tokens)
    tokens = hidden.float()  # (T, D)
    counted = (batch.positions >= prompt_tokens).unsqueeze(1)  # (T, 1)
    if mode == "max":
        return _per_row(
            tokens.masked_fill(~counted, -torch.inf) if prompt_tokens else tokens, batch, "max"
        )
    n_counted = (batch.lengths - prompt_tokens).clamp(min=0).unsqueeze(1).float()  # (n, 1)
    if mode == "weighted_mean":
        weights = (batch.positions + 1).unsqueeze(1).float() * counted  # (T, 1)
        divisor = _per_row(weights, batch, "sum").clamp(min=1e-9)
        return _per_row(tokens * weights, batch, "sum") / divisor
    summed = _per_row(tokens * counted if prompt_tokens else tokens, batch, "sum")  # (n, D)
    divisor = n_counted.clamp(min=1e-9)
    return summed / (divisor.sqrt() if mode == "mean_sqrt_len" else divisor)


def _per_row(tokens: Tensor, batch: PackedBatch, reduce: str) -> Tensor:
    # unsafe=True skips a check of the lengths that would wait for the device
    return torch.segment_reduce(tokens, reduce, lengths=batch.lengths.long(), axis=0, unsafe=True)
