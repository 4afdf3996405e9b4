"""Totals of a population from some of its cells, with margins.

Method: two stages. Cells are in the sample with known probabilities; of the records of a cell,
some are prepared, at equal distances in the order of their lengths, and stand for all. A total is
the ratio of the weighted sums of a figure and of stored bytes, times the stored bytes of the
population, which are known (Särndal, Swensson, Wretman 1992, *Model Assisted Survey Sampling*, 4.3
and 8.3).
The variance is that between cells, without those that are certain, and that inside of cells, from
the differences of neighbours in length. The margin is half of the 95 % interval by Student's t: it
covers chance, and not what is not in the sample, as the ends of shards of which starts were read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from pipeline.driver.estimate.cells import Cells

__all__ = ["Figure", "Sums", "Totals"]


@dataclasses.dataclass(frozen=True)
class Figure:
    """An estimated total. margin: half of the 95 % interval as a share of it, 0 where everything
    was counted; None where too little was read for one."""

    value: float
    margin: float | None

    def plus(self, known: float) -> Figure:
        """The total with `known` more (or fewer), of which nothing is uncertain."""
        value = max(0.0, self.value + known)
        if self.margin is None:
            return Figure(value, None)
        return Figure(value, self.margin * self.value / value if value else 0.0)


@dataclasses.dataclass(frozen=True)
class Sums:
    """What one cell adds to the figures: by name, the sum over its records, and the variance of
    that sum where only some of them were prepared."""

    value: Mapping[str, float]
    variance: Mapping[str, float] = dataclasses.field(default_factory=dict)


class Totals:
    """Collects cells in the order of `cells`; those of None are all of the population."""

    def __init__(self, cells: Cells | None) -> None:
        self._cells = cells
        self._places: list[int] = []
        self._bytes: list[float] = []
        self._shares_read: list[float] = []
        self._sums: list[Sums] = []

    def __len__(self) -> int:
        return len(self._sums)

    def add(
        self, sums: Sums, place: int = 0, n_bytes: float = 1.0, share_read: float = 1.0
    ) -> None:
        """place: of the cell among `cells`; one that cannot be read is passed over. n_bytes,
        share_read: as of a `Block`, whose sums are scaled to the whole cell."""
        scale = 1 / share_read if share_read else 0.0
        value = {name: each * scale for name, each in sums.value.items()}
        variance = {name: each * scale**2 for name, each in sums.variance.items()}
        self._places.append(place)
        self._bytes.append(n_bytes)
        self._shares_read.append(share_read)
        self._sums.append(Sums(value, variance))

    def names(self) -> Sequence[str]:
        return list(dict.fromkeys(name for sums in self._sums for name in sums.value))

    def figure(self, name: str) -> Figure:
        """The total of one figure."""
        values = np.array([sums.value.get(name, 0.0) for sums in self._sums])
        if self._cells is None:
            return Figure(float(values.sum()), 0.0)
        n = len(values)
        if not n:
            return Figure(0.0, None)
        chances = self._cells.probabilities(self._places[-1] + 1)[self._places]
        n_bytes = np.array(self._bytes)
        covered = float((n_bytes / chances).sum())
        if not covered:
            return Figure(0.0, None)
        ratio = float((values / chances).sum()) / covered
        total = self._cells.n_bytes * ratio
        if not total:
            return Figure(0.0, 0.0 if n > 1 else None)
        deviations = (values - ratio * n_bytes) / chances
        uncertain = 1 - chances * np.array(self._shares_read)
        if n < 2 and uncertain.any():
            return Figure(total, None)
        between = float((uncertain * deviations**2).sum()) * n / max(1, n - 1)
        inside = np.array([sums.variance.get(name, 0.0) for sums in self._sums])
        error = (between + float((inside / chances).sum())) ** 0.5 * self._cells.n_bytes / covered
        return Figure(total, _t(max(1, n - 1)) * error / total)


def expanded(values: npt.NDArray[np.float64], n_records: int) -> tuple[float, float]:
    """(sum over `n_records`, its variance) from the values of some of them, which were taken at
    equal distances in the order of their lengths."""
    n = len(values)
    if not n:
        return 0.0, 0.0
    total = float(values.sum()) * n_records / n
    if n < 2 or n == n_records:
        return total, 0.0
    spread = float((np.diff(values) ** 2).sum()) / 2 / (n - 1)
    return total, n_records**2 * (1 - n / n_records) * spread / n


def _t(freedom: int) -> float:
    """The 97.5th percentile of Student's t, by the expansion of Cornish and Fisher from six degrees
    of freedom on, where it is 0.1 % off."""
    if freedom < 6:
        return (12.706, 4.303, 3.182, 2.776, 2.571)[freedom - 1]
    z = 1.959964
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
