"""The sample of a report: every row with the same probability, the same for the same seed, from few
files; and what its geometry says about rows of which the truth is known.

Oracle: counting over many seeds, and vectors made to have known neighbours.
"""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.tools.report.geometry import cosines, flat_map, histogram, unit
from pipeline.tools.report.near_duplicates import near_duplicates
from pipeline.tools.report.sample import MAX_FILES, Sample, row_indices

pytestmark = pytest.mark.thorough  # statistics over many draws


@pytest.mark.parametrize("n_files", [5, 4 * MAX_FILES])
def test_every_row_is_drawn_with_the_same_probability(n_files: int) -> None:
    draw = np.random.default_rng(0)
    n_rows = [int(count) for count in draw.integers(0, 40, n_files)]
    size = 128 if n_files > MAX_FILES else 40
    drawn = np.zeros((n_files, 40))
    for seed in range(400):
        indices = row_indices(n_rows, size, seed)
        assert len(indices) <= MAX_FILES
        for file, rows in indices.items():
            assert np.all(np.diff(rows) > 0)
            drawn[file, rows] += 1
    expected = 400 * min(1.0, size / sum(n_rows))
    for file, count in enumerate(n_rows):
        assert not drawn[file, count:].any()
    by_file = np.array(
        [drawn[file, :count].mean() for file, count in enumerate(n_rows) if count > 9]
    )
    # five standard errors of the mean of at least ten rows, which is none for independent draws of
    # rows and more for places that hold several
    assert np.abs(by_file - expected).max() < 5 * np.sqrt(expected / 10) * (
        2 if n_files > 64 else 1
    )


def test_a_sample_is_that_of_its_seed_and_the_whole_where_it_is_large_enough() -> None:
    n_rows = [7, 0, 100, 3]
    one, same, other = (row_indices(n_rows, 20, seed) for seed in (1, 1, 2))
    assert {file: rows.tolist() for file, rows in one.items()} == {
        file: rows.tolist() for file, rows in same.items()
    }
    assert one[2].tolist() != other[2].tolist()
    assert sum(map(len, one.values())) == 20
    whole = row_indices(n_rows, 110, 1)
    assert {file: len(rows) for file, rows in whole.items()} == {0: 7, 2: 100, 3: 3}


def sample_of(vectors: np.ndarray, n_rows: int) -> Sample:
    rows = [
        {
            "text_sha256": str(n),
            "source_uri": "a",
            "source_etag": "b",
            "source_record": n,
        }
        for n in range(len(vectors))
    ]
    return Sample(rows, [], vectors, None, n_rows, 1, 1)


def test_the_margin_of_near_duplicates_holds_the_truth_of_the_whole() -> None:
    """2,000 rows in 400 groups of 1 to 9 near rows; the truth is counted over all of them."""
    draw = np.random.default_rng(3)
    groups = draw.choice(400, 2000, p=(w := draw.integers(1, 10, 400)) / w.sum())
    centres = unit(draw.normal(size=(400, 64)).astype(np.float32))
    whole = unit((centres[groups] + draw.normal(0, 0.01, (2000, 64))).astype(np.float32))
    same = groups[:, None] == groups
    truth = (same.sum() - 2000) / 2000
    hits = 0
    for seed in range(40):
        chosen = np.random.default_rng(seed).choice(2000, 500, replace=False)
        compared = cosines(whole[chosen], np.arange(500), 0.95)
        near = near_duplicates(sample_of(whole[chosen], 2000), compared, 0.95)
        hits += near.per_row_low <= truth <= near.per_row_high
        assert not near.is_exact
    assert hits >= 35  # of 40, at 95 %


def test_no_near_pair_leaves_room_for_some() -> None:
    vectors = np.eye(64, dtype=np.float32)
    near = near_duplicates(sample_of(vectors, 6400), cosines(vectors, np.arange(64), 0.9), 0.9)
    assert (near.n_near, near.per_row, near.per_row_low) == (0, 0, 0)
    assert near.per_row_high == pytest.approx(3 / (64 * 63 / 2) * 6399)


def test_neighbours_and_pairs_are_those_that_were_made() -> None:
    draw = np.random.default_rng(5)
    vectors = unit(draw.normal(size=(1200, 48)).astype(np.float32))  # more than two blocks
    vectors[1100] = vectors[3] + 0.01 * vectors[4]
    vectors = unit(vectors)
    compared = cosines(vectors, np.arange(1200), 0.9)
    assert compared.pairs == ((pytest.approx(0.99995, abs=1e-4), 3, 1100),)
    assert (compared.n_near, compared.n_rows_near) == (1, 2)
    full = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    np.fill_diagonal(full, -2)
    assert compared.neighbours[:, 0].tolist() == full.argmax(axis=1).tolist()
    np.testing.assert_allclose(compared.scores[:, 0], full.max(axis=1), atol=1e-6)
    np.fill_diagonal(full, 0)
    assert compared.mean == pytest.approx(full.sum() / (1200 * 1199), abs=1e-6)


def test_the_map_keeps_the_share_of_variance_that_it_states() -> None:
    draw = np.random.default_rng(7)
    vectors = (draw.normal(size=(300, 20)) * np.geomspace(4, 0.1, 20)).astype(np.float32)
    flat = flat_map(vectors, cosines(unit(vectors), np.arange(300), 0.9).neighbours, 0)
    assert flat is not None
    values = np.linalg.svd(vectors - vectors.mean(axis=0), compute_uv=False) ** 2
    np.testing.assert_allclose(flat.kept_variance, values[:2] / values.sum(), rtol=1e-3)
    np.testing.assert_allclose(flat.places.var(axis=0).sum(), values[:2].sum() / 300, rtol=1e-3)


@pytest.mark.parametrize(
    "vectors", [np.zeros((0, 4)), np.ones((5, 4)), np.ones((2, 4)), np.zeros((9, 1))]
)
def test_there_is_no_map_of_nothing(vectors: np.ndarray) -> None:
    vectors = vectors.astype(np.float32)
    neighbours = cosines(unit(vectors), np.arange(len(vectors)), 0.9).neighbours
    assert flat_map(vectors, neighbours, 0) is None


@pytest.mark.parametrize(
    "values", [np.array([3, 3, 3]), np.array([1.0, 1.0]), np.arange(1000), np.zeros(0)]
)
def test_a_histogram_counts_every_value_once(values: np.ndarray) -> None:
    counted = histogram(values)
    assert sum(counted.counts) == len(values)
    assert len(counted.edges) == len(counted.counts) + 1
    assert list(counted.edges) == sorted(counted.edges)
