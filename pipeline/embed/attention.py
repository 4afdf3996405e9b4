"""Attention over packed rows: every token sees the tokens of its own row and no others, without
padding or mask.

In: q (Tq, Hq, D), k and v (T, Hkv, D) of one bucket, any strides with a contiguous last axis. Out:
(Tq, Hq, D). Method: on a CPU, `scaled_dot_product_attention` once for each stretch of rows of equal
length (rows come sorted by length, so a stretch is a plain view); on a GPU, torch's variable-length
flash attention over cumulative lengths. Cost on a CPU: one call for each distinct length; a bucket
of a large part holds one to three.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import scaled_dot_product_attention

from pipeline.embed.buckets import Rows, flat_index
from pipeline.embed.engine import to_device

__all__ = ["Attention", "PackedBatch", "attention_for", "pack"]


@dataclass(frozen=True)
class PackedBatch:
    """The tokens of n rows, one row after the other, and the place of each row. T tokens in all."""

    ids: torch.Tensor  # (T,) int32
    positions: torch.Tensor  # (T,) int32, counted from 0 in every row
    starts: torch.Tensor  # (n + 1,) int32, cumulative lengths from 0
    firsts: torch.Tensor  # (n + 1,) int32, 0..n: cumulative lengths of one token a row
    longest: int
    # (first row, rows, length) of stretches of equal length; empty on a GPU
    stretches: tuple[tuple[int, int, int], ...]

    @property
    def lengths(self) -> torch.Tensor:
        return self.starts[1:] - self.starts[:-1]  # (n,)


def pack(
    ids: NDArray[np.int32], offsets: NDArray[np.int64], rows: Rows, device: str
) -> PackedBatch:
    """Gather `rows` (sorted by length) of the ragged ids, with one copy to the device that nothing
    waits for."""
    indices, positions = flat_index(offsets, rows)
    lengths = offsets[rows + 1] - offsets[rows]
    sizes = [indices.size, indices.size, rows.size + 1, rows.size + 1]
    packed = np.concatenate(
        (ids[indices], positions, [0], np.cumsum(lengths), np.arange(rows.size + 1)),
        dtype=np.int32,
        casting="same_kind",
    )
    tokens, inside, starts, firsts = to_device(packed, device).split(sizes)
    stretches = _stretches(lengths) if device == "cpu" else ()
    return PackedBatch(tokens, inside, starts, firsts, int(lengths.max()), stretches)


def _stretches(lengths: NDArray[np.int64]) -> tuple[tuple[int, int, int], ...]:
    first = np.flatnonzero(np.diff(lengths, prepend=-1))
    count = np.diff(first, append=lengths.size)
    return tuple(zip(first.tolist(), count.tolist(), lengths[first].tolist(), strict=True))


Attention = Callable[..., torch.Tensor]
"""attention(q, k, v, batch, causal=bool, pooled=bool): `pooled` means that q has one token a row,
(n, Hq, D), which sees its whole row."""


def attention_for(device: str) -> Attention:
    return _equal_lengths if device == "cpu" else _variable_length()


def _equal_lengths(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    batch: PackedBatch,
    *,
    causal: bool,
    pooled: bool = False,
) -> torch.Tensor:
    repeat = q.shape[1] // k.shape[1]
    mixed: list[torch.Tensor] = []
    token = 0
    for row, n_rows, length in batch.stretches:
        kv = slice(token, token + n_rows * length)
        queries = q[row : row + n_rows] if pooled else q[kv]
        own_q, own_k, own_v = (
            x.unflatten(0, (n_rows, -1)).transpose(1, 2)  # (rows, H, tokens, D)
            for x in (queries, k[kv], v[kv])
        )
        # the CPU kernel knows no grouped heads: `enable_gqa` would leave it for a slow one
        if repeat > 1:
            own_k, own_v = (x.repeat_interleave(repeat, dim=1) for x in (own_k, own_v))
        out = scaled_dot_product_attention(own_q, own_k, own_v, is_causal=causal and not pooled)
        mixed.append(out.transpose(1, 2).flatten(0, 1))  # (tokens, H, D)
        token = kv.stop
    return mixed[0] if len(mixed) == 1 else torch.cat(mixed)


def _variable_length() -> Attention:
    """torch's variable-length flash attention, in float16 and bfloat16 only."""
    # imported here: it brings in torch's compiler, seconds that a CPU does without
    from torch.nn.attention.varlen import varlen_attn

    parameters = inspect.signature(varlen_attn).parameters
    # torch 2.10 takes is_causal, 2.11 and later window_size. Later ones take grouped heads only
    # with enable_gqa; their kernel has always taken them.
    if_causal: dict[str, Any] = (
        {"is_causal": True} if "is_causal" in parameters else {"window_size": (-1, 0)}
    )
    if_grouped: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in parameters else {}

    def attention(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        batch: PackedBatch,
        *,
        causal: bool,
        pooled: bool = False,
    ) -> torch.Tensor:
        arguments = {
            **(if_causal if causal and not pooled else {}),
            **(if_grouped if q.shape[1] > k.shape[1] else {}),
        }
        starts = batch.firsts if pooled else batch.starts
        longest = 1 if pooled else batch.longest
        mixed = varlen_attn(q, k, v, starts, batch.starts, longest, batch.longest, **arguments)
        return mixed if isinstance(mixed, torch.Tensor) else mixed[0]

    return attention
