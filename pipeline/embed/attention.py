"""Attention over packed rows: every token sees the tokens of its own row and no others, without
padding or mask.

In: q (Tq, Hq, D), k and v (T, Hkv, D) of one bucket, any strides with a contiguous last axis. Out:
(Tq, Hq, D). Method: on a CPU, `scaled_dot_product_attention` once per run of rows of equal length
(rows come sorted by length, so a run is a plain view); on a GPU, torch's variable-length flash
attention over cumulative lengths. Cost on a CPU: one call per distinct length; a bucket of a large
part holds one to three.
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
    """The tokens of n rows, one row after the other, and where each row lies. T tokens in all."""

    ids: torch.Tensor  # (T,) int32
    positions: torch.Tensor  # (T,) int32, counted from 0 in every row
    starts: torch.Tensor  # (n + 1,) int32, cumulative lengths from 0
    firsts: torch.Tensor  # (n + 1,) int32, 0..n: cumulative lengths of one token a row
    longest: int
    # (first row, rows, length) of runs of equal length; empty on a GPU
    runs: tuple[tuple[int, int, int], ...]

    @property
    def n_rows(self) -> int:
        return int(self.starts.shape[0]) - 1

    @property
    def lengths(self) -> torch.Tensor:
        return self.starts[1:] - self.starts[:-1]  # (n,)


def pack(
    ids: NDArray[np.int32], offsets: NDArray[np.int64], rows: Rows, device: str
) -> PackedBatch:
    """Gather `rows` (sorted by length) of the ragged ids. One copy to the device, nothing waits."""
    where, positions = flat_index(offsets, rows)
    lengths = offsets[rows + 1] - offsets[rows]
    n_tokens, n_rows = where.size, rows.size
    parts = np.empty(2 * n_tokens + 2 * (n_rows + 1), dtype=np.int32)
    parts[:n_tokens] = ids[where]
    parts[n_tokens : 2 * n_tokens] = positions
    parts[2 * n_tokens] = 0
    np.cumsum(lengths, out=parts[2 * n_tokens + 1 : 2 * n_tokens + 1 + n_rows])
    parts[2 * n_tokens + 1 + n_rows :] = np.arange(n_rows + 1)
    tokens, inside, starts, firsts = to_device(parts, device).split(
        [n_tokens, n_tokens, n_rows + 1, n_rows + 1]
    )
    runs = _runs(lengths) if device == "cpu" else ()
    return PackedBatch(tokens, inside, starts, firsts, int(lengths.max()), runs)


def _runs(lengths: NDArray[np.int64]) -> tuple[tuple[int, int, int], ...]:
    first = np.flatnonzero(np.diff(lengths, prepend=-1))
    count = np.diff(first, append=lengths.size)
    return tuple(zip(first.tolist(), count.tolist(), lengths[first].tolist(), strict=True))


Attention = Callable[..., torch.Tensor]
"""attention(q, k, v, batch, causal=bool, pooled=bool): `pooled` means q has one token a row, (n,
Hq, D), which sees its whole row.
"""


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
    for row, n_rows, length in batch.runs:
        kv = slice(token, token + n_rows * length)
        mine, q_length = (slice(row, row + n_rows), 1) if pooled else (kv, length)
        own_q, own_k, own_v = (
            x.unflatten(0, (n_rows, each)).transpose(1, 2)  # (rows, H, each, D)
            for x, each in ((q[mine], q_length), (k[kv], length), (v[kv], length))
        )
        # the CPU kernel knows no grouped heads: `enable_gqa` would leave it for a slow one
        if repeat > 1:
            own_k, own_v = (x.repeat_interleave(repeat, dim=1) for x in (own_k, own_v))
        out = scaled_dot_product_attention(own_q, own_k, own_v, is_causal=causal and not pooled)
        mixed.append(out.transpose(1, 2).flatten(0, 1))  # (tokens, H, D)
        token = kv.stop
    return mixed[0] if len(mixed) == 1 else torch.cat(mixed)


def _variable_length() -> Attention:
    """Flash attention of torch ≥ 2.10 (`varlen_attn`), else of older ones by its private name. fp16
    and bf16 only.
    """
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return _private_flash
    known = inspect.signature(varlen_attn).parameters
    # 2.10 takes is_causal, 2.11 window_size instead, and later ones grouped heads only when told;
    # the kernel always did.
    is_causal: dict[str, Any] = (
        {"is_causal": True} if "is_causal" in known else {"window_size": (-1, 0)}
    )
    has_groups: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in known else {}

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
            **(is_causal if causal and not pooled else {}),
            **(has_groups if q.shape[1] > k.shape[1] else {}),
        }
        starts, longest = (batch.firsts, 1) if pooled else (batch.starts, batch.longest)
        mixed = varlen_attn(q, k, v, starts, batch.starts, longest, batch.longest, **arguments)
        return mixed if isinstance(mixed, torch.Tensor) else mixed[0]

    return attention


def _private_flash(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    batch: PackedBatch,
    *,
    causal: bool,
    pooled: bool = False,
) -> torch.Tensor:
    starts, longest = (batch.firsts, 1) if pooled else (batch.starts, batch.longest)
    mixed: torch.Tensor = torch.ops.aten._flash_attention_forward(
        q, k, v, starts, batch.starts, longest, batch.longest, 0.0, causal and not pooled, False
    )[0]
    return mixed
