"""Both attention functions over packed rows equal plain attention row by row, with and without a
window.

The GPU path is run here with a stand-in for torch's operator that computes each row alone from the
cumulative lengths, so its arguments (lengths, causal flag, window, grouped heads, one query a row)
are checked without a GPU.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from pipeline.embed import attention as packed_attention
from pipeline.embed import loading, padded
from pipeline.embed.attention import attention_for, flash_problem, pack
from pipeline.embed.loading import load_engine
from pipeline.embed.sizes import Sizes
from pipeline.errors import ModelError
from pipeline.job.engine_options import EngineOptions
from pipeline.job.model.store import resolve
from tests.support.model_dirs import bert_mean

LENGTHS = np.array([37, 37, 9, 9, 9, 4, 4, 1])


def row_by_row(q, k, v, starts_q, starts_k, left, right):
    """softmax(q kᵀ / √D) v of each row in float64, heads repeated. A query sees the keys from
    `left` before it to `right` behind it (negative: all), counted from the end of the row."""
    out = []
    for i in range(len(starts_q) - 1):
        a = q[starts_q[i] : starts_q[i + 1]].double()
        b, c = (x[starts_k[i] : starts_k[i + 1]].double() for x in (k, v))
        b, c = (x.repeat_interleave(a.shape[1] // x.shape[1], dim=1) for x in (b, c))
        scores = torch.einsum("qhd,khd->hqk", a, b) / a.shape[2] ** 0.5
        n_q, n_k = scores.shape[1:]
        behind = torch.arange(n_k) - torch.arange(n_q)[:, None] - (n_k - n_q)
        hidden = ((behind > right) & (right >= 0)) | ((-behind > left) & (left >= 0))
        scores = scores.masked_fill(hidden, -torch.inf)
        out.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), c))
    return torch.cat(out).to(q.dtype)


def flash(
    q, k, v, starts_q, starts_k, longest_q, longest_k, dropout, causal, debug, *,
    window_size_left=None, window_size_right=None,
):  # fmt: skip
    """A stand-in for torch's operator, with the meaning of its arguments."""
    for starts, longest in ((starts_q, longest_q), (starts_k, longest_k)):
        assert starts.dtype == torch.int32
        assert int(starts.diff().max()) == longest
    assert dropout == 0
    assert not debug
    left = -1 if window_size_left is None else window_size_left
    right = 0 if causal else -1 if window_size_right is None else window_size_right
    return row_by_row(q, k, v, starts_q, starts_k, left, right), None, None, None, None


@pytest.mark.parametrize("window", [None, 1, 2, 4, 5, 9, 20, 50])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_token_sees_its_row_and_window_and_nothing_else(
    monkeypatch, device, kv_heads, causal, window
):
    monkeypatch.setattr(packed_attention, "_BLOCK_TOKENS", 16)
    check(monkeypatch, device, kv_heads, causal, window, pooled=False)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_one_token_a_row_sees_its_whole_row(monkeypatch, device, kv_heads, causal):
    check(monkeypatch, device, kv_heads, causal, None, pooled=True)


def check(monkeypatch, device, kv_heads, causal, window, pooled):
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)])
    batch = pack(np.zeros(offsets[-1], np.int32), offsets, np.arange(LENGTHS.size), "cpu")
    generator = torch.Generator().manual_seed(0)
    n_q = LENGTHS.size if pooled else offsets[-1]
    q = torch.randn(n_q, 4, 24, generator=generator)
    k, v = torch.randn(2, offsets[-1], kv_heads, 24, generator=generator)
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", flash)
    starts_q = np.arange(LENGTHS.size + 1) if pooled else offsets
    left = -1 if window is None else window - 1
    right = 0 if causal and not pooled else left
    expected = row_by_row(q, k, v, starts_q, offsets, left, right)
    mixed = attention_for(device)(q, k, v, batch, causal, window, pooled=pooled)
    # 1e-5: float32 against float64 sums of at most 24 terms of size one
    torch.testing.assert_close(mixed, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("spoiled", [math.nan, math.inf])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("causal", [False, True])
def test_what_is_not_finite_stays_in_its_row_where_rows_are_apart(causal, window, spoiled):
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)])
    rows = np.arange(LENGTHS.size)
    batch = pack(np.zeros(offsets[-1], np.int32), offsets, rows, "cpu").apart()
    q, k, v = torch.randn(3, offsets[-1], 2, 8, generator=torch.Generator().manual_seed(0))
    sound = attention_for("cpu")(q, k, v, batch, causal, window)
    for x in (k, v):
        x[offsets[2] : offsets[3]] = spoiled
    mixed = attention_for("cpu")(q, k, v, batch, causal, window)
    others = np.r_[: offsets[2], offsets[3] : offsets[-1]]
    torch.testing.assert_close(mixed[others], sound[others], atol=1e-6, rtol=1e-5)
    assert not mixed[offsets[2] : offsets[3]].isfinite().any()


