"""The engine of a worker, for parts in several threads, and the child process that takes its place.

In: work on an engine. Out: what the work returns. Parts share the engine, which lets one queue its
buckets while another waits for its last vectors. A part that killed workers before has the device
to itself: the engine is given up, because a device may hold the model only once, a child loads
another one, and the next ordinary part loads the engine again. Cost: for such a part, the loading
of two models.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, get_type_hints

from pipeline.embed.buckets import Ids, Offsets, Vectors
from pipeline.embed.memory import free_memory
from pipeline.embed.stats import EngineStats
from pipeline.job.resolve import Job
from pipeline.workers.isolate import Child
from pipeline.workers.steps import Embeds

__all__ = ["EngineInChild", "SharedEngine", "load_embedder"]

T = TypeVar("T")


class SharedEngine:
    """Loads an engine by `load(*arguments, is_tuned=...)`, here or in a child. dim: of its
    vectors."""

    def __init__(self, load: Callable[..., Embeds], *arguments: Any) -> None:
        self._load = functools.partial(load, *arguments)
        self._changed = threading.Condition()
        self._n_parts = 0
        self._is_taken = False  # by a part that is or wants to be alone
        self._engine: Embeds | None = None
        self.dim = self._loaded().dim

    def run(self, work: Callable[[Embeds], T], *, is_careful: bool = False) -> T:
        """`work` on the engine, or, once no other part is under way, on one in a child. Nothing
        here refers to an engine after that: its memory may be needed."""
        with self._turn(is_careful):
            if not is_careful:
                return work(self._loaded())
            self._engine = None
            free_memory()
            with Child(_load_in_child, self._load) as child:
                return work(EngineInChild(child))

    @contextmanager
    def _turn(self, is_alone: bool) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._is_taken)
            self._is_taken = is_alone
            self._changed.wait_for(lambda: not (is_alone and self._n_parts))
            self._n_parts += 1
        try:
            yield
        finally:
            with self._changed:
                self._n_parts -= 1
                self._is_taken = self._is_taken and not is_alone
                self._changed.notify_all()

    def _loaded(self) -> Embeds:
        with self._changed:
            if self._engine is None:
                self._engine = self._load(is_tuned=True)
            return self._engine


class EngineInChild:
    """An engine in a process that dies in place of this one. `embed` then raises Crashed."""

    name: str
    device: str
    device_name: str
    dtype: str
    dim: int
    tuning: Mapping[str, str]

    def __init__(self, child: Child) -> None:
        self._child = child
        vars(self).update(child.ask(None))

    def embed(self, ids: Ids, offsets: Offsets, stats: EngineStats) -> Vectors:
        vectors: Vectors
        vectors, done = self._child.ask((ids, offsets))
        stats.add(done)
        return vectors


def _load_in_child(load: Callable[..., Embeds]) -> Callable[[tuple[Ids, Offsets] | None], Any]:
    """For a Child: None ─► what it says of its engine; (ids, offsets) ─► (vectors, statistics)."""
    engine = load(is_tuned=False)

    def answer(texts: tuple[Ids, Offsets] | None) -> Any:
        if texts is None:
            return {name: getattr(engine, name) for name in get_type_hints(EngineInChild)}
        stats = EngineStats()
        return engine.embed(*texts, stats), stats

    return answer


def load_embedder(job: Job, prompt_tokens: int, threads: int | None, *, is_tuned: bool) -> Embeds:
    """The engine of a job, for a SharedEngine."""
    # torch: seconds that other users of this file do without
    from pipeline.embed.loading import load_engine

    return load_engine(job.model_of_worker(), job.engine, prompt_tokens, threads, is_tuned=is_tuned)
