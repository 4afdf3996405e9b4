"""Attention over packed rows: every token sees the tokens of its own row and no others, without
padding or mask.

In: q (Tq, Hq, D), k and v (T, Hkv, D) of one bucket, any strides with a contiguous last axis. Out:
(Tq, Hq, D). Method: on a CPU, `scaled_dot_product_attention` once for each stretch of rows of equal
length (rows come sorted by length, so a stretch is a plain view), in blocks of queries where rows
are longer than a window; on a GPU, torch's variable-length flash attention over cumulative lengths.
The CPU kernel computes what is left over of whole vectors number by number, so a row there meets a
multiple of 16 keys, of which those of the next row are hidden (benchmarks/LOG.md, 2026-11-26).
Cost on a CPU: one call for each distinct length; a bucket of a large part holds one to three.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import scaled_dot_product_attention

from pipeline.embed.buckets import Rows, flat_index
from pipeline.embed.engine import to_device
from pipeline.embed.memory import is_out_of_memory
from pipeline.embed.sizes import Sizes

__all__ = ["Attention", "PackedBatch", "attention_for", "flash_problem", "pack"]


class Stretch(NamedTuple):
    """Rows of equal length, one behind the other. n_keys: how many a row meets; those behind its
    own tokens are hidden."""

    first_row: int
    n_rows: int
    length: int
    n_keys: int


@dataclass(frozen=True)
class PackedBatch:
    """The tokens of n rows, one row after the other, and the place of each row. T tokens in all."""

    ids: torch.Tensor  # (T,) int32
    positions: torch.Tensor  # (T,) int32, counted from 0 in every row
    starts: torch.Tensor  # (n + 1,) int32, cumulative lengths from 0
    firsts: torch.Tensor  # (n + 1,) int32, 0..n: cumulative lengths of one token a row
    longest: int
    stretches: tuple[Stretch, ...]  # empty on a GPU

    @property
    def lengths(self) -> torch.Tensor:
        return self.starts[1:] - self.starts[:-1]  # (n,)

    def apart(self) -> PackedBatch:
        """The same rows, each of which meets no keys but its own: no mask hides a NaN."""
        return replace(self, stretches=tuple(s._replace(n_keys=s.length) for s in self.stretches))


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


def _stretches(lengths: NDArray[np.int64]) -> tuple[Stretch, ...]:
    """Rows at the end, behind which too few tokens follow, are stretches of their own."""
    stretches = []
    n_left = int(lengths.sum())
    first = np.flatnonzero(np.diff(lengths, prepend=-1))
    count = np.diff(first, append=lengths.size)
    for row, n_rows, length in zip(
        first.tolist(), count.tolist(), lengths[first].tolist(), strict=True
    ):
        n_keys = _whole_vectors(length)
        n_filled = min(n_rows, max(0, (n_left - n_keys) // length + 1))
        stretches += [
            Stretch(row, n_filled, length, n_keys),
            Stretch(row + n_filled, n_rows - n_filled, length, length),
        ]
        n_left -= n_rows * length
    return tuple(stretch for stretch in stretches if stretch.n_rows)


def _whole_vectors(n_numbers: int) -> int:
    return -(-n_numbers // _VECTOR_NUMBERS) * _VECTOR_NUMBERS


Attention = Callable[..., torch.Tensor]
"""attention(q, k, v, batch, causal, window, pooled=bool). window: a token sees none that are that
many tokens or more away, or None. pooled: q has one token a row, (n, H, D), which sees its whole
row."""

_BLOCK_TOKENS = 256
"""Queries that share a mask where a text is longer than the window."""

_VECTOR_NUMBERS = 16
"""float32 numbers of the widest vectors of a CPU (AVX-512)."""


def attention_for(device: str) -> Attention:
    """The function for a CPU, or the one for a GPU."""
    return _equal_lengths if device == "cpu" else _variable_length


def _equal_lengths(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    batch: PackedBatch,
    causal: bool,
    window: int | None,
    *,
    pooled: bool = False,
) -> torch.Tensor:
    mixed: list[torch.Tensor] = []
    token = 0
    for row, n_rows, length, n_keys in batch.stretches:
        first, n_queries = (row, 1) if pooled else (token, length)
        own_q = _rows_of(q, first, n_rows, n_queries, n_queries)
        own_k, own_v = (_rows_of(x, token, n_rows, length, n_keys) for x in (k, v))
        if window is not None and window < length:
            out = _in_blocks(own_q, own_k, own_v, length, causal, window)
        else:
            is_causal = causal and not pooled  # such a query sees no key behind its row anyway
            hidden = _hidden(length, n_keys, q.dtype) if n_keys > length and not is_causal else None
            out = scaled_dot_product_attention(
                own_q, own_k, own_v, hidden, is_causal=is_causal, enable_gqa=True
            )
        mixed.append(out.transpose(1, 2).flatten(0, 1))  # (tokens, H, D)
        token += n_rows * length
    return mixed[0] if len(mixed) == 1 else torch.cat(mixed)


def _rows_of(x: torch.Tensor, first: int, n_rows: int, pitch: int, n_keys: int) -> torch.Tensor:
    """(rows, heads, keys, D): tokens of each row from its start on. x: (T, heads, D), first: where
    the rows start, pitch: from row to row. A single call of torch, made for each stretch."""
    token, head, number = x.stride()
    shape = (n_rows, x.shape[1], n_keys, x.shape[2])
    strides = (pitch * token, head, token, number)
    return x.as_strided(shape, strides, x.storage_offset() + first * token)


@lru_cache(maxsize=256)
def _hidden(length: int, n_keys: int, dtype: torch.dtype) -> torch.Tensor:
    """(1, n_keys), added to scores; a bool mask would be made into it in every call."""
    behind = torch.arange(length, n_keys)
    return torch.zeros(1, n_keys, dtype=dtype).index_fill_(1, behind, -torch.inf)


def _in_blocks(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, length: int, causal: bool, window: int
) -> torch.Tensor:
    """q: (rows, H, length, D), k and v: (rows, Hkv, keys, D). Each block of queries meets the keys
    that it can see, so the cost grows with tokens × window."""
    blocks = []
    for start in range(0, length, _BLOCK_TOKENS):
        stop = min(start + _BLOCK_TOKENS, length)
        first = max(0, start - window + 1) // _VECTOR_NUMBERS * _VECTOR_NUMBERS
        last = min(k.shape[2], _whole_vectors(stop if causal else stop + window - 1))
        # counted from the block's start, so that most blocks share a mask
        keys = range(first - start, last - start)
        visible = _visible(range(stop - start), keys, min(length, last) - start, window, causal)
        block = q[:, :, start:stop], k[:, :, first:last], v[:, :, first:last]
        blocks.append(scaled_dot_product_attention(*block, visible, enable_gqa=True))
    return torch.cat(blocks, dim=2)


@lru_cache(maxsize=64)
def _visible(
    queries: range, keys: range, end: int, window: int, causal: bool = False
) -> torch.Tensor:
    """(queries, keys) bool: which keys before `end` a query sees."""
    key = torch.arange(keys.start, keys.stop)
    distance = torch.arange(queries.start, queries.stop)[:, None] - key
    return (key < end) & (distance < window) & (distance > (-1 if causal else -window))


def _variable_length(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    batch: PackedBatch,
    causal: bool,
    window: int | None,
    *,
    pooled: bool = False,
) -> torch.Tensor:
    """torch's flash attention (Dao 2023) over cumulative lengths, in float16 and bfloat16 only. The
    operator itself, because `varlen_attn` around it has had three signatures, and takes a slower
    kernel on some GPUs from torch 2.14 on."""
    starts = batch.firsts if pooled else batch.starts
    longest = 1 if pooled else batch.longest
    reach = None if window is None else window - 1
    mixed, *_ = torch.ops.aten._flash_attention_forward(
        *(q, k, v, starts, batch.starts, longest, batch.longest),
        *(0.0, causal and not pooled and window is None, False),
        window_size_left=reach,
        window_size_right=0 if causal and reach is not None else reach,
    )
    result: torch.Tensor = mixed
    return result


def flash_problem(sizes: Sizes, dtype: torch.dtype, device: str) -> str | None:
    """Why `_variable_length` cannot serve a model on this device: it fails there, or gives other
    results than plain attention. None where it can. Some milliseconds. Raises where memory is
    short, which says nothing of the GPU."""
    lengths = np.array([300, 70, 5, 5, 3, 1])  # the kernel works in blocks of up to 128 tokens
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.zeros(offsets[-1], np.int32)
    rows = np.arange(lengths.size)
    plain, packed = (pack(ids, offsets, rows, place) for place in ("cpu", device))
    chance = torch.Generator().manual_seed(0)
    heads = (sizes.heads, sizes.kv_heads, sizes.kv_heads)
    qkv = [
        torch.randn(len(ids), n, sizes.head_dim, generator=chance).to(dtype).float() for n in heads
    ]
    window = 4 if any(sizes.windowed) else None
    for reach, is_pooled in ((None, False), (window, False), (None, True)):
        q = qkv[0][offsets[:-1]] if is_pooled else qkv[0]
        k, v = qkv[1:]
        expected = _equal_lengths(q, k, v, plain, sizes.is_causal, reach, pooled=is_pooled)
        there = [x.to(device, dtype) for x in (q, k, v)]
        attention: Attention = _variable_length
        try:
            mixed = attention(*there, packed, sizes.is_causal, reach, pooled=is_pooled)
            is_right = torch.allclose(mixed.float().cpu(), expected, rtol=0.03, atol=0.03)
        except (AttributeError, NotImplementedError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            return f"packed attention does not run on this GPU: {str(error).partition(chr(10))[0]}"
        if not is_right:
            return f"packed attention by torch {torch.__version__} gives other results on this GPU"
    return None