@pytest.mark.parametrize("head_dim", [64, 112, 128, 256])
def test_a_gpu_on_which_flash_attention_is_right_has_no_problem(monkeypatch, head_dim):
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", flash)
    for is_causal, windowed in itertools.product((False, True), repeat=2):
        sizes = sizes_of(head_dim, is_causal, windowed)
        assert flash_problem(sizes, torch.bfloat16, "cpu") is None


def test_flash_attention_that_fails_or_is_wrong_is_a_reason_for_padding(monkeypatch):
    sizes = sizes_of(64, is_causal=True, windowed=True)
    # torch has no such kernel for a CPU, as it has none for old GPUs
    assert "packed attention does not run on this GPU" in flash_problem(
        sizes, torch.bfloat16, "cpu"
    )

    def without_window(*arguments, window_size_left=None, window_size_right=None):
        return flash(*arguments)

    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", without_window)
    assert "gives other results" in flash_problem(sizes, torch.bfloat16, "cpu")
    assert flash_problem(sizes_of(64, True, False), torch.bfloat16, "cpu") is None


def test_a_gpu_with_such_a_problem_is_served_padded(monkeypatch, tmp_path):
    model = resolve(str(bert_mean(tmp_path / "made")))
    options = EngineOptions.of(model, device="cuda", dtype="bfloat16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(loading, "flash_problem", lambda *_: "no kernel")
    monkeypatch.setattr(padded, "PaddedEngine", lambda *_: "padded")
    assert load_engine(model, options) == "padded"
    with pytest.raises(ModelError, match="cannot run this model: no kernel"):
        load_engine(model, dataclasses.replace(options, engine="packed"))


def sizes_of(head_dim, is_causal, windowed):
    heads = {"heads": 4, "kv_heads": 2, "head_dim": head_dim}
    others = {"vocab": 9, "hidden": 8, "inner": 8, "layers": 1, "eps": 1e-6}
    return Sizes(
        **heads, **others, activation="gelu", is_causal=is_causal, windowed=(windowed,), window=9
    )


def test_packing_gathers_rows_positions_and_stretches_of_equal_length():
    lengths = np.array([2, 5, 3, 5])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    batch = pack(np.arange(15, dtype=np.int32), offsets, np.array([1, 3, 2, 0]), "cpu")
    assert batch.ids.tolist() == [2, 3, 4, 5, 6, 10, 11, 12, 13, 14, 7, 8, 9, 0, 1]
    assert batch.positions.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1, 2, 0, 1]
    assert batch.starts.tolist() == [0, 5, 10, 13, 15]
    assert [stretch[:3] for stretch in batch.stretches] == [(0, 2, 5), (2, 1, 3), (3, 1, 2)]
    assert batch.longest == 5


def test_a_row_meets_whole_vectors_of_keys_where_enough_tokens_follow():
    lengths = np.array([20, 20, 20, 16, 6, 6])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    batch = pack(np.zeros(88, np.int32), offsets, np.arange(6), "cpu")
    assert batch.stretches == ((0, 3, 20, 32), (3, 1, 16, 16), (4, 2, 6, 6))
