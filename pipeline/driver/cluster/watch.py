"""What happens next to a running dataset: figures are refreshed, partial snapshots are committed,
and a run that cannot end well is stopped early.

Workers report to the actor `Totals`, and a thread on the driver asks it twice a second. It calls
the display, commits, and interrupts the main thread where the run has to end. Cost: one request to
the actor every half second.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Iterator
from typing import Any

import ray

from pipeline.driver.budget import Budget
from pipeline.driver.cluster.devices import devices_of
from pipeline.driver.cluster.metrics_export import exporter_of
from pipeline.driver.cluster.totals import Taken
from pipeline.driver.commits import commit_finished, finished_parts
from pipeline.driver.interrupts import interrupt_main
from pipeline.driver.limits import check_damage, check_partitions, check_rejects
from pipeline.driver.planning.plan import Plan
from pipeline.driver.planning.remaining_bytes import sample
from pipeline.driver.showing import Watch, shielded
from pipeline.errors import CorpusEmbedError
from pipeline.observe.progress import EMBEDDING, LOADING, Progress
from pipeline.storage.store import Store
from pipeline.workers.metrics import lost_bytes

POLL_S = 0.5
"""How often the driver asks `Totals`."""

EARLY_REJECTS = 1000
"""After how many records too large a share of rejects stops a run before its end."""

STARTING_S = 20.0
"""After how long without any worker that runs a run says so; a cluster may have no room for one."""

STALLED_S = 300.0
"""After how long without a finished part a run reports what it is waiting for, and how often it
repeats the report."""


@dataclasses.dataclass
class Watcher:
    """Watches one execution of a plan.

    totals: a handle of the actor `Totals`. progress: what reports are added to. error: why it
    stopped the run; None unless it did. last_part_s, last_note_s, last_commit_s: when a part was
    last finished, a stall last reported, and a snapshot last committed.
    """

    plan: Plan
    store: Store
    totals: Any
    progress: Progress
    watch: Watch
    budget: Budget | None = None
    error: CorpusEmbedError | None = None
    patience_s: float = STARTING_S
    last_part_s: float = dataclasses.field(default_factory=time.monotonic)
    last_note_s: float = dataclasses.field(default_factory=time.monotonic)
    last_commit_s: float = dataclasses.field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        done = self.plan.done
        # Parts of an earlier round are in plan.done, and counted in `progress` already.
        self._records_before = sum(part.n_records for part in done) - self.progress["n_records"]
        self._rejects_before = sum(part.n_rejects for part in done) - self.progress["n_rejects"]
        self._input_bytes = sum(shard.size_bytes for shard in self.plan.shards)
        self.exporter = exporter_of(self.plan)
        self._checked_lost = 0
        self._checked_files = 0
        self._lost_before = sum(map(lost_bytes, done)) - self.progress["lost_bytes"]

    def run(self, has_ended: threading.Event) -> None:
        """Watch until the work has ended. Nothing ends this thread without ending the run."""
        while not has_ended.wait(POLL_S):
            try:
                self.show()
                self._stop_when_used()
                self._check_limits()
                self._commit_when_due()
            except ray.exceptions.RayError:
                continue  # the actor was lost with its node; Ray starts it again, empty
            except BaseException as error:  # noqa: BLE001 - a thread dies in silence
                self.error = error if isinstance(error, CorpusEmbedError) else self._failure(error)
                # The only way out of a Ray Data execution that blocks the main thread.
                interrupt_main()
                return

    def _failure(self, error: BaseException) -> CorpusEmbedError:
        """What ends the run when watching it fails, after a commit of what is finished."""
        kept = "Finished parts are kept"
        with contextlib.suppress(Exception):
            if not self.plan.stale and self._commit():
                kept = "Finished parts are committed"
        return CorpusEmbedError(
            f"the run was stopped because the thread that watches it failed: "
            f"{type(error).__name__}: {error}. {kept}; run the same command again to resume, and "
            "report this with the output of --debug."
        )

    def show(self) -> None:
        taken = ray.get(self.totals.take.remote())
        notes = list(taken.notes)
        self._count(taken)
        now_s = time.monotonic()
        if taken.finished:
            self.last_part_s = now_s
            self.last_note_s = now_s
        elif now_s - self.last_note_s > min(STALLED_S, self.patience_s):
            pending = ray.get(self.totals.under_way.remote())
            has_stalled = now_s - self.last_note_s > STALLED_S
            self.patience_s = STALLED_S
            if has_stalled or not pending:
                self.last_note_s = now_s
                notes = [*notes, self._waiting_for(pending, now_s)]
        if self.exporter:
            self.exporter.report(self.progress)
        self.watch(self.progress, notes)

    def _count(self, taken: Taken) -> None:
        """Add what workers have reported to the figures."""
        progress = self.progress
        if "embedding" in taken.begun:
            progress.enter(EMBEDDING)
        elif "loading" in taken.begun:
            progress.enter(LOADING)
        for amounts in taken.amounts:
            progress.add(amounts)
        for part_id, amounts in taken.advances.items():
            progress.advance(part_id, amounts)
        for part in taken.finished:
            progress.finish_part(part.part_id, part.amounts)
            progress.remaining.add_part(
                part.split_id, part.index, part.last, int(part.amounts["record_bytes"])
            )
        progress.workers = taken.workers
        progress.read_clock()

    def _waiting_for(self, pending: list[str], now_s: float) -> str:
        """pending: the work that takes longest, none where no worker runs."""
        elapsed = f"no part was finished for {now_s - self.last_part_s:.0f} s; waiting for "
        if pending:
            return elapsed + ", ".join(pending)
        resources = ray.cluster_resources()
        counts = f"{resources.get('CPU', 0):.0f} CPUs and {resources.get('GPU', 0):.0f} GPUs"
        return (
            f"{elapsed}workers, of which none is running: check whether the cluster has room for "
            f"them. It has {counts} in all, and runtime.device is {self.plan.job.engine.device}"
        )

    def _stop_when_used(self) -> None:
        """Each time, because the actor may have been lost meanwhile."""
        if self.budget and self.budget.check(self.progress, lambda: devices_of(self.plan.job)):
            self.totals.stop.remote()

    def _check_limits(self) -> None:
        """Manifests are read once the figures say that a limit is exceeded."""
        runtime = self.plan.job.spec.runtime
        n_records = self.progress["n_records"] + self._records_before
        n_rejects = self.progress["n_rejects"] + self._rejects_before
        if n_records >= EARLY_REJECTS and n_rejects > runtime.max_reject_fraction * n_records:
            check_rejects(self.plan, self.store, finished_parts(self.plan, self.store))
        lost = self.progress["lost_bytes"] + self._lost_before
        if lost > max(self._checked_lost, runtime.max_damaged_fraction * self._input_bytes):
            self._checked_lost = lost
            check_damage(self.plan, self.store, finished_parts(self.plan, self.store))
        n_files = self.progress["n_files"]
        if n_files > max(2 * self._checked_files, runtime.max_partitions):
            self._checked_files = n_files
            check_partitions(self.plan, finished_parts(self.plan, self.store))

    def _commit_when_due(self) -> None:
        """Makes finished parts readable during the run, where that only adds to the head."""
        plan = self.plan
        interval = plan.job.spec.runtime.commit_every
        if not interval or plan.stale:
            return
        if time.monotonic() - self.last_commit_s <= interval.total_seconds():
            return
        self._commit()
        self.last_commit_s = time.monotonic()

    def _commit(self) -> bool:
        """Commit what is finished; False where nothing is."""
        parts = finished_parts(self.plan, self.store)
        if parts:
            commit_finished(self.plan, self.store, parts)
        return bool(parts)


@contextlib.contextmanager
def watching(
    plan: Plan,
    store: Store,
    totals: Any,
    progress: Progress,
    watch: Watch,
    budget: Budget | None = None,
) -> Iterator[Watcher]:
    """Watches in a thread while the block runs, and shows the last figures after it. Raises what
    ended the run where the block is interrupted for it, even before its first line."""
    watcher = Watcher(plan, store, totals, progress, shielded(watch), budget)
    has_ended = threading.Event()
    thread = threading.Thread(target=watcher.run, args=(has_ended,), name="watch", daemon=True)
    try:
        thread.start()
        # no run waits for it
        arguments = (plan, progress.remaining)
        threading.Thread(target=sample, args=arguments, name="sample", daemon=True).start()
        yield watcher
    except KeyboardInterrupt as interruption:
        raise (watcher.error or interruption) from None
    finally:
        has_ended.set()
        if thread.is_alive():
            thread.join()
        with contextlib.suppress(Exception):  # figures are no reason to lose a finished run
            watcher.show()
