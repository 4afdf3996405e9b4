"""Work that kills its process or raises because of one item, narrowed down to that item, so that
all others come out.

In: work over a run of items, tried in this process (`here`) or in a `Child` process that may die
instead of the worker. Out: the results of what came through, and for each item that failed alone
the reason of its reject. Method: a run that fails is cut into FAN_OUT runs, each tried on its own,
down to one item. An item that killed a child alone is tried alone once more (something else may
have killed that child), and nothing is blamed before a harmless item came through: else the fault
is in the machine, the model or this program, and WorkerError says so. Cost: at most 2 + log_16(n)
dead children an item of n, each as long as loading takes; MAX_DEATHS a part bounds them all. A hang
is not a crash: nothing here ends a call that never returns.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, Self

import numpy as np

from pipeline.errors import CorpusEmbedError, WorkerError
from pipeline.read.records import DETAIL_CHARS

FAN_OUT = 16
"""Runs that a failed run is cut into: a poison text among 32,768 is found after five deaths, not
after sixteen."""
MAX_DEATHS = 64
"""Children that may die for one part: enough for about twelve poison records."""
MAX_LOADS = 3
"""How often a child may die while it loads."""
EXIT_CUDA = 70
"""Exit code of a process whose CUDA context is broken, which only a new process repairs."""


class Crashed(Exception):
    """One try failed because of what it was given: `reason` is one of schema.REASONS, `died` says
    it took a process."""

    def __init__(self, reason: str, detail: str, died: bool = False) -> None:
        super().__init__(reason, detail, died)
        self.reason, self.detail, self.died = reason, detail, died


def here(work: Callable[..., Any]) -> Callable[..., Any]:
    """`work` in this process: what it raises becomes Crashed, but for errors of ours and of stores,
    which no item causes."""

    def attempt(*given: Any) -> Any:
        try:
            return work(*given)
        except (CorpusEmbedError, OSError):
            raise
        except Exception as error:
            if "CUDA error" in str(error):
                # every later call would fail too; Ray, or `Child`, starts a new process
                os._exit(EXIT_CUDA)
            is_memory = type(error).__name__ in ("OutOfMemoryError", "MemoryError")
            detail = f"{type(error).__name__}: {error}"[:DETAIL_CHARS]
            raise Crashed("out_of_memory" if is_memory else "crashed_worker", detail) from error

    return attempt


class Child:
    """A process that calls `load(*given)` once and then what that returned, for each `ask`; a new
    one after a death."""

    def __init__(self, load: Callable[..., Callable[[Any], Any]], *given: Any) -> None:
        self._load, self._given = load, given
        self._process: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._bury()

    def ask(self, question: Any) -> Any:
        """Raises Crashed when the child died or its work raised, WorkerError when it cannot even
        load."""
        if self._process is None:
            self._start()
        answer = self._exchange(question)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _start(self) -> None:
        for _ in range(MAX_LOADS):
            # a fork would copy threads and CUDA in an unknown state
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
            self._process.start()
            theirs.close()
            answer = self._exchange((self._load, self._given))
            if answer is None:
                return
            if not (isinstance(answer, Crashed) and answer.died):
                raise answer
        raise WorkerError(
            f"a worker process dies while it loads: {answer.detail}. Check memory, driver and libraries."
        )

    def _exchange(self, question: Any) -> Any:
        try:
            self._pipe.send(question)
            return self._pipe.recv()
        except (EOFError, OSError):
            return Crashed("crashed_worker", f"the worker process died: {self._bury()}", died=True)

    def _bury(self) -> str:
        self._pipe.close()
        self._process.join()
        code, self._process = self._process.exitcode, None
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _serve(pipe: Connection) -> None:
    """The life of a child: ends when the other end of the pipe does, whatever ended that."""
    work: Callable[[Any], Any] | None = None
    with contextlib.suppress(EOFError, OSError):
        while True:
            question = pipe.recv()
            answer: Any = None
            try:
                if work is None:
                    load, given = question
                    work = here(load(*given))
                else:
                    answer = work(question)
            except (CorpusEmbedError, OSError, Crashed) as error:
                answer = error
            pipe.send(answer)


def isolate(
    runs: Sequence[tuple[int, int]],
    attempt: Callable[[int, int], object],
    harmless: Callable[[], object],
) -> dict[int, Crashed]:
    """Call `attempt(start, stop)` until each item of `runs` came through or failed alone. Returns
    the failed, by item.

    harmless: does the same work on something that cannot fail. Raises WorkerError when that fails
    too, or when more than MAX_DEATHS processes died.
    """
    failed: dict[int, Crashed] = {}
    suspects: set[int] = set()
    waiting, n_deaths = list(runs)[::-1], 0
    while waiting:
        start, stop = waiting.pop()
        try:
            attempt(start, stop)
        except Crashed as crash:
            n_deaths += crash.died
            if n_deaths > MAX_DEATHS:
                raise WorkerError(
                    f"{n_deaths} worker processes died on one part, the last one: {crash.detail}. {len(failed)} texts "
                    "were found to kill them. Look for what they share with the others, or for a broken machine; "
                    "finished parts stay finished."
                ) from crash
            if stop - start > 1:
                waiting += smaller_runs(start, stop)[::-1]
            elif crash.died and start not in suspects:
                suspects.add(start)
                waiting.append((start, stop))
            else:
                if not failed:
                    _check(harmless, crash)
                failed[start] = crash
    return failed


def smaller_runs(start: int, stop: int) -> list[tuple[int, int]]:
    """A run cut into FAN_OUT runs of about the same length, fewer where it has fewer items."""
    bounds = np.linspace(start, stop, min(FAN_OUT, stop - start) + 1).astype(int).tolist()
    return list(itertools.pairwise(bounds))


def _check(harmless: Callable[[], object], crash: Crashed) -> None:
    try:
        harmless()
    except Crashed as worse:
        raise WorkerError(
            f"a worker fails on every text, also on a harmless one ({worse.detail}), so the fault is in the model, the "
            "libraries or the machine. Mend that and run again; finished parts stay finished."
        ) from worse.__cause__ or crash
