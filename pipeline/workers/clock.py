"""Seconds of a worker in which parts are under way, where parts can overlap.

In: when a part begins and ends, from any thread. Out: its seconds for `PartFacts`. Every moment
counts once, so that the seconds of all parts add up to the time of the worker: while no part is
under way it waits for the part that begins next, and the time since then counts to the part that
ends next.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Clock"]


class Clock:
    """Runs from its creation."""

    def __init__(self) -> None:
        self._changing = threading.Lock()
        self._n_parts = 0
        self._counted_until = time.perf_counter()

    @contextmanager
    def part(self) -> Iterator[dict[str, float]]:
        """What is yielded has the seconds of the part, by stage, after its end."""
        seconds: dict[str, float] = {}
        with self._changing:
            seconds["embedders_starved"] = 0.0 if self._n_parts else self._elapsed()
            self._n_parts += 1
        try:
            yield seconds
        finally:
            with self._changing:
                self._n_parts -= 1
                seconds["embed"] = self._elapsed()

    def _elapsed(self) -> float:
        """Since it was last asked."""
        now = time.perf_counter()
        elapsed_s = now - self._counted_until
        self._counted_until = now
        return elapsed_s
