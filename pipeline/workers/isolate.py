"""Work that raises or kills its process because of one item, narrowed down to that item, so that
all other items are done.

In: work over a range of items, attempted in this process (`in_process`) or in a `Child` process
that dies in place of the worker. Out: for each item that failed alone, the reason of its reject.
Method: a range that fails is cut into FAN_OUT ranges, each attempted on its own, down to one item.
An item that killed a child alone is attempted alone once more (something else may have killed that
child), and no item is blamed before a harmless one has succeeded: otherwise the fault is in the
machine, the model or this program, and WorkerError says so. Cost: at most 3 + log_16(n) dead
children for an item among n, each as long as loading takes; MAX_DEATHS bounds them for a part. A
hang is not a crash: nothing here ends a call that never returns.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, Self

import numpy as np

from pipeline.embed.memory import is_out_of_memory
from pipeline.errors import CorpusEmbedError, WorkerError
from pipeline.read.records import DETAIL_CHARS

FAN_OUT = 16
"""Ranges that a failed range is cut into: a poison text among 32,768 is identified after five
deaths, not after sixteen."""
MAX_DEATHS = 64
"""Children that may die for one part: enough for about twelve poison records."""
MAX_LOADS = 3
"""How often a child may die while it loads."""
_PARENT_POLL_S = 0.5
EXIT_CUDA = 70
"""Exit code of a process whose CUDA context is broken, which only a new process repairs."""


class Crashed(Exception):
    """One attempt failed because of its items. `reason` is one of schema.REASONS; `died` says
    whether it cost a process."""

    def __init__(self, reason: str, detail: str, died: bool = False) -> None:
        super().__init__(reason, detail, died)
        self.reason = reason
        self.detail = detail
        self.died = died


def in_process(work: Callable[..., Any]) -> Callable[..., Any]:
    """`work` in this process: what it raises becomes Crashed, except errors of this package and of
    stores, which no item causes."""

    def attempt(*arguments: Any) -> Any:
        try:
            return work(*arguments)
        except (CorpusEmbedError, OSError, Crashed):
            raise
        except Exception as error:
            is_memory = is_out_of_memory(error)
            if "CUDA error" in str(error) and not is_memory:
                # every later call would fail too; Ray, or `Child`, starts a new process
                os._exit(EXIT_CUDA)
            detail = f"{type(error).__name__}: {error}"[:DETAIL_CHARS]
            raise Crashed("out_of_memory" if is_memory else "crashed_worker", detail) from error

    return attempt


class Child:
    """A process that calls `load(*arguments)` once, and then what that returned for each `ask`. A
    new process takes over after a death, and after an answer that took too long."""

    def __init__(self, load: Callable[..., Callable[[Any], Any]], *arguments: Any) -> None:
        self._load = load
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self.kill()
            self._bury()

    def ask(self, question: Any, deadline_s: float | None = None) -> Any:
        """The answer to a question; deadline_s: until when, by `time.monotonic`, it is waited for.

        Raises Crashed when the child died or its work raised, WorkerError when it cannot even load,
        and TimeoutError at the deadline, when the child is killed.
        """
        if self._process is None:
            self._start(deadline_s)
        answer = self._exchange(question, deadline_s)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def kill(self) -> None:
        """From any thread: an `ask` under way in another one raises Crashed."""
        if process := self._process:
            process.kill()

    def _start(self, deadline_s: float | None) -> None:
        for _ in range(MAX_LOADS):
            self._pipe, far_end = multiprocessing.Pipe()
            self._process = _process_at(far_end)
            far_end.close()
            answer = self._exchange((self._load, self._arguments), deadline_s)
            if answer is None:
                return
            if not (isinstance(answer, Crashed) and answer.died):
                raise answer
        raise WorkerError(
            f"a worker process died {MAX_LOADS} times while it loaded: {answer.detail}. Check "
            "memory, driver and libraries."
        )

    def _exchange(self, question: Any, deadline_s: float | None) -> Any:
        try:
            self._pipe.send(question)
            wait_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
            if self._pipe.poll(wait_s):
                return self._pipe.recv()
            self.kill()
            self._bury()
            return TimeoutError("the worker process gave no answer in time")
        except (EOFError, OSError):
            return Crashed("crashed_worker", f"the worker process died: {self._bury()}", died=True)

    def _bury(self) -> str:
        self._pipe.close()
        code = self._process.wait() if self._process else 0
        self._process = None
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _process_at(pipe: Connection) -> subprocess.Popen[bytes]:
    """A new interpreter that serves a pipe. A fork would copy threads and CUDA in an unknown state,
    and multiprocessing's "spawn" would run the caller's script once more."""
    return subprocess.Popen(  # noqa: S603 - this interpreter, with code of ours
        [sys.executable, "-P", "-c", f"import {__name__} as it; it.serve({pipe.fileno()})"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=[pipe.fileno()],
        start_new_session=True,  # Ctrl-C is for the caller, who ends this one
    )


def serve(pipe_number: int) -> None:
    """The life of a child: it ends when the other end of the pipe is closed or gone."""
    pipe = Connection(pipe_number)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    work: Callable[[Any], Any] | None = None
    with contextlib.suppress(EOFError, OSError):
        while True:
            question = pipe.recv()
            answer: Any = None
            try:
                if work is None:
                    load, arguments = question
                    work = in_process(load(*arguments))
                else:
                    answer = work(question)
            except (CorpusEmbedError, OSError, Crashed) as error:
                answer = error
            pipe.send(answer)


def _end_with(parent: int) -> None:
    """Ends this process in the middle of its work when the process that wants it is gone."""
    while os.getppid() == parent:
        time.sleep(_PARENT_POLL_S)
    os._exit(0)


def isolate(
    ranges: Sequence[tuple[int, int]],
    attempt: Callable[[int, int], object],
    attempt_harmless: Callable[[], object],
) -> dict[int, Crashed]:
    """Call `attempt(start, stop)` until each item of `ranges` has succeeded or failed alone.
    Returns the failed ones, by item.

    attempt_harmless: does the same work on an item that cannot fail. Raises WorkerError when that
    fails too, or when more than MAX_DEATHS processes died.
    """
    failed: dict[int, Crashed] = {}
    suspects: set[int] = set()
    waiting = list(ranges)[::-1]
    n_deaths = 0
    while waiting:
        start, stop = waiting.pop()
        try:
            attempt(start, stop)
        except Crashed as crash:
            n_deaths += crash.died
            if n_deaths > MAX_DEATHS:
                raise WorkerError(
                    f"{n_deaths} worker processes died on one part, the last one: {crash.detail}. "
                    f"{len(failed)} texts were found to kill them. Look for what these texts have "
                    "in common, or for a broken machine; finished parts stay finished."
                ) from crash
            if stop - start > 1:
                waiting += smaller_ranges(start, stop)[::-1]
            elif crash.died and start not in suspects:
                suspects.add(start)
                waiting.append((start, stop))
            else:
                if not failed:
                    _check(attempt_harmless, crash)
                failed[start] = crash
    return failed


def smaller_ranges(start: int, stop: int) -> list[tuple[int, int]]:
    """A range cut into FAN_OUT ranges of about the same length, fewer where it has fewer items."""
    bounds = np.linspace(start, stop, min(FAN_OUT, stop - start) + 1).astype(int).tolist()
    return list(itertools.pairwise(bounds))


def _check(attempt_harmless: Callable[[], object], crash: Crashed) -> None:
    try:
        attempt_harmless()
    except Crashed as worse:
        raise WorkerError(
            f"a worker fails on every text, even on a harmless one ({worse.detail}), so the fault "
            "is in the model, the libraries or the machine. Fix that and run again; finished parts "
            "stay finished."
        ) from worse.__cause__ or crash
