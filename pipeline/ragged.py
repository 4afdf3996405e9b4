"""Ragged columns as flat arrays: the members of all lists, and where the run of each list starts."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc


def list_members(lists: pa.ChunkedArray) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Flat values of a list<int32> column without empty lists, and where each row's run starts (for reduceat)."""
    lengths = pc.list_value_length(lists).to_numpy().astype(np.int64)
    return pc.list_flatten(lists).to_numpy(), np.cumsum(lengths) - lengths


def renumbered(lists: pa.ChunkedArray) -> tuple[pa.ChunkedArray, npt.NDArray[np.int64]]:
    """Lists of numbers of texts with the numbers made dense, and which texts (K,) they stand for."""
    members, starts = list_members(lists)
    used, dense = np.unique(members, return_inverse=True)
    array = pa.ListArray.from_arrays(np.append(starts, len(members)).astype(np.int32), dense.astype(np.int32))
    return pa.chunked_array([array]), used.astype(np.int64)


def reduced(function: np.ufunc, values: npt.NDArray[Any], starts: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """`function` over each run of `values`: one result a start."""
    return function.reduceat(values, starts) if len(starts) else values[:0]
