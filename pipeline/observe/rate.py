"""How fast a quantity grows lately, and the bytes that a run has still to read: what an estimated
time to the end is made of.

In: readings of a total and of a clock; finished splits. Out: a rate, a number of bytes. Method: an
average whose weights decay with age, over a window that grows with the run: a run that lasts a
minute is judged by its last seconds, one that lasts a day by its last hours. Cost: a few operations
a reading.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

MIN_WINDOW_S = 20.0
"""The shortest time, in seconds, after which a reading has lost two thirds of its weight."""
WINDOW_SHARE = 1 / 3
"""The same time as a share of the time that was measured."""


STILL_S = 10.0
"""After how long without growth a total counts as standing still. Totals grow in steps, such as one
a bucket: within a step nothing has been reported yet, but much has been done."""


class Rate:
    """A decaying average of the growth of a total, per second."""

    def __init__(self) -> None:
        self._start_s: float | None = None
        self._last_s = 0.0
        self._last_total = 0.0
        self._growth = 0.0
        self._duration_s = 0.0

    def read(self, now_s: float, total: float) -> None:
        """Take a reading; the first one starts the clock. now_s: by a monotonic clock."""
        if self._start_s is None:
            self._start_s = self._last_s = now_s
            self._last_total = total
            return
        elapsed_s = now_s - self._last_s
        if elapsed_s <= 0 or (total == self._last_total and elapsed_s < STILL_S):
            return
        window_s = max(MIN_WINDOW_S, WINDOW_SHARE * (now_s - self._start_s))
        weight = math.exp(-elapsed_s / window_s)
        self._growth = self._growth * weight + total - self._last_total
        self._duration_s = self._duration_s * weight + elapsed_s
        self._last_s, self._last_total = now_s, total

    def seconds_for(self, amount: float, now_s: float) -> float | None:
        """How long the total takes to grow by an amount, counted from now: between two steps of the
        total the time runs down. None before it has grown."""
        if not self.per_s:
            return None
        return max(0.0, amount / self.per_s - (now_s - self._last_s))

    @property
    def per_s(self) -> float:
        """0 before the total has grown."""
        return max(0.0, self._growth) / self._duration_s if self._duration_s else 0.0


class PlannedSplit(NamedTuple):
    """What a plan knows of a split that has something to do. kind: what its size was estimated
    from, such as a compression; splits of one kind are wrong by about the same factor. n_bytes:
    the estimate. done_bytes: of `done_parts`, the indices of its parts that were finished before.
    """

    split_id: str
    kind: str
    n_bytes: int
    done_bytes: int = 0
    done_parts: frozenset[int] = frozenset()


class Remaining:
    """The bytes of records that a run reads, by an estimate that finished splits correct: what they
    had in truth, compared with what was estimated, holds for the other splits of their kind."""

    def __init__(self, splits: Iterable[PlannedSplit]) -> None:
        self._open = {split.split_id: split for split in splits}
        self._before = sum(split.done_bytes for split in self._open.values())
        self._actual = {split.split_id: split.done_bytes for split in self._open.values()}
        self._parts = {split.split_id: set(split.done_parts) for split in self._open.values()}
        self._n_parts: dict[str, int] = {}
        self._estimated_open: Counter[str] = Counter()
        for split in self._open.values():
            self._estimated_open[split.kind] += split.n_bytes
        self._estimated: Counter[str] = Counter()
        self._finished: Counter[str] = Counter()
        self._assumed: dict[str, float] = {}

    def assume(self, kind: str, factor: float) -> None:
        """The factor for a kind of which no split is finished yet."""
        self._assumed[kind] = factor

    def add_part(self, split_id: str, index: int, last: bool, record_bytes: int) -> None:
        """A part is finished. last: whether it is the last one of its split."""
        split = self._open.get(split_id)
        if split is None or index in self._parts[split_id]:
            return
        self._parts[split_id].add(index)
        self._actual[split_id] += record_bytes
        if last:
            self._n_parts[split_id] = index + 1
        if len(self._parts[split_id]) == self._n_parts.get(split_id):
            del self._open[split_id]
            self._estimated_open[split.kind] -= split.n_bytes
            self._estimated[split.kind] += split.n_bytes
            self._finished[split.kind] += self._actual[split_id]

    @property
    def is_done(self) -> bool:
        """Whether every split is finished; False where there was none."""
        return bool(self._actual) and not self._open

    @property
    def total_bytes(self) -> float:
        """Of this run, with what it has done and without what was done before."""
        finished = self._finished.total()
        unfinished = sum(
            n_bytes * self._factor(kind) for kind, n_bytes in self._estimated_open.items()
        )
        return max(0.0, finished + unfinished - self._before)

    def _factor(self, kind: str) -> float:
        """True bytes for each estimated one."""
        estimated = self._estimated[kind]
        return self._finished[kind] / estimated if estimated else self._assumed.get(kind, 1.0)
