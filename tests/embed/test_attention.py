"""Both attention functions over packed rows equal plain attention row by row, for every signature
torch has had.

The GPU path is run here with a stand-in for torch's kernel that computes each row alone from the
cumulative lengths, so its arguments (lengths, causal flag or window, grouped heads, one query a
row) are checked without a GPU.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.attention import varlen

from pipeline.embed import attention as packed_attention
from pipeline.embed.attention import attention_for, pack

LENGTHS = np.array([9, 9, 9, 4, 4, 1])


def row_by_row(q, k, v, starts_q, starts_k, causal):
    """softmax(q kᵀ / √D) v of each row in float64, heads repeated, causal counted from the end of
    the row."""
    out = []
    for i in range(len(starts_q) - 1):
        a = q[starts_q[i] : starts_q[i + 1]].double()
        b, c = (x[starts_k[i] : starts_k[i + 1]].double() for x in (k, v))
        b, c = (x.repeat_interleave(a.shape[1] // x.shape[1], dim=1) for x in (b, c))
        scores = torch.einsum("qhd,khd->hqk", a, b) / a.shape[2] ** 0.5
        if causal:
            n_q, n_k = scores.shape[1:]
            scores = scores.masked_fill(torch.ones(n_q, n_k).tril(n_k - n_q) == 0, -torch.inf)
        out.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), c))
    return torch.cat(out).to(q.dtype)


def torch_2_10(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None
):
    check(cu_seq_q, max_q)
    return row_by_row(query, key, value, cu_seq_q, cu_seq_k, is_causal)


def torch_2_11(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)
):
    check(cu_seq_q, max_q)
    return row_by_row(query, key, value, cu_seq_q, cu_seq_k, window_size == (-1, 0))


def torch_2_12(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size=(-1, -1), enable_gqa=False
):
    assert enable_gqa == (key.shape[1] != query.shape[1])
    check(cu_seq_q, max_q)
    return row_by_row(query, key, value, cu_seq_q, cu_seq_k, window_size == (-1, 0))


def check(starts, longest):
    assert starts.dtype == torch.int32
    assert int(starts.diff().max()) == longest


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(
    "kernel", [None, torch_2_10, torch_2_11, torch_2_12], ids=["cpu", "2.10", "2.11", "2.12"]
)
def test_every_row_sees_itself_and_nothing_else(monkeypatch, kernel, kv_heads, causal, pooled):
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)])
    batch = pack(np.zeros(offsets[-1], np.int32), offsets, np.arange(LENGTHS.size), "cpu")
    generator = torch.Generator().manual_seed(0)
    n_q = LENGTHS.size if pooled else offsets[-1]
    q = torch.randn(n_q, 4, 24, generator=generator)
    k, v = torch.randn(2, offsets[-1], kv_heads, 24, generator=generator)
    if kernel is None:
        attend = attention_for("cpu")
    else:
        monkeypatch.setattr(varlen, "varlen_attn", kernel)
        attend = packed_attention._variable_length()
    starts_q = np.arange(LENGTHS.size + 1) if pooled else offsets
    expected = row_by_row(q, k, v, starts_q, offsets, causal and not pooled)
    # 1e-5: float32 against float64 sums of at most 24 terms of size one
    torch.testing.assert_close(
        attend(q, k, v, batch, causal=causal, pooled=pooled), expected, atol=1e-5, rtol=1e-5
    )


def test_packing_gathers_rows_positions_and_stretches_of_equal_length():
    lengths = np.array([2, 5, 3, 5])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    batch = pack(np.arange(15, dtype=np.int32), offsets, np.array([1, 3, 2, 0]), "cpu")
    assert batch.ids.tolist() == [2, 3, 4, 5, 6, 10, 11, 12, 13, 14, 7, 8, 9, 0, 1]
    assert batch.positions.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1, 2, 0, 1]
    assert batch.starts.tolist() == [0, 5, 10, 13, 15]
    assert batch.stretches == ((0, 2, 5), (2, 1, 3), (3, 1, 2))
    assert batch.longest == 5
