"""The actor that workers report to, and the driver asks (`pipeline/driver/cluster/watch.py`).

In: messages of workers (`pipeline/workers/reports.py`). Out: what they say, once each. Cost: memory
for what was reported since the driver asked last.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from pipeline.workers.finished import FinishedPart

_KINDS = {"worker": "loading", "split": "reading", "part": "embedding", "write": "writing"}
"""What workers do, by the first word of the work that they report."""


class Taken(NamedTuple):
    """What workers have reported since the last call. amounts: counts besides those of parts.
    advances: by part, how far it has come. workers: how many do what now, by the values of _KINDS,
    and `queued` parts. begun: what was ever begun."""

    finished: Sequence[FinishedPart] = ()
    amounts: Sequence[Mapping[str, float]] = ()
    advances: Mapping[str, Mapping[str, float]] = {}
    notes: Sequence[str] = ()
    workers: Mapping[str, int] = {}
    begun: Collection[str] = ()


class Totals:
    """An actor: workers report to it what they start and finish, and ask it whether they may begin
    more; the driver asks it, too. Losing it loses a display, never data."""

    def __init__(self) -> None:
        self._finished: list[FinishedPart] = []
        self._amounts: list[dict[str, float]] = []
        self._advances: dict[str, dict[str, float]] = {}
        self._notes: list[str] = []
        self._begun: set[str] = set()
        self._is_stopping = False
        self._queue: set[str] = set()  # parts that no embedder has begun, as it will name them
        # For each piece of unfinished work: how often it was started, and when and where last. In
        # the order of these times.
        self._started: dict[str, tuple[int, float, str]] = {}

    def begin(self, work: str, place: str) -> int:
        """Returns how often `work` was started before without being finished: each time its worker
        died, because of it or because of other work in the same process."""
        n_starts = self._started.pop(work, (0,))[0]
        self._started[work] = (n_starts + 1, time.monotonic(), place)
        self._begun.add(_kind(work))
        self._queue.discard(work)
        return n_starts

    def end(self, work: str) -> None:
        self._started.pop(work, None)

    def add(self, amounts: dict[str, float]) -> None:
        self._amounts.append(amounts)

    def queue(self, work: str) -> None:
        self._queue.add(work)

    def advance(self, part_id: str, amounts: dict[str, float]) -> None:
        self._advances[part_id] = amounts

    def finish(self, part: FinishedPart) -> None:
        self._advances.pop(part.part_id, None)
        self._finished.append(part)

    def note(self, text: str) -> None:
        self._notes.append(text)

    def stop(self) -> None:
        self._is_stopping = True

    def is_stopping(self) -> bool:
        return self._is_stopping

    def take(self) -> Taken:
        """What was reported since the last call."""
        workers = Counter(map(_kind, self._started))
        if self._queue:
            workers["queued"] = len(self._queue)
        taken = Taken(
            self._finished, self._amounts, self._advances, self._notes, workers, self._begun
        )
        self._finished = []
        self._amounts = []
        self._advances = {}
        self._notes = []
        return taken

    def under_way(self) -> list[str]:
        """For each kind of work the piece that has taken longest: its name, for how long, and
        where."""
        longest: dict[str, str] = {}
        for work, (_, started_s, place) in self._started.items():
            elapsed_s = time.monotonic() - started_s
            longest.setdefault(work.split()[0], f"{work} for {elapsed_s:.0f} s in {place}")
        return list(longest.values())


def _kind(work: str) -> str:
    return _KINDS.get(work.split()[0], "other")
