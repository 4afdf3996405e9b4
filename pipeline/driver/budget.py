"""The time and the money that a run may use: `run --max-time 2h --max-cost 40`.

A run asks its budget while it works. Once what is under way would use up the rest, no new part is
begun; what is under way is finished and committed, and the next run goes on from there. Cost: a few
comparisons, twice a second.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping

from pipeline.driver.estimate.prices import price_per_hour
from pipeline.driver.planning.plan import Plan
from pipeline.errors import CorpusEmbedError, SpecError
from pipeline.observe.progress import Progress

PARTS_UNDER_WAY = 2
"""How many parts one after the other a worker still finishes: the one that it computes, and the one
that it has fetched."""

LARGEST_RESERVE = 0.5
"""The share of a budget that is kept for them at most."""


@dataclasses.dataclass
class Budget:
    """What one run may use, and how much of it is used.

    max_seconds: from the start of the run. max_cost: in the currency of the prices. is_used:
    whether no new part may begin. cost: what was spent while the run worked.
    """

    max_seconds: float | None = None
    max_cost: float | None = None
    is_used: bool = False
    cost: float = 0.0
    _counted_s: float | None = None

    def __post_init__(self) -> None:
        for name, amount in (("max_time", self.max_seconds), ("max_cost", self.max_cost)):
            if amount is not None and not amount > 0:
                raise SpecError(f"{name}: found {amount}; it takes more than 0")

    def check(self, progress: Progress, devices: Callable[[], Mapping[str, float]]) -> bool:
        """Whether no new part may begin. devices: how many of each device the run has now, asked
        only where money counts. Raises SpecError for a device without a price."""
        seconds = progress.elapsed_s
        reserve_s = _reserve_s(progress)
        if self.max_seconds is not None:
            limit_s = self.max_seconds - min(reserve_s, LARGEST_RESERVE * self.max_seconds)
            self.is_used = self.is_used or seconds >= limit_s
        if self.max_cost is not None:
            hourly = hourly_cost(devices())
            now_s = time.monotonic()
            # before the first question, all of the time is counted
            since_s = progress.started if self._counted_s is None else self._counted_s
            self.cost += hourly * (now_s - since_s) / 3600
            self._counted_s = now_s
            reserve = min(hourly * reserve_s / 3600, LARGEST_RESERVE * self.max_cost)
            self.is_used = self.is_used or self.cost >= self.max_cost - reserve
        return self.is_used


@dataclasses.dataclass(frozen=True)
class Left:
    """What a run that ended with its budget leaves to the next one, as estimates. seconds: at the
    rate of this run. cost: what was spent; 0.0 where nobody asked."""

    parts: int
    documents: int
    seconds: float
    cost: float


def left_of(plan: Plan, progress: Progress, budget: Budget) -> Left:
    """What is left of a plan. Raises CorpusEmbedError where a run did nothing: the next one with
    the same budget would not get further."""
    if not progress["parts"]:
        raise CorpusEmbedError(
            f"the budget of this run was used up after {progress.elapsed_s:.0f} s, before a part "
            "was finished: start-up and one part take longer. Give it more, or make parts smaller "
            "with runtime.part_bytes. Nothing that was finished before is lost."
        )
    bytes_left = max(0, plan.todo_bytes - progress["record_bytes"])
    share = bytes_left / max(1, progress["record_bytes"])
    return Left(
        parts=max(1, round(progress["parts"] * share)),
        documents=round(progress["n_documents"] * share),
        seconds=round(progress.elapsed_s * share, 1),
        cost=round(budget.cost, 4),
    )


def hourly_cost(devices: Mapping[str, float]) -> float:
    """What an hour of some devices costs. Raises SpecError for one without a price."""
    total = 0.0
    for name, number in devices.items():
        price = price_per_hour(name)
        if price is None:
            raise SpecError(
                f"--max-cost: there is no price for the device '{name}'. Add it to a copy of "
                "pipeline/driver/estimate/prices.yaml that CORPUS_EMBED_PRICES names, or give "
                "--max-time."
            )
        total += number * price
    return total


def _reserve_s(progress: Progress) -> float:
    """How long the parts that are under way still take."""
    embed_s = progress.totals.get("seconds.embed", 0.0)
    return PARTS_UNDER_WAY * embed_s / max(1, progress["parts"])
