"""Vectors as columns: every precision, every finite value, and those that are not finite.

Oracle: numpy, torch's rounding written out as bits, and the sizes of encoded files.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipeline.write import parquet
from pipeline.write.vectors import not_finite, round_vectors, vector_columns


@pytest.mark.parametrize("n_dimensions", [5, 12, 16])
def test_ubinary_of_any_dimension_keeps_its_rows_apart(n_dimensions: int) -> None:
    vectors = np.random.default_rng(0).normal(size=(7, n_dimensions)).astype(np.float32)
    column = vector_columns(vectors, "ubinary")["embedding"]
    bits = np.unpackbits(np.array(column.to_pylist(), np.uint8), axis=1)[:, :n_dimensions]
    np.testing.assert_array_equal(bits, vectors > 0)


def test_extreme_finite_vectors_stay_finite_in_every_precision() -> None:
    limits = np.finfo(np.float32)
    rows = [
        [limits.max, -limits.max],
        [limits.tiny, -limits.tiny],
        [1e-45, 0],
        [0, 0],
        [70000, -70000],
    ]
    vectors = np.array(rows, np.float32)
    for precision in ("float32", "float16", "bfloat16"):
        rounded = round_vectors(vectors, precision)
        assert np.isfinite(rounded).all(), precision
        assert (np.sign(rounded) * np.sign(vectors) >= 0).all(), precision
    columns = vector_columns(vectors, "int8")
    values, scale = (
        np.array(columns["embedding"].to_pylist()),
        columns["embedding_scale"].to_numpy(),
    )
    assert np.isfinite(scale).all()
    np.testing.assert_array_equal(values[[0, 1, 4]], [[127, -127]] * 3)
    np.testing.assert_array_equal(values[[2, 3]], [[0, 0]] * 2)


def test_bfloat16_rounds_as_torch_would_ties_to_even() -> None:
    bits = np.array(
        [0x3F800000, 0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001, 0xBF808001], np.uint32
    )
    expected = np.array(
        [0x3F800000, 0x3F800000, 0x3F820000, 0x3F800000, 0x3F810000, 0xBF810000], np.uint32
    )
    rounded = round_vectors(bits.view(np.float32).reshape(1, -1), "bfloat16")
    np.testing.assert_array_equal(rounded.reshape(-1).view(np.uint32), expected)


def test_half_precision_takes_about_half_the_bytes_after_compression() -> None:
    """Measured on real vectors: 0.845, 0.440 and 0.345 of raw float32 (docs/design.md). Random ones
    compress alike."""
    vectors = np.random.default_rng(0).normal(size=(3000, 384)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    sizes = {
        precision: len(parquet.encode(pa.table(vector_columns(vectors, precision)), {}))
        / vectors.nbytes
        for precision in ("float32", "float16", "bfloat16", "int8", "ubinary")
    }
    assert sizes["float32"] < 0.93
    assert sizes["float16"] < 0.55 * sizes["float32"]
    assert sizes["bfloat16"] < sizes["float16"] < 0.48
    assert sizes["int8"] < 0.26
    assert sizes["ubinary"] < 0.035


def test_values_whose_sum_overflows_are_finite_and_every_other_trouble_is_rounded() -> None:
    vectors = np.zeros((6, 64), np.float32)
    vectors[1] = np.finfo(np.float32).max  # the sum is infinite
    vectors[2, :2] = np.inf, -np.inf  # the sum is NaN
    vectors[3, 63] = np.nan
    vectors[4, 0] = -np.inf
    assert not_finite(vectors).tolist() == [2, 3, 4]
    assert not_finite(vectors[:0]).tolist() == []
