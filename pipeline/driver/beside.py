"""The estimate of a run, made in a thread beside the embedding.

A plan comes in when its execution begins. The estimate waits for the first part that is embedded,
because until then every second of CPU makes the start longer. It goes to a display as soon as it is
there, and to the record of the attempt at the end. Nothing is measured, and a tokenizer that only
transformers can build, with seconds of imports, is not loaded for it. An estimate that fails is
none: it never stops a run. Cost: SECONDS of a process (`estimate/look.py`).
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable
from typing import Any

from pipeline.driver.estimate.forecast import Estimate, estimate_of
from pipeline.driver.estimate.here import this_machine
from pipeline.driver.estimate.rates import remember
from pipeline.driver.planning.plan import Plan
from pipeline.driver.planning.pools import pools_of
from pipeline.driver.run import Result
from pipeline.driver.showing import Watch
from pipeline.observe.progress import EMBEDDING, Progress
from pipeline.storage.store import Store
from pipeline.tokenize.loading import is_quick_to_load

__all__ = ["Beside"]

log = logging.getLogger(__name__)

SECONDS = 5.0
PATIENCE_S = 60.0
"""How long the end of a run waits for its estimate, which a run that embeds for a second overtakes:
SECONDS and the start of a process, on a machine that others keep busy."""


class Beside:
    """The estimate of the first plan that is given. is_alone: whether all workers are on this
    machine. on_estimate: called with it once."""

    def __init__(
        self, is_alone: bool, on_estimate: Callable[[Estimate], None] | None = None
    ) -> None:
        self._is_alone = is_alone
        self._on_estimate = on_estimate
        self._estimate: Estimate | None = None
        self._thread: threading.Thread | None = None

    def prepare(self, plan: Plan, store: Store) -> None:
        """The plan of the run, before its embedding begins."""
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._make, args=(plan, store), name="estimate", daemon=True
            )

    def _start(self) -> None:
        if self._thread is not None and self._thread.ident is None:
            self._thread.start()

    def shown_by(self, watch: Watch) -> Watch:
        """`watch`, which has the estimate made once the run embeds, and shows it at its first call
        after that is there."""

        def show(progress: Progress, notes: list[str]) -> None:
            if progress.phase == EMBEDDING:
                self._start()
            if self._estimate and self._on_estimate:
                on_estimate = self._on_estimate
                self._on_estimate = None
                on_estimate(self._estimate)
            watch(progress, notes)

        return show

    def record(self) -> dict[str, Any] | None:
        """What the record of the attempt keeps; None where there is no estimate."""
        if self._thread is not None and self._thread.ident is not None:
            self._thread.join(PATIENCE_S)
        return self._estimate.record() if self._estimate else None

    def remember(self, result: Result) -> None:
        """Keep the rates of a run for later plans; those of this machine with how long the run took
        beyond the embedding of its workers."""
        overhead_s = None
        if result.rates and self._is_alone:
            plan = result.plan
            machine = this_machine()
            pools = pools_of(plan.job, machine.cpus, machine.gpus, len(plan.todo), plan.todo_parts)
            embed_s = result.progress.totals.get("seconds.embed", 0.0)
            elapsed_s = float(result.truth["seconds"])
            overhead_s = round(max(0.0, elapsed_s - embed_s / pools.embedders.min_workers), 1)
        remember([dataclasses.replace(rate, overhead_s=overhead_s) for rate in result.rates])

    def _make(self, plan: Plan, store: Store) -> None:
        try:
            if not is_quick_to_load(plan.job.model_of_driver()):
                return
            self._estimate = estimate_of(
                plan, store, self._is_alone, seconds=SECONDS, is_measuring=False
            )
        except Exception as error:  # noqa: BLE001 - an estimate is no reason to stop a run
            log.debug("no estimate: %s: %s", type(error).__name__, error)
