"""Keys that more than one row of a snapshot has, found with 8 bytes of memory a row.

In: tables of rows, once in the order of the files, and once more if hashes are equal. Out: the
repeated keys with their counts. Hashes alone prove nothing, so rows whose hashes are equal are read
a second time and compared by their values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Hashes = npt.NDArray[np.int64]


class RepeatedKeys:
    """Collects the hashes of a key, the values of some columns.

    first_chunks: count documents instead of rows, that is, rows with chunk 0 only.
    """

    def __init__(self, columns: Sequence[str], *, first_chunks: bool = False) -> None:
        self.columns = columns
        self._first_chunks = first_chunks
        self._hashes: list[Hashes] = [np.zeros(0, np.int64)]

    def add(self, rows: pa.Table) -> None:
        self._hashes.append(_hashes(self._selected(rows), self.columns))

    def find(self, tables: Iterable[pa.Table]) -> dict[tuple[Any, ...], int]:
        """The number of rows of each repeated key. tables: `columns` and `chunk` of all rows again;
        they are read only if hashes are equal."""
        hashes, counts = np.unique(np.concatenate(self._hashes), return_counts=True)
        repeated = hashes[counts > 1]
        if not len(repeated):
            return {}
        keys: Counter[tuple[Any, ...]] = Counter()
        for table in tables:
            rows = self._selected(table)
            suspects = rows.filter(pa.array(np.isin(_hashes(rows, self.columns), repeated)))
            keys.update(_keys(suspects, self.columns))
        return {key: count for key, count in keys.items() if count > 1}

    def _selected(self, rows: pa.Table) -> pa.Table:
        return rows.filter(pc.equal(rows["chunk"], 0)) if self._first_chunks else rows


def _keys(rows: pa.Table, columns: Sequence[str]) -> Iterable[tuple[Any, ...]]:
    return zip(*(rows[name].to_pylist() for name in columns), strict=True)


def _hashes(rows: pa.Table, columns: Sequence[str]) -> Hashes:
    """(N,) 64-bit hashes of the values of some columns; stable within this process only."""
    return np.fromiter(map(hash, _keys(rows, columns)), np.int64, rows.num_rows)
