"""What goes on beside a running dataset: fresh figures, a commit now and then, and the reasons to
stop early.

In: the plan, and `Totals`, the actor that workers report to. Out: calls of the display, partial
snapshots, and an error of ours where the run has to end. A thread on the driver; one question to
the actor every half second.
"""

from __future__ import annotations

import _thread
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import ray

from pipeline.driver.limits import check_rejects
from pipeline.driver.plan import Plan
from pipeline.errors import CorpusEmbedError
from pipeline.output.snapshots import commit_snapshot, load_manifests
from pipeline.storage.store import Store
from pipeline.workers.metrics import Progress

log = logging.getLogger(__name__)

EARLY_REJECTS = 1000
"""Records after which too large a share of rejects stops a run before its end."""

STALLED_S = 300.0
"""After so long without a finished part, and again each time it has passed, a run says what it
waits for."""

Watch = Callable[[Progress, list[str]], None]


def log_notes(_progress: Progress, notes: list[str]) -> None:
    """For runs that nobody watches: what they wait for goes to Python's log, and so to standard
    error if nothing else is set."""
    for note in notes:
        log.warning(note)


class Stop:
    """Why the watcher stopped a run."""

    error: CorpusEmbedError | None = None


class Totals:
    """Where workers report what they did and do, and the driver asks. Losing it loses a display,
    never data."""

    def __init__(self) -> None:
        self.reports: list[dict[str, float]] = []
        self.notes: list[str] = []
        self.begun: dict[str, tuple[int, float, str]] = {}  # how often, when last and where

    def begin(self, work: str, where: str) -> int:
        """How often `work` was begun before and not ended: each time, the worker died over it, or
        beside it."""
        times = self.begun.pop(work, (0,))[0]
        self.begun[work] = (times + 1, time.monotonic(), where)  # behind all that began before
        return times

    def end(self, work: str) -> None:
        self.begun.pop(work, None)

    def add(self, report: dict[str, float]) -> None:
        self.reports.append(report)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def take(self) -> tuple[list[dict[str, float]], list[str]]:
        """Everything since the last call."""
        taken = (self.reports, self.notes)
        self.reports, self.notes = [], []
        return taken

    def under_way(self) -> list[str]:
        """Of each kind of work the one that takes longest: what it is, how long it has taken,
        where."""
        longest: dict[str, str] = {}
        for work, (_times, since, where) in self.begun.items():
            longest.setdefault(
                work.split()[0], f"{work} for {time.monotonic() - since:.0f} s in {where}"
            )
        return list(longest.values())


@contextlib.contextmanager
def watching(
    plan: Plan, store: Store, totals: Any, progress: Progress, watch: Watch
) -> Iterator[Stop]:
    """Beside the running dataset: keep the figures fresh, commit now and then, stop when rejects
    are too many."""
    done, stop, spec = threading.Event(), Stop(), plan.job.spec
    # parts of an earlier round are among plan.done, and already in progress
    before_records = sum(part.n_records for part in plan.done) - progress["n_records"]
    before_rejects = sum(part.n_rejects for part in plan.done) - progress["n_rejects"]

    heard = told = time.monotonic()

    def tick() -> None:
        nonlocal heard, told
        reports, notes = ray.get(totals.take.remote())
        for report in reports:
            progress.add(report)
        if any("parts" in report for report in reports):
            heard = told = time.monotonic()
        elif time.monotonic() - told > STALLED_S:
            told = time.monotonic()
            works = ray.get(totals.under_way.remote()) or [
                "workers; none runs: see whether the cluster has room for them"
            ]
            notes = [
                *notes,
                f"no part was finished for {told - heard:.0f} s; waiting for {', '.join(works)}",
            ]
        watch(progress, notes)

    def loop() -> None:
        committed = time.monotonic()
        while not done.wait(0.5):
            try:
                tick()
                records, rejects = (
                    progress["n_records"] + before_records,
                    progress["n_rejects"] + before_rejects,
                )
                if records >= EARLY_REJECTS:
                    check_rejects(spec, records, rejects)
                every = spec.runtime.commit_every
                if (
                    every
                    and not plan.stale
                    and time.monotonic() - committed > every.total_seconds()
                ):
                    _commit_so_far(plan, store)
                    committed = time.monotonic()
            except ray.exceptions.RayError:
                continue  # the actor went with its node; Ray starts it again, empty
            except CorpusEmbedError as error:
                stop.error = error
                # the only way out of a Ray Data execution that blocks the main thread
                _thread.interrupt_main()
                return

    thread = threading.Thread(target=loop, name="watch", daemon=True)
    thread.start()
    try:
        yield stop
    finally:
        done.set()
        thread.join()
        with contextlib.suppress(ray.exceptions.RayError):
            tick()


def show_retry(progress: Progress, watch: Watch, note: str | None) -> None:
    """Count one request of the driver that is tried again; `note` says which one has failed for
    long."""
    progress.add({"storage_retries": 1})
    if note:
        watch(progress, [note])


def _commit_so_far(plan: Plan, store: Store) -> None:
    """Make finished parts readable while the run goes on: only where that adds to the head and
    takes nothing away."""
    parts = plan.parts_of(load_manifests(store, plan.job.fingerprint, plan.done))
    if parts:
        commit_snapshot(
            store,
            parts,
            run_id=plan.run_id,
            fingerprint=plan.job.fingerprint,
            parent=plan.head,
            complete=False,
        )
