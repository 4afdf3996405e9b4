"""What a worker reports to `Totals`, the actor beside the driver
(`pipeline/driver/cluster/watch.py`): what it works on, and the requests that it had to repeat.

`Totals` counts how often work was begun and not ended, which is how often a worker died over it.
Cost: one message to an actor when a piece of work begins, and one when it ends; for a part that
takes long to embed, one a second.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

import ray

from pipeline.errors import WorkerError
from pipeline.storage.garbage import uncollected
from pipeline.storage.notes import listen_to_notes
from pipeline.storage.retry import listen_to_retries
from pipeline.storage.waits import name_waits_after

CAREFUL_AFTER = 2
"""Deaths of workers over one piece of work after which the next worker does it in a child process.
"""
ADVANCE_S = 1.0
"""Seconds between two messages on how far a part has come."""
WORKER_WAIT_S = 60.0
"""After how long a worker names a request that it waits for: it has many, and a run is patient."""
MAX_STARTS = 5
"""Deaths of one actor while it loads after which it is not started again."""


@contextlib.contextmanager
def working(totals: Any, work: str) -> Iterator[bool]:
    """Reports `work` while it is done. True when so many workers died over it that care is due."""
    yield ray.get(totals.begin.remote(work, _place())) >= CAREFUL_AFTER
    totals.end.remote(work)


def may_begin(totals: Any, has_budget: bool) -> bool:
    """Whether another part may begin. has_budget: whether the run can be told to begin none; only
    then it is asked, which takes a millisecond."""
    return not (has_budget and ray.get(totals.is_stopping.remote()))


class Advance:
    """Reports how far the embedding of a part has come: called with the number of tokens of each
    bucket, it sends one message each ADVANCE_S seconds at most. whole: the amounts of the part."""

    def __init__(self, totals: Any, part_id: str, whole: Mapping[str, float]) -> None:
        self._totals = totals
        self._part_id = part_id
        self._whole = whole
        self._n_tokens = 0
        self._sent_s = time.monotonic()

    def __call__(self, n_tokens: int) -> None:
        self._n_tokens += n_tokens
        now_s = time.monotonic()
        if now_s - self._sent_s >= ADVANCE_S:
            self._sent_s = now_s
            share = min(1.0, self._n_tokens / max(1, self._whole["n_embedded_tokens"]))
            done = {name: amount * share for name, amount in self._whole.items()}
            self._totals.advance.remote(self._part_id, done)


@contextlib.contextmanager
def loading(totals: Any) -> Iterator[None]:
    """Reports the loading of an actor. Raises WorkerError when this actor keeps dying while it
    loads."""
    report_retries(totals)
    context = ray.get_runtime_context()
    work = f"worker {context.get_actor_id()}, loading,"
    n_deaths = ray.get(totals.begin.remote(work, _place()))
    if context.was_current_actor_reconstructed:
        totals.add.remote({"worker_restarts": 1})
    if n_deaths >= MAX_STARTS:
        raise WorkerError(
            f"a worker died {n_deaths} times while it loaded the model. Check the memory, the "
            f"driver and the libraries of node {context.get_node_id()}; Ray's logs there say how "
            "it died."
        )
    with uncollected():
        yield
    totals.end.remote(work)


def report_retries(totals: Any) -> None:
    """Has the requests that this process repeats counted, those that fail for long named, and all
    other notes of this process shown."""
    listen_to_retries(lambda: totals.add.remote({"storage_retries": 1}))
    listen_to_notes(totals.note.remote)
    name_waits_after(WORKER_WAIT_S)


def _place() -> str:
    return f"process {os.getpid()} of node {ray.util.get_node_ip_address()}"
