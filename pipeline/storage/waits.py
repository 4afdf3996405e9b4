"""What this process waits for, said in time: a request that takes long is named after three
seconds and again every ten.

In: each request to a store, when it starts, fails and ends. Out: notes
(`pipeline/storage/notes.py`) such as "list s3://lake/crawl: cannot reach http://127.0.0.1:9
(input.storage_options.endpoint_url): connection refused; trying until 17:05, Ctrl-C stops". One
thread looks at the requests under way, because one that hangs says nothing by itself; of many it
names the one that has waited longest. Cost: two dictionary updates a request, and one wake-up in
three seconds while there are any.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import threading
import time
from collections.abc import Iterator

from pipeline.storage.notes import note
from pipeline.storage.problems import problem_of_request

__all__ = ["Wait", "name_waits_after", "waiting"]

NEXT_NOTE_S = 10.0


@dataclasses.dataclass
class Wait:
    """One request. action: what messages call it. endpoint: what it is sent to, "" where that is
    known from the action. started_s, until_s: by time.monotonic. error: the last failure."""

    action: str
    endpoint: str
    started_s: float
    until_s: float
    error: BaseException | None = None

    def sentence(self, now_s: float) -> str:
        if self.error is None:
            place = f" by {self.endpoint}" if self.endpoint else ""
            waited_s = now_s - self.started_s
            return f"{self.action}: not answered{place} after {waited_s:.0f} s; Ctrl-C stops"
        end = datetime.datetime.now() + datetime.timedelta(seconds=self.until_s - now_s)
        return (
            f"{self.action}: {problem_of_request(self.error, self.endpoint)}; trying until "
            f"{end:%H:%M}, Ctrl-C stops"
        )


class _Monitor:
    """The requests under way, and the thread that names them."""

    def __init__(self, first_note_s: float) -> None:
        self.first_note_s = first_note_s
        self.waits: dict[int, Wait] = {}
        self.changed = threading.Condition()
        self.is_idle = True
        self.thread: threading.Thread | None = None

    def add(self, wait: Wait) -> None:
        with self.changed:
            self.waits[id(wait)] = wait
            if self.thread is None:
                self.thread = threading.Thread(target=self._run, name="waits", daemon=True)
                self.thread.start()
            elif self.is_idle:
                self.changed.notify()

    def remove(self, wait: Wait) -> None:
        with self.changed:
            del self.waits[id(wait)]

    def _run(self) -> None:
        due_s = 0.0
        while True:
            with self.changed:
                self.is_idle = not self.waits
                while not self.waits:
                    self.changed.wait()
                self.is_idle = False
                oldest = next(iter(self.waits.values()))
                now_s = time.monotonic()
                next_s = max(due_s, oldest.started_s + self.first_note_s)
                if now_s < next_s:
                    self.changed.wait(next_s - now_s)
                    continue
            due_s = now_s + NEXT_NOTE_S
            with contextlib.suppress(Exception):  # a display that fails ends no thread
                note(oldest.sentence(now_s))


_monitor = _Monitor(first_note_s=3.0)


def _restart() -> None:
    """A forked process has none of its parent's threads."""
    global _monitor
    _monitor = _Monitor(_monitor.first_note_s)


os.register_at_fork(after_in_child=_restart)


def name_waits_after(seconds: float) -> None:
    """From now on a request of this process is named once it has taken this long. For workers,
    whose retries are many and of which one line a minute is enough."""
    _monitor.first_note_s = seconds


@contextlib.contextmanager
def waiting(action: str, endpoint: str, patience_s: float) -> Iterator[Wait]:
    """Watches one request, its repetitions included. The caller keeps `error` up to date."""
    now_s = time.monotonic()
    wait = Wait(action, endpoint, now_s, now_s + patience_s)
    monitor = _monitor
    monitor.add(wait)
    try:
        yield wait
    finally:
        monitor.remove(wait)
