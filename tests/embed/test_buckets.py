"""Buckets hold every row once, keep the budget, and come longest first; flat indices point at the
right tokens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.embed.buckets import flat_index, packed_buckets, padded_buckets

lengths = st.lists(st.integers(1, 300), max_size=60).map(np.array).map(lambda a: a.astype(np.int64))


@given(lengths, st.integers(1, 2000))
def test_padded_buckets_keep_rows_times_longest_below_the_budget(n_tokens, budget):
    buckets = list(padded_buckets(n_tokens, lambda: budget))
    assert sorted(np.concatenate([*buckets, np.array([], int)])) == list(range(n_tokens.size))
    assert all(b.size == 1 or b.size * n_tokens[b].max() <= budget for b in buckets)


@given(lengths, st.integers(1, 2000))
def test_packed_buckets_keep_the_sum_of_tokens_below_the_budget(n_tokens, budget):
    buckets = list(packed_buckets(n_tokens, lambda: budget))
    assert sorted(np.concatenate([*buckets, np.array([], int)])) == list(range(n_tokens.size))
    assert all(b.size == 1 or n_tokens[b].sum() <= budget for b in buckets)
    seen = [n for b in buckets for n in n_tokens[b]]
    assert seen == sorted(seen, reverse=True)


@pytest.mark.parametrize("cut", [padded_buckets, packed_buckets])
def test_a_budget_that_shrinks_on_the_way_holds_for_the_next_bucket(cut):
    budgets = iter([100, 20, 20, 20, 20, 20, 20])
    sizes = [bucket.size for bucket in cut(np.full(20, 10), lambda: next(budgets))]
    assert sizes == [10, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("cut", [padded_buckets, packed_buckets])
def test_a_bucket_has_no_more_rows_than_the_grid_of_a_kernel(cut):
    sizes = [bucket.size for bucket in cut(np.ones(140_000, int), lambda: 1 << 20)]
    assert sizes == [65_535, 65_535, 8_930]


@given(lengths)
def test_flat_index_is_the_concatenation_of_the_rows_ranges(n_tokens):
    offsets = np.concatenate([[0], np.cumsum(n_tokens)]).astype(np.int64)
    rows = np.random.default_rng(0).permutation(n_tokens.size)
    where, positions = flat_index(offsets, rows)
    assert where.tolist() == [t for r in rows for t in range(offsets[r], offsets[r + 1])]
    assert positions.tolist() == [t for r in rows for t in range(n_tokens[r])]
